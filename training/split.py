"""Rows to folds: `train`, `calibration`, `test`. Pictures that look alike, mirrored or not, never stand in two folds.

A row with a `group` (a person, a photo session) follows its group. All rows whose thumbnails correlate
above `ALIKE` (mirrored: `MIRRORED`) are one group as well: catalogues repeat the same model, the web the same picture.
The fold of a group is a hash of its first path, so rows added at the end move others only when they join two groups. A row that
names its fold stands in that one, and takes the rows of its group with it that name none. Rows of one picture, or of one `group`,
that name two folds are refused; pictures that only look alike may.

`python -m training.split --data DIR --split split.csv` makes a split without training anything. One that is there, and that an
earlier version made, or from before rows had a group, it mends: a group that stands in several folds goes whole into the one that
training has seen most of, so that what is measured afterwards is held out. `--as-shipped` makes the split that the shipped model's
figures are of.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from training.manifest import FOLDS, ManifestError, Row, check_sources, load_manifest
from training.settings import FILE, load_settings

# Of 100 groups: 10 test, 10 calibration, 80 train.
TEST_SHARE, CALIBRATION_SHARE = 10, 10
THUMBNAIL = 12
# Measured on the 25,394 rows of v1: 0.97 leaves visible repeats apart, 0.95 chains unlike faces together.
ALIKE = 0.96
# At 0.98 one pair of mirrored figures joins 338 held-out pictures of the catalogue to those of training; repeats are above 0.99.
MIRRORED = 0.985
BLOCK = 2000
SHOWN = 5  # of the pictures that cannot be read


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", "cache", type=click.Path(path_type=Path, dir_okay=False), required=True, help="To make or mend.")
@click.option("--as-shipped", is_flag=True, help="Make the split of the shipped model, which joined mirrored pictures later.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(data: Path, cache: Path, as_shipped: bool, settings_path: Path) -> None:
    rows = load_manifest(data / "manifest.csv", load_settings(settings_path).licences)
    if not cache.is_file():
        folds = mend(rows, split(rows, data, mirrored=False), data) if as_shipped else split(rows, data)
        _write(rows, folds, cache)
        print(f"{cache}: {len(rows)} rows, made anew")
        return
    if as_shipped:
        raise click.UsageError(f"--as-shipped makes a split, and {cache} is one: name another, or mend that")
    _refuse_what_cannot_be_split(rows, data)
    before = _read(rows, cache)
    after = mend(rows, before, data)
    _write(rows, after, cache)
    print(f"{cache}: {sum(map(str.__ne__, before, after))} of {len(rows)} rows moved")


def mend(rows: Sequence[Row], folds: Sequence[str], folder: Path) -> list[str]:
    """Return the folds with each group of look-alikes whole, in the first of `FOLDS` that holds one of it.

    Where rows of it name a fold, these stay there, and the others go to the first that is named.
    """
    roots = groups_of(rows, folder)
    named, held = _first_folds(roots, [row.fold for row in rows]), _first_folds(roots, folds)
    return [row.fold or named.get(root) or held[root] for row, root in zip(rows, roots, strict=True)]


def split(rows: Sequence[Row], folder: Path, mirrored: bool = True) -> list[str]:
    """Return the fold of every row, in order. Reads each picture once, as a thumbnail.

    mirrored: whether pictures that look alike mirrored are a group too.
    """
    _refuse_what_cannot_be_split(rows, folder)
    roots = groups_of(rows, folder, mirrored)
    named = _first_folds(roots, [row.fold for row in rows])
    return [row.fold or named.get(root) or fold_of(rows[root].path) for row, root in zip(rows, roots, strict=True)]


def _first_folds(roots: Sequence[int], folds: Sequence[str]) -> dict[int, str]:
    """By group, the first of `FOLDS` that a row of it stands in; without groups of which none stands anywhere."""
    first: dict[int, str] = {}
    for root, fold in zip(roots, folds, strict=True):
        if fold:
            first[root] = min(first.get(root, fold), fold, key=FOLDS.index)
    return first


def refuse_contradictions(rows: Sequence[Row], folder: Path) -> None:
    """Raise `ManifestError` where one row calls a picture exposed and another says that it can show somebody under 18."""
    if not any(row.exposed for row in rows):
        return
    said: dict[bytes, Row] = {}
    for row in rows:
        if row.exposed or not row.adults_or_nobody:
            other = said.setdefault(picture_sha256(row, folder), row)
            if other.exposed != row.exposed:
                raise ManifestError(f"{other.path} and {row.path} are one picture: one row is exposed, the other can be under 18")


def _refuse_what_cannot_be_split(rows: Sequence[Row], folder: Path) -> None:
    """Raise `ManifestError` for contradictions, and where rows of one group, or of one picture, name two folds."""
    refuse_contradictions(rows, folder)
    named = [row for row in rows if row.fold]
    if torn := _torn(named, [row.fold for row in named]):
        raise ManifestError(f"{torn}; name one of the two folds in the manifest")
    if len({row.fold for row in named}) < 2:
        return
    first: dict[bytes, Row] = {}
    for row in named:
        other = first.setdefault(picture_sha256(row, folder), row)
        if other.fold != row.fold:
            raise ManifestError(f"{other.path} and {row.path} are one picture: one row names {other.fold}, the other {row.fold}")


def _torn(rows: Sequence[Row], folds: Sequence[str]) -> str:
    """Which group of a source stands in two folds; nothing if none does."""
    first: dict[tuple[str, str], str] = {}
    for row, fold in zip(rows, folds, strict=True):
        if row.group and (other := first.setdefault((row.source, row.group), fold)) != fold:
            return f"group {row.group!r} of {row.source!r} stands in {other} and in {fold}"
    return ""


def picture_sha256(row: Row, folder: Path) -> bytes:
    """Return the SHA-256 of a picture's bytes. Raises `ManifestError`."""
    try:
        return hashlib.sha256((folder / row.path).read_bytes()).digest()
    except OSError as problem:
        raise ManifestError(f"{row.path} cannot be read: {problem.strerror}") from problem


def groups_of(rows: Sequence[Row], folder: Path, mirrored: bool = True) -> list[int]:
    """Return for each row the index of the first row of its group: of the same `group`, or alike.

    Raises `ManifestError` that names the pictures that cannot be read.
    """
    _, groups, problems = readable_groups(rows, folder, mirrored)
    if problems:
        raise ManifestError("pictures that cannot be read: " + first_of_all(problems))
    return groups


def readable_groups(
    rows: Sequence[Row], folder: Path, mirrored: bool = True
) -> tuple[list[Row], list[int], list[str]]:
    """Return the rows whose pictures can be read, their groups as of `groups_of`, and what is wrong with each of the others."""
    read, thumbnails, problems = [], [], []
    for row in rows:
        try:
            thumbnails.append(_thumbnail(row, folder))
            read.append(row)
        except ManifestError as problem:
            problems.append(problem.message)
    return read, _join(read, np.stack(thumbnails), mirrored) if read else [], problems


def first_of_all(problems: Sequence[str]) -> str:
    """The first few as lines, and how many more there are."""
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*problems[:SHOWN], *more])


def load_or_split(rows: Sequence[Row], folder: Path, cache: Path) -> list[str]:
    """Like `split`, kept in a CSV file `path,fold` that is made when it is not there."""
    if cache.is_file():
        _refuse_what_cannot_be_split(rows, folder)
        folds = _read(rows, cache)
        if torn := _torn(rows, folds):
            raise ManifestError(f"{cache}: {torn}; mend it with python -m training.split --data {folder} --split {cache}")
        return folds
    folds = split(rows, folder)
    _write(rows, folds, cache)
    return folds


def _read(rows: Sequence[Row], cache: Path) -> list[str]:
    with cache.open(newline="") as file:
        folds = dict(csv.reader(file))
    if missing := next((row.path for row in rows if not row.fold and row.path not in folds), None):
        raise ManifestError(f"{cache} has no fold for {missing!r}; remove it to split again (rows at the end move few others)")
    return [row.fold or folds[row.path] for row in rows]


def _write(rows: Sequence[Row], folds: Sequence[str], cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("w", newline="") as file:
        csv.writer(file).writerows((row.path, fold) for row, fold in zip(rows, folds, strict=True))


def read_fold(data: Path, cache: Path, fold: str, licences: Mapping[str, str], leave_out: Sequence[str] = ()) -> list[Row]:
    """Return the checked rows of one fold of `manifest.csv` in `data`; the split is made if it is not there.

    leave_out: sources whose rows are not wanted. Raises `ManifestError` for one that is not there, and where no row is left.
    """
    rows = load_manifest(data / "manifest.csv", licences)
    check_sources(rows, leave_out)
    folds = load_or_split(rows, data, cache)
    found = [row for row, row_fold in zip(rows, folds, strict=True) if row_fold == fold and row.source not in leave_out]
    if not found:
        raise ManifestError(f"{cache} leaves no picture to the {fold} fold: add some, or name it in the manifest's column fold")
    return found


def some_of(rows: Sequence[Row], share: float, salt: str = "") -> list[Row]:
    """Keep about `share` of the rows, drawn by a hash of their paths: a greater share holds all of a smaller one."""
    return [row for row in rows if _hash(f"{salt}{row.path}") % 10_000 < share * 10_000]


def fold_of(key: str) -> str:
    """Return the fold that a group's key hashes to."""
    number = _hash(key) % 100
    if number < TEST_SHARE:
        return "test"
    return "calibration" if number < TEST_SHARE + CALIBRATION_SHARE else "train"


def _hash(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16)


def _thumbnail(row: Row, folder: Path) -> npt.NDArray[np.float32]:
    try:
        with Image.open(folder / row.path) as image:
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    except Exception as problem:  # Pillow raises nearly every class on what it cannot read
        raise ManifestError(f"{row.path} cannot be read: {type(problem).__name__}: {problem}") from problem
    values = np.asarray(small, dtype=np.float32).ravel() / 255
    values -= values.mean()
    return values / (np.linalg.norm(values) + 1e-3)


def _join(rows: Sequence[Row], thumbnails: npt.NDArray[np.float32], mirrored: bool) -> list[int]:
    """Union-find over equal group names and thumbnails that are alike, if so also mirrored; return each row's least member."""
    parents = list(range(len(rows)))

    def find(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    def join(left: int, right: int) -> None:
        left, right = sorted((find(left), find(right)))
        parents[right] = left

    first_of: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        if row.group:
            join(first_of.setdefault((row.source, row.group), index), index)
    flipped = thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL, 3)[:, :, ::-1].reshape(thumbnails.shape)
    for start in range(0, len(rows), BLOCK):
        block = thumbnails[start : start + BLOCK]
        alike = block @ thumbnails.T > ALIKE
        if mirrored:
            alike |= block @ flipped.T > MIRRORED
        for left, right in np.argwhere(alike):
            join(start + int(left), int(right))
    return [find(index) for index in range(len(rows))]


if __name__ == "__main__":
    main()
