"""Learning curves: on features made so that the answer is known, and the whole command on drawn blocks."""

import csv
import re
from itertools import product

import numpy as np
import pytest
from click.testing import CliRunner

from tests.drawn import COLUMNS, draw_blocks
from tests.test_manifest import SETTINGS

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("sklearn", reason="training needs scikit-learn")

from safetensors.torch import save_file  # noqa: E402
from torchvision import models  # noqa: E402

from imgsafety.session import shipped_model  # noqa: E402
from training import curve  # noqa: E402
from training.manifest import Row  # noqa: E402

TINTS = {("clothed", 0, 17): (40, 200, 160), ("clothed", 18, 99): (40, 200, 40), ("minimal", 18, 99): (200, 40, 40)}


def areas(table):
    """The AUROC of each line, by what taught."""
    return {line[0]: float(line[2].split()[0]) for line in table.rows}


@pytest.fixture
def rows():
    """Of two sources, 100 minimal and 100 clothed pictures each."""
    labels = product(("here", "there"), ("minimal", "clothed"), range(100))
    return [Row(f"{source}/{attire}{number}.png", source, "CC0", attire=attire) for source, attire, number in labels]


def ask_here(rows, known):
    """The curve for one of the two sources; every second picture is held out."""
    folds = {row.path: ("train", "test")[index % 2] for index, row in enumerate(rows)}
    return curve.origin_curve(curve.minimal_attire, "here", "a test", rows, known, folds)


def features_of(rows, column_of):
    """Noise, and in the column that belongs to its source whether a picture is minimal."""
    random = np.random.default_rng(0)
    known = {}
    for row in rows:
        known[row.path] = random.normal(size=4)
        known[row.path][column_of[row.source]] += 3 * (row.attire == "minimal")
    return known


def test_what_holds_for_all_sources_is_learned_from_others(rows):
    found = areas(ask_here(rows, features_of(rows, {"here": 0, "there": 0})))
    assert found["1 of the other sources"] > 0.95
    assert found["the others and 1 of it"] > 0.95


def test_what_holds_for_one_source_is_learned_from_its_own_pictures_only(rows):
    table = ask_here(rows, features_of(rows, {"here": 0, "there": 1}))
    found = areas(table)
    assert found["the others and 1 of it"] > found["the others, judged as below"] + 0.2
    assert "Judged: 100 against 100; where some of here taught, 50 against 50." in table.about


def test_no_picture_is_judged_by_what_it_taught(rows):
    """Noise alone: whoever judged pictures that it was taught by would find more than chance in it."""
    random = np.random.default_rng(0)
    known = {row.path: random.normal(size=400) for row in rows}
    assert max(areas(ask_here(rows, known)).values()) < 0.65


def test_exposed_pictures_and_faces_are_not_asked_for_their_age():
    adult = {"age": (18, 99), "source": "here", "licence": "CC0"}
    asked = [Row("a", attire="clothed", **adult), Row("b", attire="minimal", **adult), Row("c", attire="revealing", **adult)]
    face = Row("d", "here", "CC0", framing="face", age=(9, 9))
    assert [curve.somebody_under_18(row) for row in [*asked, face]] == [False, None, None, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources of drawn blocks, with exact ages in a third."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    lines = []
    for source, (label, tint), number in product(("drawn_scenes", "drawn_figures"), TINTS.items(), range(20)):
        lines.append([f"{source}-{'-'.join(map(str, label))}-{number}.png", source, "drawn", "scene", *label])
        draw_blocks(tint, random).save(folder / lines[-1][0])
    for age, number in product((9, 15, 20, 40), range(30)):
        lines.append([f"face-{age}-{number}.png", "drawn_faces", "drawn", "face", "", age, age])
        draw_blocks((40, 40, 5 * age), random).save(folder / lines[-1][0])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *([*line, "", "", "", "tests"] for line in lines)])
    return folder


@pytest.fixture
def ask(folder, tmp_path):
    def run(*words):
        paths = {"data": folder, "output": tmp_path, "settings": SETTINGS.with_name("smoke.toml")}
        options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        return CliRunner().invoke(curve.main, [*options, *words])

    return run


def test_the_command_prints_curves_and_ages_of_faces(ask, tmp_path):
    save_file(models.mobilenet_v2(num_classes=1001).state_dict(), tmp_path / "random.safetensors")
    weights = ["--imagenet", str(tmp_path / "random.safetensors")]
    printed = ask(*weights, "--origin", "drawn_scenes", "--model", str(shipped_model())).output
    assert "Minimal attire in drawn_scenes, by what ImageNet's network sees" in printed
    assert "Somebody under 18 in drawn_scenes, by what ImageNet's network sees" in printed
    assert re.search(r"\| the others and 0.5 of it \| \d+ against \d+ \| [01]\.\d+ \([01]\.\d+ to [01]\.\d+\) \| \d+% \|", printed)
    assert re.search(r"\| weights \| 0\.\d+ .* \| \d+\.\d\d \|", printed)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "nothing is asked"),
        (["--origin", "drawn_faces"], "of drawn_faces nothing can be asked"),
        (["--origin", "elsewhere"], "elsewhere"),
    ],
)
def test_what_cannot_be_asked_is_an_error(ask, words, problem):
    result = ask(*words)
    assert result.exit_code != 0
    assert problem in result.output


def test_more_harmless_things_teach_what_they_look_like(rows):
    things = [Row(f"{number}.png", "things", "CC0", framing="object", attire="no_person") for number in range(400)]
    known = features_of([*rows, *things], {"here": 0, "there": 0, "things": 0})
    for row in things:  # as red as somebody in minimal attire, but for one of twenty colours of their own
        known[row.path][0] += 3
    for row in known:
        known[row] = np.append(known[row], np.zeros(20))
    for index, row in enumerate(things):
        known[row.path][4 + index // 2 % 20] = 8
    folds = {row.path: ("train", "test")[index % 2] for index, row in enumerate([*rows, *things])}
    table = curve.harmless_curve("a test", [*rows, *things], known, folds)
    few, all_ = (float(line[2].split("%")[0]) for line in (table.rows[0], table.rows[-1]))
    assert table.columns[2] == "things (200)" and few > 2 * all_
    assert [line[1] for line in table.rows][-1] == "300"  # 100 clothed, 200 things


def test_the_command_asks_what_harmless_pictures_give(ask, tmp_path):
    save_file(models.mobilenet_v2(num_classes=1001).state_dict(), tmp_path / "random.safetensors")
    printed = ask("--imagenet", str(tmp_path / "random.safetensors"), "--harmless").output
    assert "Harmless pictures taken for minimal attire, by what ImageNet's network sees" in printed
    assert re.search(r"\| 0.25 of the others \| \d+ \| [^|]*\d+\.\d% ", printed)


def test_without_minimal_pictures_held_out_nothing_is_asked_of_harmless_ones(ask, folder, tmp_path):
    with (folder / "manifest.csv").open(newline="") as file:
        folds = [(line["path"], "train") for line in csv.DictReader(file)]
    with (tmp_path / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows(folds)
    result = ask("--harmless")
    assert result.exit_code != 0 and "of harmless pictures nothing can be asked" in result.output
