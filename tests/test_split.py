"""Folds: pictures that belong together stay together."""

import csv
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.drawn import draw_blocks, write_labelled
from tests.test_manifest import SETTINGS
from training.manifest import ManifestError, Row
from training.split import fold_of, load_or_split, main, mend, read_fold, some_of, split

LICENCES = dict.fromkeys(("drawn_figures", "drawn_faces", "drawn_scenes"), "drawn")


def row(path, group="", source="drawn", fold=""):
    return Row(path, source, "CC0", group=group, fold=fold)


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


def copy(folder, one, **about):
    """A row of the same picture, in a file of its own."""
    other = row(f"copy of {one.path}", **about)
    (folder / other.path).write_bytes((folder / one.path).read_bytes())
    return other


@pytest.mark.parametrize("fold", ["train", "calibration", "test"])
def test_what_looks_like_a_row_that_names_its_fold_stands_there_too(pictures, fold):
    folder, rows = pictures
    named = copy(folder, rows[0], fold=fold)
    assert split([*rows, named], folder) == [fold, *split(rows[1:], folder), fold]
    assert mend([*rows, named], ["test"] * 41, folder) == [fold, *["test"] * 39, fold]


def test_who_is_of_a_group_with_a_row_that_names_its_fold_stands_there_too(pictures):
    folder, rows = pictures
    grouped = [row(one.path, group="one") for one in rows[:4]] + [row(rows[4].path, group="one", fold="test")]
    assert split(grouped, folder) == ["test"] * 5


def test_of_several_folds_that_look_alikes_name_the_others_take_the_first(pictures):
    folder, rows = pictures
    alike = [row(f"{fold}.jpg", fold=fold) for fold in ("test", "calibration")]
    for quality, one in zip((80, 90), alike, strict=True):
        with Image.open(folder / rows[0].path) as image:
            image.save(folder / one.path, quality=quality)
    assert split([rows[0], *alike], folder) == ["calibration", "test", "calibration"]


def test_rows_of_one_picture_or_one_group_that_name_two_folds_are_refused(pictures):
    folder, rows = pictures
    first = row(rows[0].path, fold="train")
    with pytest.raises(ManifestError, match="one picture: one row names train, the other test"):
        split([first, copy(folder, first, fold="test")], folder)
    grouped = [row(one.path, group="a", fold=fold) for one, fold in zip(rows, ("train", "test"), strict=False)]
    with pytest.raises(ManifestError, match="group 'a' of 'drawn' stands in train and in test"):
        split(grouped, folder)


def test_a_group_that_came_after_the_split_and_stands_in_two_folds_is_refused_until_it_is_mended(tmp_path):
    folder, cache = write_labelled(tmp_path / "data", per_label=4), tmp_path / "split.csv"
    paths = [one.path for one in read_fold(folder, cache, "train", LICENCES)][:2]
    cache.write_text(cache.read_text().replace(f"{paths[1]},train", f"{paths[1]},test"))
    manifest = folder / "manifest.csv"
    with manifest.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(line | {"group": "a" if line["path"] in paths else "", "source": "drawn_figures"} for line in lines)
    with pytest.raises(ManifestError, match=r"group 'a' .* mend it with python -m training\.split"):
        read_fold(folder, cache, "train", LICENCES)
    settings = str(SETTINGS.with_name("smoke.toml"))
    ran = CliRunner().invoke(main, ["--data", str(folder), "--split", str(cache), "--settings", settings])
    assert "1 of 28 rows moved" in ran.output
    assert set(paths) <= {one.path for one in read_fold(folder, cache, "train", LICENCES)}


def test_a_split_is_made_without_training(tmp_path):
    folder, cache = write_labelled(tmp_path / "data", per_label=2), tmp_path / "run" / "split.csv"
    words = ["--data", folder, "--split", cache, "--settings", SETTINGS.with_name("smoke.toml")]
    assert "14 rows, made anew" in CliRunner().invoke(main, list(map(str, words))).output
    assert "0 of 14 rows moved" in CliRunner().invoke(main, list(map(str, words))).output


def test_the_split_of_the_shipped_model_joins_mirrored_repeats_after_each_had_its_fold(tmp_path):
    folder, cache = write_labelled(tmp_path / "data", per_label=8), tmp_path / "split.csv"
    with (folder / "manifest.csv").open(newline="") as file:
        _, *records = csv.reader(file)
    for record in records:
        with Image.open(folder / record[0]) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{record[0]}.mirror.png")
    with (folder / "manifest.csv").open("a", newline="") as file:
        csv.writer(file).writerows([f"{record[0]}.mirror.png", *record[1:]] for record in records)
    words = ["--data", folder, "--split", cache, "--settings", SETTINGS.with_name("smoke.toml"), "--as-shipped"]
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 0
    folds, order = dict(csv.reader(cache.read_text().splitlines())), ("train", "calibration", "test")
    pairs = [(record[0], f"{record[0]}.mirror.png") for record in records]
    first = [min(map(fold_of, pair), key=order.index) for pair in pairs]
    assert [folds[one] for one, _ in pairs] == [folds[other] for _, other in pairs] == first
    assert first != [fold_of(one) for one, _ in pairs]  # what is split anew follows the first of a pair
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 2  # it makes, and does not mend


def test_pictures_that_cannot_be_read_are_named(pictures):
    folder, rows = pictures
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "5.png").unlink()
    with pytest.raises(ManifestError, match=r"3\.png cannot be read: Unidentified.*\n.*5\.png cannot be read: FileNotFoundError"):
        split(rows, folder)
