"""The integration on real diffusers pipelines, built small from configuration: no download, CPU, two steps.

Their weights are random, so what they would show is noise. `Painter` stands where the last layers of the VAE are and
paints plain pictures that the toy model reads as `minimal`, `clothed` or `nobody`, one colour per picture of the batch.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from imgsafety import FlaggedError, Scanner, SetupError
from imgsafety.policy import parse_policy
from tests.toy import POLICY

diffusers = pytest.importorskip("diffusers", reason="the extra [diffusers] is not installed")
torch = pytest.importorskip("torch", reason="the extra [diffusers] is not installed")
transformers = pytest.importorskip("transformers", reason="the extra [diffusers] is not installed")

from imgsafety.integrations.diffusers import SafetyChecker, guard  # noqa: E402  after the skips

SIDE = 16
COLOURS = {
    "minimal": (1.0, -1.0, -1.0),
    "clothed": (-1.0, 1.0, -1.0),
    "nobody": (-1.0, -1.0, -1.0),
    "broken": (float("nan"),) * 3,
    "overshot": (-1.3, 1.3, -1.3),
}
MIXED = ("clothed", "minimal", "nobody")
CALL = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": SIDE, "width": SIDE}


class Painter(torch.nn.Module):
    """Paints one plain picture per latent, in the colours it was told."""

    def __init__(self):
        super().__init__()
        self.kinds = MIXED

    def forward(self, sample, *_):
        """Return (batch, 3, SIDE, SIDE) in [-1, 1], in the precision of the latents."""
        colours = [COLOURS[self.kinds[index % len(self.kinds)]] for index in range(len(sample))]
        return torch.tensor(colours, dtype=sample.dtype)[:, :, None, None].repeat(1, 1, SIDE, SIDE)


def vae(latent_channels=4, paint=True, **settings):
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=SIDE,
        **settings,
    )
    if paint:
        model.decoder = Painter()
    return model.eval()


def unet(**settings):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=SIDE // 2,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    ).eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embeds(count, *shape):
    return torch.zeros(count, *shape)


def stable_diffusion(kind=None, checker=None, **parts):
    cls = kind or diffusers.StableDiffusionPipeline
    return quiet(
        cls(
            vae=vae(),
            text_encoder=None,
            tokenizer=None,
            unet=unet(**parts),
            scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=checker,
            feature_extractor=transformers.CLIPImageProcessor(size=8, crop_size=8),
            requires_safety_checker=checker is not None,
        )
    )


def sdxl():
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=unet(**added), scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip
    return quiet(pipeline), {"prompt_embeds": embeds(3, 4, 8), "pooled_prompt_embeds": embeds(3, 8)}


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    return quiet(pipeline), {"prompt_embeds": embeds(3, 4, 8), "pooled_prompt_embeds": embeds(3, 8)}


def sd3():
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 2, patch_size=1, in_channels=4, out_channels=4,
        num_layers=1, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
        joint_attention_dim=8, pooled_projection_dim=8,
    ).eval()  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(shift_factor=0.1),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    return quiet(pipeline), {"prompt_embeds": embeds(3, 4, 8), "pooled_prompt_embeds": embeds(3, 8)}


def plain_sd():
    return stable_diffusion(), {"prompt_embeds": embeds(3, 4, 8)}


WITHOUT_SLOT = {"sdxl": sdxl, "flux": flux, "sd3": sd3, "sd": plain_sd}


def pixels(images, index):
    """One picture of any output type as (height, width, 3) in [0, 1]."""
    if isinstance(images, list):
        return np.asarray(images[index]) / 255
    return images[index].movedim(0, -1).numpy() if torch.is_tensor(images) else images[index]


def is_black(picture):
    return not np.any(picture)


def expected(kind):
    return (np.array(COLOURS[kind]) + 1) / 2


# --- the slot -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_the_slot_blanks_what_is_flagged_and_leaves_the_rest(scanner, output_type):
    checker = SafetyChecker(scanner)
    made = stable_diffusion(checker=checker)(prompt_embeds=embeds(3, 4, 8), output_type=output_type, **CALL)
    assert made.nsfw_content_detected == [False, True, False]
    assert is_black(pixels(made.images, 1))
    assert np.allclose(pixels(made.images, 0), expected("clothed")) and np.allclose(pixels(made.images, 2), expected("nobody"))


def test_the_slot_gives_every_result_with_its_reasons(scanner):
    checker = SafetyChecker(scanner)
    stable_diffusion(checker=checker)(prompt_embeds=embeds(3, 4, 8), **CALL)
    assert [result.verdict for result in checker.results] == ["allow", "review", "allow"]
    assert [reason.rule for reason in checker.results[1].reasons] == ["minimal-attire"]


def test_a_marked_picture_leaves_the_slot_finished_and_flagged(scanner):
    checker = SafetyChecker(scanner, on_flagged="mark")
    made = stable_diffusion(checker=checker)(prompt_embeds=embeds(3, 4, 8), output_type="np", **CALL)
    assert made.nsfw_content_detected == [False, True, False]
    assert np.allclose(made.images[1], expected("minimal"))


def test_the_slot_can_raise(scanner):
    pipeline = stable_diffusion(checker=SafetyChecker(scanner, on_flagged="raise"))
    with pytest.raises(FlaggedError, match="1 of 3 pictures are not allowed: review: minimal-attire") as raised:
        pipeline(prompt_embeds=embeds(3, 4, 8), **CALL)
    assert [result.verdict for result in raised.value.results] == ["allow", "review", "allow"]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_a_broken_picture_is_undecided_and_blanked(scanner, output_type):
    checker = SafetyChecker(scanner)
    pipeline = stable_diffusion(checker=checker)
    pipeline.vae.decoder.kinds = ("broken", "overshot")
    # The pipeline itself casts NaN to bytes for its feature extractor and is told so by numpy.
    with np.errstate(invalid="ignore"):
        made = pipeline(prompt_embeds=embeds(2, 4, 8), output_type=output_type, **CALL)
    assert [result.verdict for result in checker.results] == ["undecided", "allow"]
    assert is_black(pixels(made.images, 0)) and np.allclose(pixels(made.images, 1), expected("clothed"))


def test_the_slot_takes_numpy_as_older_pipelines_hand_it_over(scanner):
    images = np.stack([np.broadcast_to(expected(kind), (SIDE, SIDE, 3)) for kind in MIXED]).astype(np.float32)
    given = images.copy()
    out, flags = SafetyChecker(scanner)(images=images, clip_input=None)
    assert flags == [False, True, False] and is_black(out[1])
    assert np.array_equal(out[0], given[0]) and np.array_equal(images, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_slot_takes_half_precision(scanner, dtype):
    images = torch.stack([torch.tensor(COLOURS[kind], dtype=dtype)[:, None, None].expand(3, SIDE, SIDE) for kind in MIXED])
    out, flags = SafetyChecker(scanner)(images=images, clip_input=None)
    assert flags == [False, True, False] and out.dtype == dtype and is_black(out[1].float().numpy())


def test_the_slot_survives_saving_and_loading(scanner, tmp_path):
    stable_diffusion(checker=SafetyChecker(scanner)).to("cpu").save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, safety_checker=SafetyChecker(scanner), vae=vae(), text_encoder=None, tokenizer=None
    )
    made = quiet(loaded)(prompt_embeds=embeds(3, 4, 8), **CALL)
    assert made.nsfw_content_detected == [False, True, False]


# --- guard --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("return_dict", [True, False], ids=["dataclass", "tuple"])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("build", WITHOUT_SLOT.values(), ids=WITHOUT_SLOT)
def test_guard_blanks_what_is_flagged_and_leaves_the_rest(scanner, build, output_type, return_dict):
    pipeline, arguments = build()
    guard(pipeline, scanner)
    made = pipeline(**arguments, **CALL, output_type=output_type, return_dict=return_dict)
    images = made.images if return_dict else made[0]
    assert [result.verdict for result in pipeline.safety_results] == ["allow", "review", "allow"]
    assert is_black(pixels(images, 1))
    assert np.allclose(pixels(images, 0), expected("clothed")) and np.allclose(pixels(images, 2), expected("nobody"))


def test_results_with_reasons_are_on_what_the_call_returns(scanner):
    pipeline, arguments = sdxl()
    made = guard(pipeline, scanner)(**arguments, **CALL)
    assert [[reason.rule for reason in result.reasons] for result in made.safety_results] == [[], ["minimal-attire"], []]


def test_guard_can_raise_and_then_nothing_leaves(scanner):
    pipeline, arguments = flux()
    with pytest.raises(FlaggedError, match="1 of 3") as raised:
        guard(pipeline, scanner, on_flagged="raise")(**arguments, **CALL)
    assert raised.value.results == pipeline.safety_results


def test_guard_can_mark_and_then_the_picture_leaves_with_its_result(scanner):
    pipeline, arguments = sdxl()
    made = guard(pipeline, scanner, on_flagged="mark")(**arguments, **CALL, output_type="np")
    assert np.allclose(made.images[1], expected("minimal")) and made.safety_results[1].verdict == "review"


def test_latents_are_refused_before_anything_is_made(scanner):
    pipeline, arguments = sdxl()
    with pytest.raises(SetupError, match="latent"):
        guard(pipeline, scanner)(**arguments, **CALL, output_type="latent")


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_a_broken_picture_through_guard_is_undecided_and_blanked(scanner, output_type):
    pipeline, arguments = flux()
    pipeline.vae.decoder.kinds = ("clothed", "broken", "clothed")
    made = guard(pipeline, scanner)(**arguments, **CALL, output_type=output_type)
    assert [result.verdict for result in made.safety_results] == ["allow", "undecided", "allow"]
    assert is_black(pixels(made.images, 1))


def test_a_rule_that_only_labels_holds_nothing_back(toy_path):
    scanner = Scanner(toy_path, parse_policy(POLICY.replace('"review"', '"label"')))
    pipeline, arguments = sdxl()
    made = guard(pipeline, scanner)(**arguments, **CALL, output_type="np")
    assert np.allclose(made.images[1], expected("minimal")) and made.safety_results[1].reasons


def test_the_guard_stays_when_the_pipeline_moves(scanner):
    pipeline, arguments = sdxl()
    moved = guard(pipeline, scanner).to("cpu")
    assert moved is pipeline and isinstance(moved, diffusers.StableDiffusionXLPipeline)
    assert moved(**arguments, **CALL).safety_results[1].verdict == "review"


def test_a_guarded_pipeline_keeps_its_name_and_signature(scanner):
    pipeline, _ = sdxl()
    plain = inspect.signature(type(pipeline).__call__)
    guard(pipeline, scanner)
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline" and inspect.signature(type(pipeline).__call__) == plain


def test_one_guard_does_not_touch_another_pipeline_of_the_class(scanner):
    (guarded, _), (free, arguments) = sdxl(), sdxl()
    guard(guarded, scanner)
    assert np.allclose(free(**arguments, **CALL, output_type="np").images[1], expected("minimal"))


def test_wrong_arguments_are_refused_as_without_the_guard(scanner):
    with pytest.raises(TypeError, match="no_such_argument"):
        guard(flux()[0], scanner)(no_such_argument=1)


@pytest.mark.parametrize("call", [guard, SafetyChecker])
def test_an_unknown_setting_is_refused(scanner, call):
    with pytest.raises(SetupError, match="on_flagged"):
        call(*([sdxl()[0]] if call is guard else []), scanner=scanner, on_flagged="hide")


class Answers:
    """A pipeline that returns whatever it is told, for the shapes that no small pipeline gives."""

    def __init__(self, made):
        self.made = made

    def __call__(self):
        """Return it."""
        return self.made


@pytest.mark.parametrize("made", [None, (), {"audio": 1}, (np.zeros((2, 100)),), torch.zeros(3, 8, 8)], ids=str)
def test_an_answer_without_pictures_is_refused(scanner, made):
    with pytest.raises(SetupError, match="without pictures"):
        guard(Answers(made), scanner)()


# --- edits --------------------------------------------------------------------------------------------------------------


def edit(scanner, before, kinds=("minimal",), kind=None, **arguments):
    """Run image-to-image through guard; return the result of each picture."""
    pipeline = guard(stable_diffusion(kind or diffusers.StableDiffusionImg2ImgPipeline), scanner)
    pipeline.vae.decoder.kinds = kinds
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "strength": 1.0, "output_type": "np"}
    made = pipeline(image=before, **{"prompt_embeds": embeds(len(kinds), 4, 8), **call, **arguments})
    return [(result.verdict, [reason.rule for reason in result.reasons]) for result in made.safety_results]


UNDRESSED = ("block", ["undressed", "minimal-attire"])
MINIMAL = ("review", ["minimal-attire"])
CLEAN = ("allow", [])


def test_image_to_image_that_undresses_is_blocked(scanner, draw):
    assert edit(scanner, draw("clothed", (SIDE, SIDE))) == [UNDRESSED]


def test_image_to_image_from_a_picture_of_minimal_attire_is_not_undressing(scanner, draw):
    assert edit(scanner, draw("minimal", (SIDE, SIDE))) == [MINIMAL]


def test_inpainting_that_undresses_is_blocked(scanner, draw):
    mask = Image.new("L", (SIDE, SIDE), 255)
    arguments = {"kind": diffusers.StableDiffusionInpaintPipeline, "mask_image": mask, "height": SIDE, "width": SIDE}
    assert edit(scanner, draw("clothed", (SIDE, SIDE)), **arguments) == [UNDRESSED]


def test_several_edits_are_paired_in_order(scanner, draw):
    before = [draw("clothed", (SIDE, SIDE)), draw("minimal", (SIDE, SIDE)), draw("clothed", (SIDE, SIDE))]
    assert edit(scanner, before, ("minimal", "minimal", "clothed")) == [UNDRESSED, MINIMAL, CLEAN]


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")  # diffusers would rather have a picture per prompt
def test_several_pictures_from_one_are_each_an_edit_of_it(scanner, draw):
    one_prompt = {"prompt_embeds": embeds(1, 4, 8), "num_images_per_prompt": 2}
    assert edit(scanner, draw("clothed", (SIDE, SIDE)), ("minimal", "clothed"), **one_prompt) == [UNDRESSED, CLEAN]


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")  # diffusers would rather have a picture per prompt
def test_pictures_that_cannot_be_paired_are_each_held_against_all_that_came_in(scanner, draw):
    befores = [draw("minimal", (SIDE, SIDE)), draw("clothed", (SIDE, SIDE))]
    two_each = {"prompt_embeds": embeds(2, 4, 8), "num_images_per_prompt": 2}
    assert edit(scanner, befores, ("minimal", "clothed", "nobody", "minimal"), **two_each) == [UNDRESSED, CLEAN, CLEAN, UNDRESSED]


@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor:FutureWarning")  # diffusers would rather have [0, 1]
@pytest.mark.parametrize("low", [0, -1])
def test_the_picture_that_came_in_may_be_a_tensor_in_either_range(scanner, low):
    red = torch.tensor([1.0, low, low])[None, :, None, None].expand(1, 3, SIDE, SIDE)
    assert edit(scanner, red) == [MINIMAL]


def test_latents_that_came_in_cannot_be_judged_and_nothing_leaves(scanner):
    latents = torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    assert edit(scanner, latents, ("clothed",)) == [("undecided", [])]


def test_pictures_that_are_no_photographs_can_be_left_out(scanner, draw):
    pipeline = guard(stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline), scanner, before=())
    pipeline.vae.decoder.kinds = ("minimal",)
    pipeline(image=draw("clothed", (SIDE, SIDE)), prompt_embeds=embeds(1, 4, 8), num_inference_steps=2, guidance_scale=1.0)
    assert pipeline.safety_results[0].verdict == "review"


# --- videos -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_one_flagged_frame_holds_the_whole_video_back(scanner, output_type):
    torch.manual_seed(0)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(4, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    pipeline = diffusers.AnimateDiffPipeline(
        vae=vae(), text_encoder=None, tokenizer=None, unet=unet(), motion_adapter=adapter.eval(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="linear"),
    )  # fmt: skip
    made = guard(quiet(pipeline), scanner)(prompt_embeds=embeds(1, 4, 8), num_frames=3, output_type=output_type, **CALL)
    result = made.safety_results[0]
    assert (result.verdict, result.frame, len(made.safety_results)) == ("review", 1, 1)
    assert all(is_black(np.asarray(frame)) for frame in made.frames[0])


class HandsOn:
    """A pipeline that takes its picture by any name."""

    def __call__(self, **kwargs):
        """Give back what came in."""
        return ([kwargs["image"]],)


def test_a_picture_that_comes_in_by_any_name_is_seen(toy_path, toy_policy, draw):
    pipeline = guard(HandsOn(), Scanner(toy_path, toy_policy), on_flagged="mark")
    pipeline(image=draw("minimal"))
    assert pipeline.safety_results[0].verdict == "review"  # the picture was minimal before, so nobody was undressed
    with pytest.raises(SetupError, match="latent"):
        pipeline(image=draw("minimal"), output_type="latent")


def test_a_misspelt_name_of_a_picture_that_comes_in_is_an_error(toy_path, toy_policy):
    class Plain:
        def __call__(self, image=None):
            return ([image],)

    with pytest.raises(SetupError, match="'imgae'"):
        guard(Plain(), Scanner(toy_path, toy_policy), before=("imgae",))


def test_transparent_layers_are_judged_as_they_are_seen(scanner):
    class Layered:
        def __call__(self, alpha):
            return SimpleNamespace(images=[[Image.new("RGBA", (16, 16), (255, 0, 0, alpha))] * 2])

    pipeline = guard(Layered(), scanner)
    assert [pipeline(alpha).safety_results[0].verdict for alpha in (0, 255)] == ["allow", "review"]


def test_a_transparent_frame_beside_arrays_is_judged(scanner):
    class Mixed:
        def __call__(self):
            return SimpleNamespace(images=[[Image.new("RGBA", (16, 16)), np.full((16, 16, 3), (255, 0, 0), np.uint8)]])

    assert guard(Mixed(), scanner)().safety_results[0].verdict == "review"


def test_everything_that_holds_pictures_is_judged(scanner):
    red, green = (np.broadcast_to(np.array(colour, np.uint8), (16, 16, 3)) for colour in ((255, 0, 0), (0, 255, 0)))

    class Several:
        def __init__(self, as_tuple=False):
            self.as_tuple = as_tuple

        def __call__(self):
            images, unsafe = [Image.fromarray(green)], [Image.fromarray(red)]
            return (images, [False], unsafe) if self.as_tuple else SimpleNamespace(images=images, unsafe_images=unsafe, note="x")

    made = guard(Several(), scanner)()
    assert [result.verdict for result in made.safety_results] == ["allow", "review"]
    assert np.asarray(made.images[0]).any() and not np.asarray(made.unsafe_images[0]).any() and made.note == "x"
    images, flags, unsafe = guard(Several(as_tuple=True), scanner)()
    assert np.asarray(images[0]).any() and flags == [False] and not np.asarray(unsafe[0]).any()


def test_a_state_from_which_pictures_cannot_be_held_back_is_refused(scanner):
    modular = pytest.importorskip("diffusers.modular_pipelines", reason="this diffusers has none")

    class Modular:
        def __call__(self, output=None):
            state = modular.PipelineState()
            state.set("images", [Image.new("RGB", (16, 16), "red")])
            return state.get(output) if output else state

    with pytest.raises(SetupError, match="without pictures that can be judged"):
        guard(Modular(), scanner)()
    assert not np.asarray(guard(Modular(), scanner)(output="images")[0]).any()


def test_frames_of_numbers_whose_white_nobody_knows_are_held_back(scanner):
    class Deep:
        def __call__(self):
            return SimpleNamespace(frames=[[Image.new("F", (16, 16), 0.9)] * 2])

    made = guard(Deep(), scanner)()
    assert made.safety_results[0].verdict == "undecided" and not np.asarray(made.frames[0][0]).any()
