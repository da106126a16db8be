"""The check inside diffusers: `SafetyChecker` for pipelines that have the slot, `guard` for all others.

    pipeline = StableDiffusionPipeline.from_pretrained(…, safety_checker=SafetyChecker())
    pipeline = guard(StableDiffusionXLPipeline.from_pretrained(…))

In: what a pipeline made (PIL, numpy or torch; pictures or videos). Out: the same, with what is not allowed held back, and
a `Result` for each. What a reader would get wrong: `guard` changes the pipeline itself, so that no other reference to
it, and no `pipeline.to("cuda")`, goes round the check. Neither diffusers nor torch is imported here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety.errors import SetupError
from imgsafety.flagged import OnFlagged, check_choice, held
from imgsafety.result import Result
from imgsafety.scan import Scanner

Pipeline = TypeVar("Pipeline")
EXPECTED = ("images", "frames", 0, None)  # fields of an answer, the first of a tuple, or all of it
BEFORE = ("image", "video")


class SafetyChecker:
    """Fits the `safety_checker=` slot of Stable Diffusion pipelines.

    on_flagged: `blank`, `raise` or `mark`, see `imgsafety.flagged`. `results` holds one `Result`
    per picture of the last call. Use `guard` where the slot does not see all that leaves: DeepFloyd IF calls it differently,
    inpainting with `padding_mask_crop` pastes afterwards, and latents (`output_type="latent"`) pass without a call.
    """

    def __init__(self, scanner: Scanner | None = None, on_flagged: OnFlagged = "blank") -> None:
        check_choice(on_flagged)
        self.scanner = scanner or Scanner()
        self.on_flagged = on_flagged
        self.results: tuple[Result, ...] = ()

    def __call__(self, images: Any, clip_input: Any = None) -> tuple[Any, list[bool]]:  # noqa: ARG002  pipelines name it
        """Judge `images` and return them with one flag each, True for what is not allowed.

        images: numpy `(batch, height, width, channels)` in [0, 1], or torch `(batch, channels, height, width)` in
        [-1, 1], as pipelines hand them over. clip_input is what their own checker looks at; it is not used.
        """
        if isinstance(images, np.ndarray):
            pictures = images
            self.results = tuple(self.scanner.check_many(images))
        else:
            # The pipeline will do this to what is not flagged, in this precision: so these are the pixels that leave.
            pictures = (images * 0.5 + 0.5).clamp(0, 1)
            self.results = tuple(self.scanner.check_tensor(pictures))
        flags = held(self.results, self.on_flagged)
        # It will not do it to what is flagged: black is 0 there, and a marked picture must come out finished.
        kept = pictures if self.on_flagged == "mark" else _blank(pictures)
        return _replace(images, {index: kept[index] for index, flag in enumerate(flags) if flag}), flags


def guard(
    pipeline: Pipeline, scanner: Scanner | None = None, on_flagged: OnFlagged = "blank", before: Sequence[str] = BEFORE
) -> Pipeline:
    """Put the check on the way out of any pipeline, and return it: every call is judged from now on.

    on_flagged: `blank`, `raise` or `mark`, see `imgsafety.flagged`; a video is held back as a whole.
    before: the call's arguments that hold a picture that came in; when one is given, each picture is judged as an
    edit of it. Where `image` is no photograph (a pose or edge map), pass `before=()`.
    Everything in the answer that holds pictures is judged. One `Result` per picture or video is in `safety_results` of what the
    call returns (not on a tuple), and of the pipeline, where the next call replaces them. Raises `SetupError` for
    `output_type="latent"`, which nobody can judge, and for an answer without pictures, or with them where they cannot be held
    back (the state that a modular pipeline returns: ask it for `output="images"`). Call it last: `from_pipe` makes a new
    pipeline, without the guard.
    """
    check_choice(on_flagged)
    judging = scanner or Scanner()
    plain = type(pipeline)
    call = plain.__call__
    signature = inspect.signature(call)
    kinds = {parameter.kind: name for name, parameter in signature.parameters.items()}
    others = kinds.get(inspect.Parameter.VAR_KEYWORD, "")  # where a pipeline takes what it hands on
    if before is not BEFORE and not others and (unknown := set(before) - set(signature.parameters)):
        raise SetupError(f"before names {sorted(unknown)[0]!r}, which {plain.__name__} does not take")

    @functools.wraps(call)
    def guarded_call(self: Any, *args: Any, **kwargs: Any) -> Any:  # hands on what the pipeline's own signature takes
        arguments = signature.bind(self, *args, **kwargs)
        arguments.apply_defaults()
        values = {**arguments.arguments, **arguments.arguments.get(others, {})}
        if values.get("output_type") == "latent":
            raise SetupError('output_type="latent" cannot be judged; ask this pipeline for "pil", "np" or "pt"')
        made = call(self, *args, **kwargs)
        parts = _parts(made)
        given = [values[name] for name in before if values.get(name) is not None]
        came_in = _flatten(given) if given else None
        judged = [judging.check_many([_item(picture) for picture in pictures], came_in) for pictures in parts.values()]
        self.safety_results = results = tuple(result for part in judged for result in part)
        flags = iter(held(results, on_flagged))
        for (name, pictures), part in zip(parts.items(), judged, strict=True):
            flagged = [index for index, flag in zip(range(len(part)), flags, strict=False) if flag]
            blanks = {} if on_flagged == "mark" else {index: _blank(pictures[index]) for index in flagged}
            parts[name] = _replace(pictures, blanks)
        return _give_back(made, parts, results)

    # Python looks `__call__` up on the class, so the pipeline gets one of its own. The name stays: diffusers writes it
    # into saved configurations and chooses pipelines by it.
    members = {"__call__": guarded_call, "__module__": plain.__module__, "__doc__": plain.__doc__}
    pipeline.__class__ = type(plain.__name__, (plain,), members)
    return pipeline


def _parts(made: Any) -> dict[Any, Any]:
    """What holds pictures or videos in what a pipeline returned, by its place in a tuple or its name; by none if it is all."""
    if isinstance(made, tuple):
        named: dict[Any, Any] = dict(enumerate(made))
    elif isinstance(made, list) or hasattr(made, "ndim"):
        named = {None: made}
    else:
        named = dict(made) if isinstance(made, Mapping) else dict(getattr(made, "__dict__", {}))
    # Where pictures are expected, an answer of none at all is one as well.
    parts = {name: part for name, part in named.items() if _holds_pictures(part) or (name in EXPECTED and isinstance(part, list))}
    if not parts:
        raise SetupError(f"the pipeline returned {type(made).__name__} without pictures that can be judged")
    return parts


def _holds_pictures(part: Any) -> bool:
    if isinstance(part, list | tuple):
        return any(isinstance(one, Image.Image) or getattr(one, "ndim", 0) == 3 or _holds_pictures(one) for one in part)
    return getattr(part, "ndim", 0) in (4, 5)


def _give_back(made: Any, parts: dict[Any, Any], results: tuple[Result, ...]) -> Any:
    if isinstance(made, tuple):
        return tuple(parts.get(place, part) for place, part in enumerate(made))
    if None in parts:
        return parts[None]
    for name, pictures in parts.items():
        setattr(made, name, pictures)
    made.safety_results = results
    return made


def _item(picture: Any) -> Any:
    """One picture as it is; a video that is a list of frames as one array, so that its worst frame decides."""
    if not isinstance(picture, list) or any(isinstance(frame, Image.Image) and frame.mode[0] in "IF" for frame in picture):
        return picture  # of numbers beyond 255 nobody knows what is white: a list is no picture, and so undecided
    clear = any(isinstance(frame, Image.Image) and frame.has_transparency_data for frame in picture)
    frames = [_array(frame, "RGBA" if clear else "RGB") for frame in picture]
    return np.stack(frames) if len({frame.shape for frame in frames}) == 1 else picture


def _array(frame: Any, mode: str) -> npt.NDArray[Any]:
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert(mode))
    array = np.asarray(frame)
    if mode == "RGBA" and array.ndim == 3 and array.shape[-1] == 3:
        opaque = 255 if array.dtype == np.uint8 else 1
        return np.concatenate([array, np.full_like(array[..., :1], opaque)], axis=-1)
    return array


def _flatten(value: Any) -> list[Any]:
    """Every picture in what a caller passed: one, a list of them, a stack, or none."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [picture for entry in value for picture in _flatten(entry)]
    if getattr(value, "ndim", 0) in (4, 5):
        return [picture for entry in value for picture in _flatten(entry)]
    # Pipelines take tensors in [-1, 1] as well, and tell them by a value below 0, like this.
    return [value * 0.5 + 0.5] if hasattr(value, "is_floating_point") and bool((value < 0).any()) else [value]


def _blank(picture: Any) -> Any:
    if isinstance(picture, list):
        return [_blank(frame) for frame in picture]
    if isinstance(picture, Image.Image):
        return Image.new(picture.mode, picture.size)
    if isinstance(picture, np.ndarray):
        return np.zeros_like(picture)
    return picture.new_zeros(picture.shape) if hasattr(picture, "new_zeros") else None  # what is no picture at all


def _replace(pictures: Any, others: dict[int, Any]) -> Any:
    """A copy of a list, array or tensor of pictures with `others` in place; the rest is bit for bit the same."""
    if not others:
        return pictures
    copy: Callable[[], Any] = getattr(pictures, "clone", None) or pictures.copy
    replaced = copy()
    for index, other in others.items():
        replaced[index] = other
    return replaced
