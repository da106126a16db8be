"""Folds: pictures that belong together stay together."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.drawn import draw_blocks, write_labelled
from training.manifest import ManifestError, Row
from training.split import fold_of, load_or_split, mend, read_fold, some_of, split

LICENCES = dict.fromkeys(("drawn_figures", "drawn_faces", "drawn_scenes"), "drawn")


def row(path, group="", source="drawn"):
    return Row(path, source, "CC0", group=group)


@pytest.fixture
def pictures(tmp_path):
    """Forty pictures that do not look alike, and their rows."""
    random = np.random.default_rng(0)
    rows = [row(f"{number}.png") for number in range(40)]
    for one in rows:
        draw_blocks((200, 180, 160), random).save(tmp_path / one.path)
    return tmp_path, rows


def test_folds_get_their_shares():
    counts = Counter(fold_of(f"picture {number}") for number in range(20_000))
    assert set(counts) == {"train", "calibration", "test"}
    assert counts["test"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["calibration"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_pictures_that_do_not_look_alike_are_spread(pictures):
    folder, rows = pictures
    assert split(rows, folder) == [fold_of(one.path) for one in rows]


def test_repeats_of_a_picture_share_its_fold(pictures):
    folder, rows = pictures
    repeats = []
    for one in rows:
        repeats.append(row(f"repeat of {one.path}.jpg"))
        with Image.open(folder / one.path) as image:
            image.resize((61, 47)).point(lambda level: level * 0.8).save(folder / repeats[-1].path, quality=60)
    folds = split([*rows, *repeats], folder)
    assert folds[:40] == folds[40:] and len(set(folds)) > 1


def test_a_group_shares_a_fold_inside_its_source(pictures):
    folder, rows = pictures
    grouped = [row(one.path, group=f"person {number % 4}", source=f"source {number % 2}") for number, one in enumerate(rows)]
    folds = split(grouped, folder)
    for person in range(4):
        assert len(set(folds[person::4])) == 1


def test_adding_rows_moves_no_other(pictures):
    folder, rows = pictures
    assert split(rows[:30], folder) == split(rows, folder)[:30]


def test_a_split_is_kept_and_read_again(pictures, tmp_path):
    folder, rows = pictures
    cache = tmp_path / "run" / "split.csv"
    folds = load_or_split(rows, folder, cache)
    with cache.open(newline="") as file:
        assert dict(csv.reader(file)) == {one.path: fold for one, fold in zip(rows, folds, strict=True)}
    cache.write_text("".join(f"{one.path},test\n" for one in rows))
    assert load_or_split(rows, folder, cache) == ["test"] * len(rows)


def test_the_folds_of_a_folder_are_apart_and_complete(tmp_path):
    folder = write_labelled(tmp_path / "data", per_label=8)
    folds = [read_fold(folder, tmp_path / "split.csv", fold, LICENCES) for fold in ("train", "calibration", "test")]
    paths = [one.path for fold in folds for one in fold]
    assert len(paths) == len(set(paths)) == 7 * 8


def test_a_greater_share_holds_all_of_a_smaller_one():
    rows = [Row(f"{number}.png", "drawn", "CC0") for number in range(2000)]
    fewer, more = some_of(rows, 0.25), some_of(rows, 0.5)
    assert 400 < len(fewer) < 600 and 900 < len(more) < 1100
    assert set(fewer) < set(more)
    assert some_of(rows, 1) == rows
    assert some_of(rows, 0.25, "another draw of ") != fewer


def test_mirrored_repeats_share_a_fold(pictures):
    folder, rows = pictures
    mirrored = [row(f"mirror of {one.path}") for one in rows]
    for one, other in zip(rows, mirrored, strict=True):
        with Image.open(folder / one.path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / other.path)
    folds = split([*rows, *mirrored], folder)
    assert folds[:40] == folds[40:] and len(set(folds)) > 1


def test_a_split_is_mended_towards_what_training_has_seen(pictures):
    folder, rows = pictures
    repeats = [row(f"repeat of {one.path}") for one in rows]
    for one, other in zip(rows, repeats, strict=True):
        (folder / other.path).write_bytes((folder / one.path).read_bytes())
    folds = ["test"] * 20 + ["calibration"] * 20 + (["train"] * 10 + ["calibration"] * 10 + ["test"] * 20)
    assert mend([*rows, *repeats], folds, folder) == (["train"] * 10 + ["calibration"] * 30) * 2


def test_one_picture_cannot_be_exposed_and_under_18(pictures):
    folder, rows = pictures
    exposed = Row("0.png", "drawn", "CC0", attire="minimal", age=(18, 99))
    child = Row("copy.png", "drawn", "CC0", attire="clothed", age=(5, 9))
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    together, cache = [exposed, child, *rows[1:]], folder / "split.csv"
    cache.write_text("".join(f"{one.path},train\n" for one in together))
    for refusing in (lambda: split(together, folder), lambda: load_or_split(together, folder, cache)):
        with pytest.raises(ManifestError, match="one picture"):
            refusing()
