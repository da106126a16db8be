"""Training end to end in seconds (training/smoke.toml), and the losses it rests on."""

import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from imgsafety import PolicyError, Scanner, load_policy
from imgsafety.preprocess import shrink, to_pixels
from imgsafety.session import Session
from tests.drawn import write_labelled
from tests.test_encoder import write_encoder
from tests.test_manifest import SETTINGS

torch = pytest.importorskip("torch", reason="training needs torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from training import calibrate, evaluate, export, mix, quantize, retrain, temperature, train  # noqa: E402
from training.heads import AGE, ATTIRE, BORROWED, CLASSES, HEADS, age_distribution, attire_target  # noqa: E402
from training.model import SHAPE, build, graft, has_folded_norms, load_network, on_path_of, path_of, restore_norms, seen_by  # noqa: E402
from training.onnx_file import TEMPERATURE_SUFFIX, read_spec, split_looks  # noqa: E402
from training.settings import load_settings  # noqa: E402

ROOT = Path(__file__).parents[1]
SMOKE = SETTINGS.with_name("smoke.toml")
STEPS = 10
PIXELS = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def fit_on_few_rows():
    """A tenth of these drawn pictures is fewer than temperatures are fitted on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temperature, "FEWEST", 1)
        patch.setattr(temperature, "FEWEST_OF_AGES", 1)
        yield


def run(program, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = CliRunner().invoke(program.main, [*words, "--settings", str(SMOKE)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def train_here(data, output):
    arguments = ["--data", str(data), "--output", str(output), "--settings", str(SMOKE), "--no-pretraining", "--device", "cpu"]
    return CliRunner().invoke(train.main, arguments, catch_exceptions=False).output


def untrained():
    """A network of the shape that the smoke settings ask for."""
    settings = load_settings(SMOKE)
    return build("mobilenet_v2", None, 0.0, pretrained=False, **{name: getattr(settings, name) for name in SHAPE})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("labelled"), per_label=40)


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """Folder of a run that is killed as soon as it has a checkpoint, and went on afterwards."""
    output = tmp_path_factory.mktemp("killed")
    words = ["--data", data, "--output", output, "--settings", SMOKE, "--no-pretraining", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "training.train", *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (output / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (output / "network.safetensors").exists()
    (output / "log.txt").write_text(train_here(data, output))
    return output


@pytest.fixture(scope="module")
def first(killed, data, tmp_path_factory):
    """Folder of a run for first looks: on the other run's path of attire, taught by its network."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copy(SMOKE, folder)
    own = {"trunk": '"attire"', "own_layers": 8, "last_layers": "{ age = 14 }", "steady_heads": '["attire"]'}
    own |= {"first_every": 1, "teacher_weight": 1.0, "learning_rate": 1e-2}
    (folder / "first.toml").write_text('base = "smoke.toml"\n' + "".join(f"{name} = {value}\n" for name, value in own.items()))
    words = ["--data", data, "--output", folder, "--settings", folder / "first.toml", "--device", "cpu"]
    words += ["--start", killed / "network.safetensors", "--teacher", killed / "network.safetensors", "--bfloat16"]
    result = CliRunner().invoke(train.main, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def model(killed, first, data):
    """The exported file, with temperatures fitted."""
    path = killed / "smoke.onnx"
    run(export, network=killed / "network.safetensors", first=first / "network.safetensors", output=path)
    run(temperature, data=data, split=killed / "split.csv", model=path)
    return path


def test_a_killed_run_goes_on_from_its_checkpoint(killed):
    steps = [int(line.split()[1].split("/")[0]) for line in (killed / "log.txt").read_text().splitlines()]
    assert steps == list(range(steps[0], STEPS + 1)) and steps[0] > 1


def test_a_killed_run_ends_where_one_that_was_not_ends(killed, data, tmp_path):
    train_here(data, tmp_path)
    whole, resumed = load_file(tmp_path / "network.safetensors"), load_file(killed / "network.safetensors")
    gaps = [(whole[name].float() - resumed[name].float()).abs().max().item() for name in whole]
    assert whole.keys() == resumed.keys() and max(gaps) < 2e-3


def test_a_checkpoint_of_another_run_is_refused(killed, data, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    words = ["--data", data, "--output", tmp_path / "run", "--settings", SMOKE, "--no-pretraining", "--device", "cpu"]
    for other in (["--start", killed / "network.safetensors"], ["--share", "0.5"]):
        result = CliRunner().invoke(train.main, list(map(str, [*words, *other])))
        assert result.exit_code == 1 and "other settings, pictures or starting weights" in result.output


def test_a_checkpoint_that_was_cut_off_is_named(killed, data, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((killed / "checkpoint.pt").read_bytes()[:1000])
    assert "checkpoint.pt cannot be read, remove it" in train_here(data, tmp_path)


def test_weights_that_were_cut_off_are_named(killed, data, tmp_path):
    (tmp_path / "half.safetensors").write_bytes((killed / "network.safetensors").read_bytes()[:100_000])
    words = ["--data", data, "--output", tmp_path, "--settings", SMOKE, "--start", tmp_path / "half.safetensors"]
    result = CliRunner().invoke(train.main, list(map(str, words)))
    assert result.exit_code == 1 and "half.safetensors is not a whole network.safetensors" in result.output


def test_a_source_without_a_share_and_an_unknown_setting_are_said_without_a_traceback(data, tmp_path):
    (tmp_path / "sead.toml").write_text(SMOKE.read_text().replace("seed = 1", "seed = 1\nsead = 2"))
    text = SMOKE.read_text().replace('"drawn_faces" = 0.3', "").replace(", shares = { drawn_faces = 0.5 }", "")
    (tmp_path / "share.toml").write_text(text)
    for name, problem in (("sead.toml", "'sead'"), ("share.toml", "no share for 'drawn_faces'"), ("none.toml", "does not exist")):
        words = ["--data", data, "--output", tmp_path / "run", "--settings", tmp_path / name, "--no-pretraining"]
        result = CliRunner().invoke(train.main, list(map(str, words)))
        assert result.exit_code in (1, 2) and problem in result.output and isinstance(result.exception, SystemExit)


def test_training_changes_all_but_the_frozen_layers(killed):
    torch.manual_seed(load_settings(SMOKE).seed)
    before = untrained().half().float()
    after = load_network(killed / "network.safetensors")
    changed = {name for name, value in after.named_parameters() if not torch.equal(value, dict(before.named_parameters())[name])}
    assert not [name for name in changed if name.startswith("layers.0.")]
    trained = ("evidence.attire", "evidence.age", "layers.16.conv.2", "towers.age.18.0", "towers.attire.17.conv.2")
    assert {f"{name}.weight" for name in (*trained, "classes.attire.tell")} <= changed


def test_the_exported_file_carries_its_spec_and_temperatures(model):
    import onnx

    spec = read_spec(onnx.load(model))
    assert (spec.identity, spec.size, [head.name for head in spec.heads]) == ("smoke 1", 64, ["attire", "age"])
    assert all(head.temperature != 1.0 for head in spec.heads)


@pytest.fixture(scope="module")
def retrain_words(killed, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("own")
    (output / "own.toml").write_text(f'base = "{SMOKE.as_posix()}"\nname = "own"\n')
    words = ["--data", data, "--output", output / "run", "--settings", output / "own.toml", "--device", "cpu"]
    return list(map(str, [*words, "--start", killed / "network.safetensors"]))


def test_a_model_of_ones_own_that_cannot_promise_is_refused_before_it_is_trained(retrain_words):
    result = CliRunner().invoke(retrain.main, retrain_words)
    assert result.exit_code == 1 and "at least 59 are needed" in result.output
    assert [path.name for path in Path(retrain_words[3]).iterdir()] == ["split.csv"]


def test_a_model_of_ones_own_that_cannot_be_measured_is_refused_before_it_is_trained(retrain_words, killed, tmp_path):
    (tmp_path / "split.csv").write_text((killed / "split.csv").read_text().replace(",test", ",train"))
    result = CliRunner().invoke(retrain.main, [*retrain_words, "--output", str(tmp_path), "--target-miss", "0.8"])
    assert result.exit_code == 1 and "no picture to the test fold" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]


def test_a_model_of_ones_own_is_one_command(retrain_words, data):
    import onnx

    result = CliRunner().invoke(retrain.main, [*retrain_words, "--target-miss", "0.8"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    steps = [line.split()[3] for line in result.output.splitlines() if line.startswith("$ python")]
    assert steps == [f"training.{name}" for name in ("train", "export", "quantize", "temperature", "calibrate", "evaluate")]
    model, policy = (Path(retrain_words[3]) / name for name in ("model.onnx", "policy.toml"))
    assert all(head.temperature != 1.0 for head in read_spec(onnx.load(model)).heads)
    assert load_policy(policy).model == "own 1"
    assert all(one.minor is not None for one in Scanner(model, policy).scan(sorted((data / "drawn_faces").iterdir())[:4]))
    assert "Minimal attire: ranking" in result.output and str(policy) in result.output.splitlines()[-1]


def test_a_split_without_a_train_fold_and_a_file_that_is_no_model_are_refused(model, killed, data, tmp_path):
    (tmp_path / "split.csv").write_text((killed / "split.csv").read_text().replace(",train", ",test"))
    for path, split, problem in ((model, tmp_path, "no picture to the train fold"), (SMOKE, killed, "smoke.toml cannot be read")):
        words = ["--data", data, "--split", split / "split.csv", "--model", path, "--output", tmp_path / "x", "--settings", SMOKE]
        result = CliRunner().invoke(quantize.main, list(map(str, words)))
        assert result.exit_code == 1 and problem in result.output


def test_the_int8_file_answers_nearly_what_the_float_file_does(model, killed, data):
    int8 = killed / "int8.onnx"
    run(quantize, data=data, split=killed / "split.csv", model=model, output=int8)
    assert int8.stat().st_size < model.stat().st_size
    pixels = np.stack([to_pixels(Image.open(path).convert("RGB"), 64) for path in sorted((data / "drawn_figures").iterdir())[:24]])
    for seen in (pixels, shrink(pixels, 32)):
        exact, rounded = (
            np.array([list(one.heads["attire"].values()) for one in Session(path).run(seen)]) for path in (model, int8)
        )
        assert 0 < np.abs(exact - rounded).max() < 0.1 and np.ptp(exact, axis=1).min() > 0.01


def test_a_bias_gives_up_what_rounded_weights_add_on_average():
    from onnx import TensorProto, helper, numpy_helper

    def graph(nodes, **values):
        initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
        return helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)

    weight = np.array([0.26, -0.5], np.float32).reshape(1, 2, 1, 1)
    plain = graph([helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")], w=weight, b=np.array([1.0], np.float32))
    nodes = [helper.make_node("DequantizeLinear", [f"{name}q", f"{name}s"], [name]) for name in "wb"]
    levels = np.rint(weight / 0.1).astype(np.int8)  # 0.3 instead of 0.26
    scales = {"ws": np.array([0.1], np.float32), "bs": np.array([0.01], np.float32)}
    rounded = graph([*nodes, plain.node[0]], wq=levels, bq=np.array([100], np.int32), **scales)
    quantize.correct_biases(rounded, plain, {"conv": np.array([2.0, 7.0], np.float32)})
    (bias,) = (numpy_helper.to_array(value) for value in rounded.initializer if value.name == "bq")
    assert bias == [92]  # 100 - 0.04 x 2 / 0.01


def test_a_mean_that_all_channels_share_is_exported_as_one_number():
    network = untrained()
    network.mean = torch.full((1, 3, 1, 1), 127.5)
    with torch.no_grad():
        export.fold(network)
        before = network.answer(PIXELS)
        assert (network.mean.numel(), network.deviation.numel()) == (1, 3)
        network.mean = torch.full((1, 3, 1, 1), 127.5)
        assert all(map(torch.equal, before, network.answer(PIXELS)))


def test_each_look_has_temperatures_of_its_own(model):
    import onnx

    def temperatures(look):
        values = {value.name: value for value in look.graph.initializer}
        return [float(onnx.numpy_helper.to_array(values[head.name + TEMPERATURE_SUFFIX])[0]) for head in HEADS]

    whole, first = map(temperatures, split_looks(onnx.load(model)))
    assert 1.0 not in whole + first
    assert all(one != other for one, other in zip(whole, first, strict=True))


def test_a_trunk_without_a_network_to_start_from_is_refused(first, data, tmp_path):
    words = ["--data", data, "--output", tmp_path, "--settings", first / "first.toml", "--no-pretraining"]
    result = CliRunner().invoke(train.main, list(map(str, words)))
    assert result.exit_code == 2 and "--start" in result.output


def test_a_network_for_first_looks_shares_most_layers_and_borrows_as_before(first):
    network = load_network(first / "network.safetensors")
    assert len(network.layers) == 11 and network.last_layers == {"attire": 18, "age": 14}
    assert network.evidence["age"].in_channels == 96 and list(network.classes) == ["attire"]


@pytest.fixture(scope="module")
def policy(model, killed, data):
    path = killed / "policy.toml"
    run(calibrate, data=data, split=killed / "split.csv", model=model, target_miss=0.5, confidence=0.6, output=path)
    return path


def test_a_policy_is_calibrated_and_the_scanner_judges_with_it(model, policy, data):
    assert load_policy(policy).model == "smoke 1"
    results = list(Scanner(model, policy).scan(sorted((data / "drawn_figures").iterdir())))
    assert len(results) == 120 and {result.verdict for result in results} <= {"allow", "review", "block"}
    assert all(0 <= result.apparent_age <= 100 for result in results if result.apparent_age is not None)


def test_a_model_is_measured_on_held_out_pictures_with_a_policy_of_its_own(model, policy, killed, data):
    words = ["--data", data, "--split", killed / "split.csv", "--model", model, "--changed-rows", 4, "--settings", SMOKE]
    result = CliRunner().invoke(evaluate.main, list(map(str, [*words, "--policy", policy])), catch_exceptions=False)
    assert result.exit_code == 0 and all(text in result.output for text in ("AUROC", "| halftone |", "beside an adult", "restyled"))
    with pytest.raises(PolicyError, match=r"calibrated for model 'imgsafety 1\.0'"):
        CliRunner().invoke(evaluate.main, list(map(str, words)), catch_exceptions=False)


def test_only_the_shipped_model_is_written_into_its_card(model, killed, data):
    words = ["--data", data, "--split", killed / "split.csv", "--model", model, "--write"]
    result = CliRunner().invoke(evaluate.main, list(map(str, words)))
    assert result.exit_code == 2 and "--write is for all tables of the shipped model" in result.output


def test_a_mix_lies_between_two_networks(killed, tmp_path):
    other, mixed = tmp_path / "other.safetensors", tmp_path / "mixed.safetensors"
    train.save_network(untrained(), other, load_settings(SMOKE))
    words = ["--before", killed / "network.safetensors", "--after", other, "--share", 0.75, "--output", mixed]
    assert CliRunner().invoke(mix.main, list(map(str, words)), catch_exceptions=False).exit_code == 0
    before, after, between = load_file(killed / "network.safetensors"), load_file(other), load_file(mixed)
    name = "towers.age.18.0.weight"
    expected = 0.25 * before[name].float() + 0.75 * after[name].float()
    assert torch.allclose(between[name].float(), expected, atol=1e-3) and not torch.equal(between[name], after[name])
    assert load_network(mixed).padding == "torch"


def test_mixing_one_head_leaves_the_other_as_it_was(killed, tmp_path):
    other, mixed = tmp_path / "other.safetensors", tmp_path / "mixed.safetensors"
    train.save_network(build("mobilenet_v2", None, 0.0, pretrained=False), other, load_settings(SMOKE))
    words = ["--before", killed / "network.safetensors", "--after", other, "--share", 0.5, "--head", "age", "--own-layers", 4]
    result = CliRunner().invoke(mix.main, list(map(str, [*words, "--output", mixed])), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    before, after, between = (load_network(path).eval() for path in (killed / "network.safetensors", other, mixed))
    assert between.own_layers == 4
    with torch.no_grad():
        assert torch.allclose(between(PIXELS)[0], before(PIXELS)[0], atol=1e-3)
    weights = [path_of(network, "age")[18][0].weight for network in (before, after, between)]
    assert torch.allclose((weights[0] + weights[1]) / 2, weights[2], atol=1e-3) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("options", "error"), [(["--own-layers", 2], "goes with --head"), (["--head", "age", "--own-layers", 1], "2 layers")]
)
def test_a_mix_that_would_change_more_than_it_says_is_refused(tmp_path, options, error):
    path = tmp_path / "network.safetensors"
    train.save_network(build("mobilenet_v2", None, 0.0, pretrained=False, own_layers=2), path, load_settings(SMOKE))
    words = ["--before", path, "--after", path, "--share", 0.5, "--output", tmp_path / "mixed.safetensors", *options]
    result = CliRunner().invoke(mix.main, list(map(str, words)))
    assert result.exit_code == 2 and error in result.output


def test_a_left_out_source_is_measured_whole_and_changed(model, policy, data):
    words = ["--data", data, "--model", model, "--policy", policy, "--left-out", "drawn_figures", "--settings", SMOKE]
    result = CliRunner().invoke(evaluate.main, list(map(str, [*words, "--changed-rows", 4])), catch_exceptions=False)
    assert result.exit_code == 0 and "source drawn_figures" in result.output and "drawn_scenes" not in result.output
    assert "| halftone |" in result.output


def test_a_source_that_is_not_there_cannot_be_left_out(data, tmp_path):
    words = ["--data", data, "--output", tmp_path, "--settings", SMOKE, "--no-pretraining", "--leave-out", "sports"]
    result = CliRunner().invoke(train.main, list(map(str, words)))
    assert result.exit_code == 1 and "no source sports" in result.output


def test_a_checkpoint_that_saw_the_left_out_source_is_refused(killed, data):
    words = ["--data", data, "--output", killed, "--settings", SMOKE, "--no-pretraining", "--leave-out", "drawn_scenes"]
    result = CliRunner().invoke(train.main, list(map(str, words)))
    assert result.exit_code == 1 and "was trained on other sources" in result.output


def test_a_network_that_saw_the_left_out_source_cannot_be_gone_on_from(killed, data, tmp_path):
    start = killed / "network.safetensors"
    words = ["--data", data, "--output", tmp_path, "--settings", SMOKE, "--leave-out", "drawn_scenes"]
    for option in ("--start", "--teacher"):
        result = CliRunner().invoke(train.main, [*map(str, words), option, str(start)])
        assert result.exit_code == 2 and "saw nothing of the source" in result.output


def test_the_sources_of_a_network_are_those_of_its_start_too(killed, tmp_path):
    seen = ["drawn_faces", "drawn_figures", "drawn_scenes"]
    first, second, silent = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "silent"))
    for path, sources in ((first, ["a"]), (second, ["b"]), (silent, None)):
        train.save_network(build("mobilenet_v2", None, 0.0, pretrained=False), path, load_settings(SMOKE), sources)
    assert seen_by(killed / "network.safetensors") == seen and seen_by(None) == []
    assert seen_by(first, second) == ["a", "b"] and seen_by(first, silent) is None


# Losses and the network.


def loss(logits, target, trust=1.0):
    logits = torch.tensor([logits], requires_grad=True)
    return train.head_loss(logits, torch.tensor(np.array([target])), torch.tensor([trust])).item()


LOGITS = [0.0, 1.0, 2.0, -1.0]
SHARES = torch.softmax(torch.tensor(LOGITS), dim=0)


def test_under_18_costs_minus_the_log_of_its_probability():
    logits = torch.randn(1, len(AGE.labels), generator=torch.Generator().manual_seed(0))
    minor = torch.softmax(logits, dim=1)[0, :10].sum()
    assert AGE.edges[10] == 18
    for age, probability in ((17, minor), (18, 1 - minor)):
        cost = train.minor_loss(logits, torch.tensor(np.array([age_distribution(age)])))
        assert cost.item() == pytest.approx(-torch.log(probability).item(), abs=1e-5)
    assert train.minor_loss(logits, torch.ones(1, len(AGE.labels))).item() == 0


def test_a_label_costs_minus_the_log_of_its_probability():
    assert loss(LOGITS, attire_target("revealing")) == pytest.approx(-torch.log(SHARES[2]).item(), abs=1e-5)


def test_a_set_costs_minus_the_log_of_its_probability():
    assert loss(LOGITS, attire_target("not_minimal")) == pytest.approx(-torch.log(1 - SHARES[3]).item(), abs=1e-5)


def test_unknown_costs_nothing():
    assert loss(LOGITS, attire_target("")) == 0


def test_a_teacher_teaches_nothing_about_a_picture_whose_label_says_nothing():
    taught = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    logits = torch.tensor([LOGITS])
    expected = -(taught[0] * torch.log(SHARES)).sum().item()
    labelled, unknown = (torch.tensor(attire_target(label))[None] for label in ("clothed", ""))
    assert train.taught_loss(logits, taught, labelled).item() == pytest.approx(expected, abs=1e-5)
    assert train.taught_loss(logits, taught, unknown).item() == 0


def test_a_head_learns_what_an_encoder_sees_and_nothing_of_that_is_kept_but_its_layers(killed, data, tmp_path):
    shutil.copy(SMOKE, tmp_path)
    words = ["--data", data, "--start", killed / "network.safetensors", "--device", "cpu"]
    words += ["--encoder", write_encoder(tmp_path / "encoder.onnx")]
    networks = []
    for weight in (0.0, 20.0):
        settings = tmp_path / f"weight{weight}.toml"
        settings.write_text(f'base = "smoke.toml"\nheads = ["age"]\nencoder_weight = {weight}\n')
        options = [*words, "--output", tmp_path / str(weight), "--settings", settings]
        result = CliRunner().invoke(train.main, list(map(str, options)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        networks.append(load_file(tmp_path / str(weight) / "network.safetensors"))
    without, seeing = networks
    assert without.keys() == seeing.keys() == load_file(killed / "network.safetensors").keys()
    changed = {name for name in without if not torch.equal(without[name], seeing[name])}
    assert any(name.startswith("towers.age.") for name in changed) and not any("attire" in name for name in changed)


def test_what_an_encoder_sees_is_learned_of_pictures_that_show_one_row_alone():
    wishes = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    read = torch.tensor([[5.0, 5.0], [1.0, 1.0]], requires_grad=True)
    loss = train.encoder_loss(read, wishes, torch.tensor([-1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2.0) and not read.grad[0].any()
    assert train.encoder_loss(read, wishes, torch.tensor([-1, -1])).item() == 0


def test_an_exact_age_costs_cross_entropy():
    logits = list(np.linspace(-1, 1, len(AGE.labels)).astype(float))
    target = age_distribution(20)
    expected = -(torch.tensor(target) * torch.log_softmax(torch.tensor(logits), 0)).sum().item()
    assert loss(logits, target) == pytest.approx(expected, abs=1e-4)


def test_a_doubtful_set_costs_less_when_it_seems_wrong():
    sure_of_another = [-9.0, -9.0, -9.0, 9.0]
    assert loss(sure_of_another, attire_target("not_minimal"), 0.75) < loss(sure_of_another, attire_target("not_minimal"))


def test_a_label_and_its_gradient_stay_finite_however_wrong():
    logits = torch.tensor([[-200.0, -200.0, -200.0, 200.0]], requires_grad=True)
    train.head_loss(logits, torch.tensor(attire_target("clothed"))[None], torch.tensor([1.0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_expected_age_is_measured_in_decades_over_exact_ages():
    at_20 = torch.log(torch.tensor(age_distribution(20)).clamp(min=1e-9))[None]
    exact, unknown = torch.tensor(age_distribution(40))[None], torch.ones(1, len(AGE.labels))
    assert train.expected_age_loss(at_20, exact).item() == pytest.approx(2, abs=0.15)
    assert train.expected_age_loss(at_20, unknown).item() == 0


def test_probabilities_are_distributions_and_maps_sum_to_them():
    network = build("mobilenet_v2", None, 0.0, pretrained=False).eval()
    with torch.no_grad():
        attire, age, attire_map, age_map = network.answer(torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8))
    assert attire.shape == (2, len(ATTIRE.labels)) and age.shape == (2, len(AGE.labels))
    assert torch.allclose(attire.sum(1), torch.ones(2)) and torch.allclose(age_map.sum((2, 3)), age, atol=1e-5)
    assert attire_map.shape == (2, len(ATTIRE.labels), 2, 3)


def test_a_grafted_head_answers_as_before_and_the_others_start_anew():
    torch.manual_seed(0)
    old, new = (build("mobilenet_v2", None, 0.0, pretrained=False, own_layers=own).eval() for own in (2, 19))
    for network in (old, new):
        for layer in network.evidence.values():
            torch.nn.init.normal_(layer.bias)
    with torch.no_grad():
        before = new(PIXELS)[0]
        graft(new, old, "age")
        assert torch.equal(new(PIXELS)[1], old(PIXELS)[1])
        assert torch.equal(new(PIXELS)[0], before) and not torch.allclose(before, old(PIXELS)[0])


def test_a_frozen_head_keeps_its_tower_and_learns_its_evidence():
    settings = replace(load_settings(SMOKE), frozen_heads=("attire",))
    network = build("mobilenet_v2", None, 0.0, pretrained=False, own_layers=2)
    train.freeze(network, settings)
    network(PIXELS)[0].sum().backward()
    assert all(one.grad is None for one in network.towers["attire"].parameters())
    assert all(one.grad is not None for one in network.evidence["attire"].parameters())
    assert not network.towers["attire"].training and network.towers["age"].training


def test_a_head_without_layers_of_its_own_cannot_be_frozen():
    settings = replace(load_settings(SMOKE), frozen_heads=("attire",))
    with pytest.raises(ValueError, match="own_layers is 0"):
        train.freeze(build("mobilenet_v2", None, 0.0, pretrained=False), settings)


def test_a_head_reads_the_layer_it_is_told_to_and_keeps_its_shape_on_disk(tmp_path):
    shape = {"own_layers": 3, "last_layers": {"attire": 18}, "sharpness": {"attire": 2.0}}
    network = build("mobilenet_v2", None, 0.0, pretrained=False, **shape).half().float()
    train.save_network(network, tmp_path / "network.safetensors", load_settings(SMOKE))
    again = load_network(tmp_path / "network.safetensors").eval()
    assert [features.shape[1] for features in again.features(PIXELS).values()] == [320, 1280]
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(again(PIXELS), network.eval()(PIXELS), strict=True))


def test_a_head_cannot_read_a_layer_that_all_share():
    with pytest.raises(ValueError, match="from 16, which all heads share, to 19"):
        build("mobilenet_v2", None, 0.0, pretrained=False, own_layers=3, last_layers={"attire": 15})


def test_sharpness_multiplies_logits_and_where_follows():
    torch.manual_seed(0)
    plain = build("mobilenet_v2", None, 0.0, pretrained=False).eval()
    sharp = deepcopy(plain)
    sharp.sharpness["attire"] = 3.0
    with torch.no_grad():
        assert torch.allclose(sharp(PIXELS)[0], 3 * plain(PIXELS)[0]) and torch.equal(sharp(PIXELS)[1], plain(PIXELS)[1])
        attire, _, places, _ = sharp.answer(PIXELS)
    assert torch.allclose(places.sum((2, 3)), attire, atol=1e-5)


def test_steady_features_cost_nothing_where_they_are_those_of_the_network_as_it_came():
    torch.manual_seed(0)
    network = build("mobilenet_v2", None, 0.0, pretrained=False).eval()
    (seen,), (other,) = (train.seen_in(network, "attire", network.features(pixels)) for pixels in (PIXELS, PIXELS.flip(3)))
    assert train.steady_loss(seen, seen) == 0 < train.steady_loss(other, seen)


def test_a_head_that_borrows_is_held_to_the_classes_of_imagenet_too():
    network = build("mobilenet_v2", None, 0.0, pretrained=False, borrowed={"attire": 0.5}).eval()
    features, logits = train.seen_in(network, "attire", network.features(PIXELS))
    assert features.shape == (4, 1280) and logits.shape == (4, CLASSES)
    assert torch.allclose(logits.mean(dim=0), torch.zeros(CLASSES), atol=1e-5)


@pytest.mark.parametrize("way", [0.0, 0.5, 1.0])
def test_steady_layers_stay_part_of_the_way_from_where_they_started(way):
    first, last = (build("mobilenet_v2", None, 0.0, pretrained=False, own_layers=2, borrowed={"attire": 0.5}) for _ in range(2))
    settings = replace(load_settings(SMOKE), steady_heads=("attire",), steady_way=way)
    names = ("layers.16.conv.2.weight", "towers.attire.18.0.weight", "classes.attire.tell.weight")
    wanted = {name: first.state_dict()[name].lerp(last.state_dict()[name], way) for name in names}
    evidence = last.evidence["attire"].weight.clone()
    train.go_back(last, first, settings)
    assert all(torch.allclose(last.state_dict()[name], wanted[name], atol=1e-6) for name in names)
    assert torch.equal(last.evidence["attire"].weight, evidence)


def test_a_steady_run_of_one_head_teaches_its_features_without_labels_and_leaves_the_other(killed, data, tmp_path):
    shutil.copy(SMOKE, tmp_path)
    own = ['base = "smoke.toml"', 'heads = ["attire"]', 'steady_heads = ["attire"]', "frozen_layers = 17"]
    own.append("evidence_decay = { attire = 1.0 }")
    (tmp_path / "steady.toml").write_text("\n".join(own))
    words = ["--data", data, "--output", tmp_path, "--settings", tmp_path / "steady.toml", "--device", "cpu"]
    CliRunner().invoke(train.main, [*map(str, words), "--start", str(killed / "network.safetensors")], catch_exceptions=False)
    before, after = (load_network(folder / "network.safetensors").eval() for folder in (killed, tmp_path))
    with torch.no_grad():
        assert torch.equal(after(PIXELS)[1], before(PIXELS)[1])
    assert not torch.equal(path_of(after, "attire")[17].conv[2].weight, path_of(before, "attire")[17].conv[2].weight)


def test_what_trains_one_head_leaves_the_other_as_it_is():
    network = build("mobilenet_v2", None, 0.0, pretrained=False, own_layers=2)
    settings = replace(load_settings(SMOKE), heads=("attire",), steady_heads=("attire",))
    train.freeze(network, settings)
    assert not network.towers["attire"].training and all(one.requires_grad for one in network.towers["attire"].parameters())
    assert not any(one.requires_grad for part in (network.evidence, network.towers) for one in part["age"].parameters())


def borrowing():
    torch.manual_seed(0)
    layers = {"own_layers": 2, "last_layers": {"attire": 18}}
    network = build("mobilenet_v2", None, 0.0, pretrained=False, **layers, borrowed={"attire": 0.5})
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # one batch gives the statistics: without any, nothing is left of a picture behind so many layers
    network(PIXELS)
    return network.eval()


def test_a_head_borrows_evidence_of_its_labels_from_classes_of_imagenet():
    network = borrowing()
    features = network.features(PIXELS, ["attire"])
    ((_, evidence, _),) = network.places(features)
    borrowed = evidence - network.evidence["attire"](features["attire"]).flatten(2)
    classes = network.classes["attire"]
    told = classes.tell(classes.layers(features["attire"])).flatten(2)
    wanted = torch.zeros_like(borrowed)
    for label, names in BORROWED["attire"].items():
        wanted[:, ATTIRE.labels.index(label)] = 0.5 * told[:, list(names)].mean(dim=1)
    assert torch.allclose(borrowed, wanted, atol=1e-5) and borrowed.abs().max() > 1e-4


def test_the_classes_of_imagenet_start_as_the_classifier_tells_them():
    from torchvision import models

    classifier = models.mobilenet_v2(num_classes=1001)
    network = borrowing()
    network.classes["attire"].start_from(classifier)
    assert torch.equal(network.classes["attire"].tell.weight.flatten(1), classifier.classifier[1].weight[1:])


def test_folded_classes_lend_what_they_lent_and_keep_nothing_else():
    network = borrowing()
    classes, features = network.classes["attire"], network.features(PIXELS)["attire"]
    before = classes.lend(features)
    classes.fold()
    assert torch.allclose(classes.lend(features), before, atol=1e-5) and before.std() > 1e-3
    assert classes.tell.out_channels == len(ATTIRE.labels)


def test_on_the_path_of_a_head_that_head_says_what_it_said_and_the_other_starts_from_it():
    network = borrowing().eval()
    other = on_path_of(network, "attire", 8, {"age": 14}).eval()
    with torch.no_grad():
        before, after = (one.pool(one.features(PIXELS)) for one in (network, other))
        started = other.features(PIXELS)["age"]
        wanted = path_of(network, "attire")[:14]((PIXELS.permute(0, 3, 1, 2).float() - network.mean) / network.deviation)
    assert torch.equal(before["attire"], after["attire"]) and before["attire"].std() > 1e-4
    assert torch.equal(started, wanted)


def test_the_size_of_evidence_is_the_sum_of_its_squares():
    network = build("mobilenet_v2", None, 0.0, pretrained=False)
    weights = network.evidence["attire"].get_parameter("weight")
    assert train.evidence_size(network, "attire").item() == pytest.approx(weights.square().sum().item())


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5"])
def test_the_backbone_is_a_setting(backbone):
    network = build(backbone, None, 0.0, pretrained=False).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))[0].shape == (1, len(ATTIRE.labels))


def test_folded_norms_are_restored_without_changing_the_function(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    classifier = models.mobilenet_v2(num_classes=1001)
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.bias.data.normal_(0, 0.1)
            layer.running_var.fill_(1 - layer.eps)
    save_file(classifier.state_dict(), tmp_path / "folded.safetensors")
    network = build("mobilenet_v2", tmp_path / "folded.safetensors", 0.0).eval()
    pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = network(pixels)
        assert has_folded_norms(network)
        restore_norms(network, pixels)
        after, trained = network.eval()(pixels), network.train()(pixels)
    assert not has_folded_norms(network)
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(before, after, strict=True))
    assert all(torch.allclose(one, other, atol=0.1) for one, other in zip(before, trained, strict=True))


def test_an_untrained_network_has_no_folded_norms():
    assert not has_folded_norms(build("mobilenet_v2", None, 0.0, pretrained=False))


def test_a_setting_that_is_missing_or_unknown_is_named(tmp_path):
    for text in (SMOKE.read_text().replace("seed = 1\n", ""), SMOKE.read_text().replace("seed = 1", "seed = 1\nsead = 2")):
        (tmp_path / "settings.toml").write_text(text)
        with pytest.raises(ValueError, match=r"settings\.toml: .*'(seed|sead)'"):
            load_settings(tmp_path / "settings.toml")


def test_the_real_settings_can_be_read_and_cover_their_sources():
    settings = load_settings(SETTINGS)
    assert {key.split("/")[0] for key in settings.shares} == set(settings.licences)
    assert set(settings.trust) <= set(settings.licences)
