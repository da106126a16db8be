"""Teaching a network where people are: what canvases know of their places, and what the finder learns and leaves alone."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from imgsafety.session import Session
from tests.drawn import write_labelled
from tests.test_manifest import SETTINGS

torch = pytest.importorskip("torch", reason="training needs torch")

from safetensors.torch import load_file  # noqa: E402

from training import export, finder, mix, train  # noqa: E402
from training.data import NOBODY, Example  # noqa: E402
from training.finder import EMPTY, SIDE, SOMEBODY, UNKNOWN, Canvas, Canvases, Part, people_loss, teach  # noqa: E402
from training.heads import OLDEST, attire_target  # noqa: E402
from training.manifest import load_manifest  # noqa: E402
from training.model import load_network  # noqa: E402
from training.settings import load_settings  # noqa: E402

ROOT = SETTINGS.parents[1]
PLACES = 4
CELL = SIDE // PLACES
SMOKE = load_settings(SETTINGS.with_name("smoke.toml"))


def part(attire, age, shows=SOMEBODY, mode="RGB", exposed=False):
    image = Image.new(mode, (20, 20), (200, 40, 40, 255)[: len(mode)])
    return Part(Example(image.convert("RGB"), attire_target(attire), age, exposed), image, shows)


def canvas():
    empty = np.full((PLACES, PLACES), EMPTY)
    return Canvas(Example(Image.new("RGB", (SIDE, SIDE)), attire_target("no_person"), NOBODY), empty, np.zeros_like(empty))


def test_what_is_cut_out_is_known_place_by_place():
    found = canvas()
    found.lay(part("clothed", (9, 9), mode="RGBA"), (CELL, 0, CELL, 2 * CELL))
    assert np.argwhere(found.places == SOMEBODY).tolist() == [[0, 1], [1, 1]]
    assert (found.places == EMPTY).sum() == PLACES**2 - 2
    assert found.joint.image.getpixel((CELL + 5, 5)) == (200, 40, 40)


def test_of_a_scene_only_that_somebody_is_in_it():
    found = canvas()
    found.lay(part("clothed", (9, 9), shows=UNKNOWN), (0, 0, 2 * CELL, 2 * CELL))
    found.lay(part("clothed", (9, 9), shows=UNKNOWN), (2 * CELL, 2 * CELL, 2 * CELL, 2 * CELL))
    assert (found.places[:2, :2] == UNKNOWN).all() and (found.groups[:2, :2] == 1).all()
    assert (found.groups[2:, 2:] == 2).all() and (found.groups == 0).sum() == 8


def test_what_lies_on_top_hides_what_was_known():
    found = canvas()
    found.lay(part("clothed", (9, 9), mode="RGBA"), (0, 0, SIDE, SIDE))
    found.lay(part("no_person", NOBODY, shows=EMPTY), (0, 0, 2 * CELL, SIDE))
    assert (found.places[:, :2] == EMPTY).all() and (found.places[:, 2:] == SOMEBODY).all()


def test_an_exposed_part_is_never_laid_beside_a_child():
    exposed, child = part("minimal", (18, OLDEST), exposed=True), part("clothed", (9, 9))
    for first, second in ((exposed, child), (child, exposed)):
        found = canvas()
        found.lay(first, (0, 0, CELL, CELL))
        with pytest.raises(ValueError, match="only with adults or nobody"):
            found.lay(second, (2 * CELL, 0, CELL, CELL))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("labelled"), per_label=20)


def test_canvases_are_the_same_for_the_same_seed_and_know_both_kinds_of_places(data):
    rows = load_manifest(data / "manifest.csv", SMOKE.licences)
    first, second = (Canvases(rows, data, 64, PLACES, 60, seed=1) for _ in range(2))
    places = []
    for index in range(len(first)):
        pixels, known, groups = first[index]
        assert pixels.shape == (64, 64, 3) and known.shape == groups.shape == (PLACES, PLACES)
        assert all(torch.equal(one, other) for one, other in zip(first[index], second[index], strict=True))
        assert ((groups == 0) | (known == UNKNOWN)).all()
        places.append(known)
    assert {EMPTY, SOMEBODY, UNKNOWN} <= set(torch.stack(places).unique().tolist())


def test_a_scene_asks_for_somebody_somewhere_and_known_places_for_what_they_are():
    places, groups = torch.tensor([[[SOMEBODY, EMPTY], [UNKNOWN, UNKNOWN]]]), torch.tensor([[[0, 0], [1, 1]]])
    right, elsewhere, nobody = (
        people_loss(torch.tensor([[row, scene]]), places, groups).item()
        for row, scene in (([9.0, -9.0], [-9.0, 9.0]), ([9.0, -9.0], [9.0, -9.0]), ([9.0, -9.0], [-9.0, -9.0]))
    )
    assert right == pytest.approx(elsewhere) and right < 0.01 and nobody == pytest.approx(9.0, abs=0.01)
    assert people_loss(torch.tensor([[[-9.0, 9.0], [9.0, 9.0]]]), places, groups).item() == pytest.approx(18.0, abs=0.01)


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """Folder with a network before its finder (`run`) and after it (`finder`), and the settings of both."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "smoke.toml").write_text(SETTINGS.with_name("smoke.toml").read_text())
    stages = "stages = [{ size = 64, examples = 480 }]\n"
    own = "finder_layer = 14\nown_layers = 8\nlearning_rate = 1e-2\nwarm_up = 1\n"
    (folder / "finder.toml").write_text('base = "smoke.toml"\n' + own + stages)
    (folder / "short.toml").write_text('base = "smoke.toml"\nown_layers = 8\nstages = [{ size = 64, examples = 16 }]\n')
    for program, name, more in (
        (train, "run", ["--no-pretraining", "--settings", folder / "short.toml"]),
        (finder, "finder", ["--start", folder / "run" / "network.safetensors", "--settings", folder / "finder.toml"]),
    ):
        words = ["--data", data, "--output", folder / name, "--device", "cpu", *more]
        result = CliRunner().invoke(program.main, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return folder


def test_only_the_finder_learns(taught):
    before, after = (load_file(taught / name / "network.safetensors") for name in ("run", "finder"))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"finder"}
    assert load_network(taught / "finder" / "network.safetensors").finder_layer == 14


def test_it_finds_tinted_blocks_and_not_grey_ones(taught, data):
    # On the shipped features: those of a network that has seen nothing tell nothing.
    network = load_network(ROOT / "weights" / "imgsafety-v1.safetensors")
    network.add_finder(14)
    rows = load_manifest(data / "manifest.csv", SMOKE.licences)
    teach(network, rows, data, load_settings(taught / "finder.toml"), "cpu")
    canvases = Canvases(rows, data, 64, 4, 40, seed=9)
    pixels, places, _ = (torch.stack(parts) for parts in zip(*(canvases[index] for index in range(40)), strict=True))
    with torch.no_grad():
        found = network.answer(pixels)[-1]
    assert found.shape == (40, 4, 4)
    assert found[places == SOMEBODY].mean() > found[places == EMPTY].mean() + 0.1


def test_the_file_tells_where_people_are_as_the_network_does(taught, tmp_path):
    words = ["--network", taught / "finder" / "network.safetensors", "--output", tmp_path / "a.onnx"]
    words += ["--settings", taught / "finder.toml"]
    assert CliRunner().invoke(export.main, list(map(str, words)), catch_exceptions=False).exit_code == 0
    session = Session(tmp_path / "a.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    network = load_network(taught / "finder" / "network.safetensors").eval()
    with torch.no_grad():
        wanted = network.answer(torch.from_numpy(pixels))[-1].numpy()
    assert session.finds_people
    assert np.abs(wanted - [scores.people for scores in session.run(pixels, maps=True)]).max() < 1e-3
    assert [scores.people for scores in session.run(pixels)] == [None, None]


def test_a_finder_is_refused_where_its_layer_is_not_attires_own(taught):
    network = load_network(taught / "run" / "network.safetensors")
    with pytest.raises(ValueError, match="finder_layer is 3"):
        network.add_finder(3)


FROZEN = "frozen_layers = 11\nfrozen_heads = ['attire']\n"


@pytest.mark.parametrize(("frozen", "head", "finds"), [("", "attire", False), (FROZEN, "age", True), ("", "", False)])
def test_a_finder_goes_where_the_path_that_it_reads_moves(taught, data, tmp_path, frozen, head, finds):
    finding, settings = taught / "finder" / "network.safetensors", taught / "on.toml"
    settings.write_text('base = "smoke.toml"\nstages = [{ size = 64, examples = 16 }]\n' + frozen)
    mixing = ["--before", finding, "--after", taught / "run" / "network.safetensors", "--share", 0.5]
    runs = (
        (train, ["--data", data, "--output", tmp_path, "--start", finding, "--settings", settings, "--device", "cpu"]),
        (mix, [*mixing, "--output", tmp_path / "network.safetensors", *(["--head", head] if head else [])]),
    )
    before = load_file(finding)
    for program, words in runs:
        result = CliRunner().invoke(program.main, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert (load_network(tmp_path / "network.safetensors").finder is not None) == finds
        after = load_file(tmp_path / "network.safetensors")
        assert all(torch.equal(value, before[name]) for name, value in after.items() if name.startswith("finder."))
