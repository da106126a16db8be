"""Rows to scores, through the public API and the shipped file: what every figure is measured on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety import Policy, Scanner, Scores
from imgsafety.decode import Limits, decode
from imgsafety.errors import ImageError, ImgSafetyError
from imgsafety.preprocess import CLOSER, shrink, to_pixels
from imgsafety.scan import Scored
from imgsafety.session import Session
from imgsafety.spec import ModelSpec
from training.heads import AGE, ATTIRE
from training.manifest import ManifestError, Row

Change = Callable[[Image.Image], Image.Image]
Heads = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Answers:
    """One row of probabilities per manifest row and head, `(rows, labels)` float64 each. closer: that of closer looks, if any."""

    heads: Heads
    closer: dict[str, Heads] = field(default_factory=dict)

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Answers":
        """Keep the rows where `chosen` is true."""

        def taken(heads: Heads) -> Heads:
            return {name: values[chosen] for name, values in heads.items()}

        return Answers(taken(self.heads), {look: taken(heads) for look, heads in self.closer.items()})


# Of several looks at one picture (frames, grounds under a transparent one), the one that scores highest here answers for a head.
WORST = {ATTIRE.name: "minimal_attire", AGE.name: "minor"}


def open_scanner(model: Path | None, thorough: bool = False, zoom: bool = False, provider: str = "cpu") -> Scanner:
    """A scanner for any model, with a policy that asks nothing, or only for zooms: here only scores matter.

    Raises `ClickException` for a model or a provider that cannot be had.
    """
    asks = {WORST[ATTIRE.name]: 0.0} if zoom else {}
    try:
        policy = Policy("scores only", Session(model).spec.identity, (), zoom=asks)
        return Scanner(model, policy, provider=provider, thorough=thorough)
    except ImgSafetyError as problem:
        raise click.ClickException(str(problem)) from problem


def predict(scanner: Scanner, rows: Sequence[Row], folder: Path, change: Change | None = None) -> Answers:
    """Score the picture of every row, `change`d first if that is given. Raises `ManifestError` for an unreadable one."""
    items: Iterator[Any] = (folder / row.path for row in rows)
    if change is not None:
        items = (change(read_image(row, folder)) for row in rows)
    scored = list(scanner.score(items))
    for row, one in zip(rows, scored, strict=True):
        if one.error:
            raise ManifestError(f"{row.path} cannot be judged: {one.error}")
    spec, closer = scanner.session.spec, [look for look in scanner.looks if look in CLOSER]
    return Answers(_answers(spec, scored, "whole"), {look: _answers(spec, scored, look) for look in closer})


def _answers(spec: ModelSpec, scored: Sequence[Scored], kind: str) -> Heads:
    looks = [[scores for look, scores in zip(one.looks, one.scores, strict=True) if look == kind] for one in scored]
    labels = {head.name: len(head.labels) for head in spec.heads}
    return {head: np.array([_answer(one, head, name) for one in looks]).reshape(-1, labels[head]) for head, name in WORST.items()}


def _answer(looks: Sequence[Scores], head: str, name: str) -> list[float]:
    return list(max(looks, key=lambda scores: scores.named[name]).heads[head].values())


def read_image(row: Row, folder: Path, size: int = 0) -> Image.Image:
    """Decode the picture of one row: at full size, or as the scanner does for a model of this side. Raises `ManifestError`."""
    try:
        return decode((folder / row.path).read_bytes(), Limits(frames=1), size)[0].image
    except (OSError, ImageError) as problem:
        raise ManifestError(f"{row.path} cannot be read: {problem}") from problem


def first_looks(scanner: Scanner, rows: Sequence[Row], data: Path) -> list[Scores]:
    """What a cascade sees first of every row's picture."""
    session = scanner.session
    size, first_size = session.spec.size, session.spec.first_size
    pixels = (to_pixels(read_image(row, data, size), size) for row in rows)
    return [session.run(shrink(one[np.newaxis], first_size))[0] for one in pixels]


def first_answers(scanner: Scanner, rows: Sequence[Row], data: Path) -> Answers:
    """Like `predict`, for first looks."""
    looks = [Scored(None, None, (None,), (scores,)) for scores in first_looks(scanner, rows, data)]
    return Answers(_answers(scanner.session.spec, looks, "whole"))
