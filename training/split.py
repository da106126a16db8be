"""Rows to folds: `train`, `calibration`, `test`. Pictures that look alike never stand in two folds.

A row with a `group` (a person, a photo session) follows its group. All rows whose thumbnails correlate
above `ALIKE` are one group as well: catalogues repeat the same model, the web repeats the same picture.
The fold of a group is a hash of its first path, so rows added at the end move others only when they join two groups. A row that
names its fold stands in that one, and joins nothing.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.manifest import ManifestError, Row, check_sources, load_manifest

# Of 100 groups: 10 test, 10 calibration, 80 train.
TEST_SHARE, CALIBRATION_SHARE = 10, 10
THUMBNAIL = 12
# Measured on the 25,394 rows of v1: 0.97 leaves visible repeats apart, 0.95 chains unlike faces together.
ALIKE = 0.96
BLOCK = 2000


def split(rows: Sequence[Row], folder: Path) -> list[str]:
    """Return the fold of every row, in order. Reads each picture once, as a thumbnail."""
    free = [row for row in rows if not row.fold]
    if not free:
        return [row.fold for row in rows]
    roots = _join(free, np.stack([_thumbnail(folder / row.path) for row in free]))
    found = {row.path: fold_of(free[root].path) for row, root in zip(free, roots, strict=True)}
    return [row.fold or found[row.path] for row in rows]


def load_or_split(rows: Sequence[Row], folder: Path, cache: Path) -> list[str]:
    """Like `split`, kept in a CSV file `path,fold` that is made when it is not there."""
    if cache.is_file():
        with cache.open(newline="") as file:
            folds = dict(csv.reader(file))
        if missing := next((row.path for row in rows if not row.fold and row.path not in folds), None):
            raise ManifestError(f"{cache} has no fold for {missing!r}; remove it to split again (rows at the end move few others)")
        return [row.fold or folds[row.path] for row in rows]
    folds_in_order = split(rows, folder)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("w", newline="") as file:
        csv.writer(file).writerows((row.path, fold) for row, fold in zip(rows, folds_in_order, strict=True))
    return folds_in_order


def read_fold(data: Path, cache: Path, fold: str, licences: Mapping[str, str], leave_out: Sequence[str] = ()) -> list[Row]:
    """Return the checked rows of one fold of `manifest.csv` in `data`; the split is made if it is not there.

    leave_out: sources whose rows are not wanted. Raises `ManifestError` for one that is not there.
    """
    rows = load_manifest(data / "manifest.csv", licences)
    check_sources(rows, leave_out)
    folds = load_or_split(rows, data, cache)
    return [row for row, row_fold in zip(rows, folds, strict=True) if row_fold == fold and row.source not in leave_out]


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


def _thumbnail(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).ravel() / 255
    values -= values.mean()
    return values / (np.linalg.norm(values) + 1e-3)


def _join(rows: Sequence[Row], thumbnails: npt.NDArray[np.float32]) -> list[int]:
    """Union-find over equal group names and alike thumbnails; return each row's least member."""
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
    for start in range(0, len(rows), BLOCK):
        alike = thumbnails[start : start + BLOCK] @ thumbnails.T > ALIKE
        for left, right in np.argwhere(alike):
            join(start + int(left), int(right))
    return [find(index) for index in range(len(rows))]
