"""Rows to training examples: pixels, one target per head, and how far the label is to be trusted.

Pictures are decoded and resized by `imgsafety` itself, so the model sees what the scanner shows it.
Figures and faces are pasted into other pictures, and pictures laid out in grids; the label of the joint
picture follows from the parts (most exposed, youngest). What a reader would get wrong: an exposed row
shares a canvas only with rows that show adults or nobody, and never trains the age head.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imgsafety.preprocess import to_pixels
from training import augment
from training.heads import AGE, OLDEST, age_distribution, age_target, attire_target, most_exposed
from training.manifest import ADULT, Row
from training.predict import read_image
from training.settings import SettingsError

# As the age of an empty picture: older than anybody, so that it makes no joint picture younger.
NOBODY: tuple[float, float] = (OLDEST + 1, OLDEST + 1)
NOT_YOUNG = (25, OLDEST)  # what the age head shall answer where nobody is: no young person here
UNKNOWN_AGE = (0, OLDEST)
SUBJECT_PIXELS = 28  # what decides the label keeps this many pixels through degradation, else it only teaches noise
LEAST_SIDE = 48
FACE_ATTIRE = "not_minimal"  # a face crop shows too little to be more exposed than that


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what is known of it, before it becomes pixels."""

    image: Image.Image
    attire: npt.NDArray[np.float32]
    age: tuple[float, float]
    exposed: bool = False
    share: float = 1.0  # of the picture's side that the labelled subject takes


def read_example(row: Row, folder: Path, size: int) -> Example:
    """Decode one row's picture as the scanner would."""
    image = read_image(row, folder, size)
    attire = row.attire or (FACE_ATTIRE if row.framing == "face" else "")
    age = row.age or (NOBODY if row.attire == "no_person" else UNKNOWN_AGE)
    return Example(image, attire_target(attire), age, row.exposed)


def join(first: Example, second: Example, image: Image.Image) -> Example:
    """Label a picture that shows what both show: the most exposed attire, the youngest age.

    Raises `ValueError` when it would show an exposed person beside somebody who can be under 18.
    """
    for one, other in ((first, second), (second, first)):
        if one.exposed and other.age[0] < ADULT:
            raise ValueError("an exposed row may share a canvas only with adults or nobody")
    age = (min(first.age[0], second.age[0]), min(first.age[1], second.age[1]))
    return Example(image, most_exposed(first.attire, second.attire), age, first.exposed or second.exposed)


def targets(example: Example) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights over the labels of attire and age. Exposed pictures teach no age."""
    if example.exposed:
        return example.attire, np.ones(len(AGE.labels), dtype=np.float32)
    if example.age == NOBODY:
        return example.attire, age_target(*NOT_YOUNG)
    low, high = example.age
    return example.attire, age_distribution(low) if low == high else age_target(low, high)


class Examples(Dataset[tuple[Tensor, Tensor, Tensor, Tensor, float, int]]):
    """Augmented examples, one per draw: pixels, the same before they were changed, attire, age, trust, and the row whose picture
    it is: its index, or -1 where the picture joins several or shows somebody exposed, from whom nothing else may be learned.

    Item `i` is the same for the same seed, whoever asks.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        draws: npt.NDArray[np.int64],
        folder: Path,
        size: int,
        seed: int,
        trust: dict[str, float],
        plain_faces: float = 0.6,
        plain_scenes: float = 0.0,
        stylised: float = 0.0,
    ) -> None:
        self.rows, self.draws, self.folder, self.size, self.seed, self.trust = rows, draws, folder, size, seed, trust
        self.stylised = stylised
        self.plain = {"face": plain_faces, "scene": plain_scenes, "object": plain_scenes}
        grounds = [row for row in rows if row.framing in ("scene", "object") and not row.exposed]
        self.any_ground = grounds
        self.adult_ground = [row for row in grounds if row.adults_or_nobody]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float, int]:
        random = np.random.default_rng((self.seed, index))
        row = self.rows[self.draws[index]]
        if random.random() < self.plain.get(row.framing, 0.0):
            example = read_example(row, self.folder, self.size)
            image = augment.change_lightly(example.image, random)
        else:
            example = self._place(row, random)
            image = self._change(example, row, random)
        attire, age = targets(example)
        pixels, before = (torch.from_numpy(to_pixels(one, self.size).copy()) for one in (image, example.image))
        trust = self.trust.get(row.source, 1.0) if row.minor else 1.0
        alone = example.share == 1.0 and not example.exposed
        return pixels, before, torch.from_numpy(attire), torch.from_numpy(age), trust, int(self.draws[index]) if alone else -1

    def _place(self, row: Row, random: augment.Random) -> Example:
        """Show the row as it is, pasted into another picture, or as one cell of a grid."""
        example = read_example(row, self.folder, self.size)
        roll = random.random()
        if row.framing == "figure" and roll < 0.65:
            figure = augment.cut_out(example.image)
            if figure is not None:
                return self._paste(example, figure, random.uniform(0.25, 1.0), random)
        if row.framing == "face" and roll < 0.4:
            return self._paste(example, augment.soft_window(example.image, random), random.uniform(0.15, 0.85), random)
        if 0.65 <= roll < 0.75:
            window = example.image.copy()
            window.putalpha(255)
            return self._paste(example, window, random.uniform(0.25, 0.8), random)
        if 0.75 <= roll < 0.85:
            return self._collage(example, random)
        return example

    def _partner(self, example: Example, random: augment.Random) -> Example:
        pool = self.adult_ground if example.exposed else self.any_ground
        if not pool or random.random() < 0.15:
            ground = augment.plain_ground(random)
            return Example(ground, attire_target("no_person"), NOBODY)
        return read_example(pool[random.integers(len(pool))], self.folder, self.size)

    def _paste(self, example: Example, figure: Image.Image, share: float, random: augment.Random) -> Example:
        partner = self._partner(example, random)
        return replace(join(example, partner, augment.paste(figure, partner.image, share, random)), share=share)

    def _collage(self, example: Example, random: augment.Random) -> Example:
        side = int(random.choice([2, 2, 3]))
        cells = [example] + [self._partner(example, random) for _ in range(side * side - 1)]
        joint = example
        for cell in cells[1:]:
            joint = join(joint, cell, example.image)
        tiles = [cell.image for cell in cells]
        return replace(joint, image=augment.collage(tiles, side, random), share=1 / side)

    def _change(self, example: Example, row: Row, random: augment.Random) -> Image.Image:
        # What decides the label must stay in view: attire needs the figure, so it is cropped less.
        image = augment.crop(example.image, 0.4 if row.framing == "face" else 0.6, random)
        image = augment.turn(image, random)
        if random.random() < 0.8:
            image = augment.recolour(image, random)
        if self.stylised and random.random() < self.stylised:  # where it is 0 nothing is drawn: older runs stay as they were
            image = augment.stylise(image, random)
        return augment.degrade(augment.cover(image, random), max(LEAST_SIDE, SUBJECT_PIXELS / example.share), random)


def draw_rows(
    rows: Sequence[Row], shares: dict[str, float], count: int, seed: int, other_share: float = 0.0
) -> npt.NDArray[np.int64]:
    """Draw row indices so that each `source/attire` (or `source`) takes its share of examples.

    other_share: of each source that `shares` does not name, the same for each attire in it; 0: there must be none.

    Ages are drawn evenly over `AGE_BANDS`, and inside a band evenly over ethnicities, so that the years around
    18 and the groups with few minors are not drowned. Raises `SettingsError` when a row belongs to no share.
    """
    random = np.random.default_rng(seed)
    shares = shares | _of_others(rows, shares, other_share)
    keys = [f"{row.source}/{row.attire}" if f"{row.source}/{row.attire}" in shares else row.source for row in rows]
    unknown = sorted(set(keys) - set(shares))
    if unknown:
        raise SettingsError(f"settings name no share for {unknown[0]!r}; give it one, or an other_share to all that have none")
    cells: dict[tuple[str, int, str], list[int]] = {}
    for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
        cells.setdefault((key, _age_band(row), row.ethnicity), []).append(index)
    weights = np.zeros(len(rows))
    for (key, band, _), members in cells.items():
        bands = {other[1] for other in cells if other[0] == key}
        groups = {other[2] for other in cells if other[:2] == (key, band)}
        # Between an even draw over groups and one over rows: 20 rows must not be shown a hundred times each.
        even = shares[key] / len(bands) / len(groups)
        rows_share = shares[key] / len(bands) * len(members) / sum(len(cells[c]) for c in cells if c[:2] == (key, band))
        weights[members] = even**0.75 * rows_share**0.25 / len(members)
    return random.choice(len(rows), size=count, p=weights / weights.sum())


def _of_others(rows: Sequence[Row], shares: dict[str, float], other_share: float) -> dict[str, float]:
    named = {key.split("/")[0] for key in shares}
    others = {(row.source, row.attire) for row in rows if row.source not in named} if other_share else set()
    attires = Counter(source for source, _ in others)
    return {f"{source}/{attire}": other_share / attires[source] for source, attire in others}


AGE_BANDS = (3, 8, 13, 18, 22, 25, 30, 45, 60)


def _age_band(row: Row) -> int:
    """Index of the band of an exact age; 0 for every other row."""
    if row.age is None or row.age[0] != row.age[1]:
        return 0
    return 1 + sum(row.age[0] >= edge for edge in AGE_BANDS)
