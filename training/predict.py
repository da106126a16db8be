"""Rows to scores, through the public API and the shipped file: what every figure is measured on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety import Policy, Result, Scanner
from imgsafety.decode import Limits, decode
from imgsafety.session import Session
from training.manifest import Row

Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class Answers:
    """One row of probabilities per manifest row and head; `(rows, labels)` float64 each."""

    heads: dict[str, npt.NDArray[np.float64]]

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Answers":
        """Keep the rows where `chosen` is true."""
        return Answers({name: values[chosen] for name, values in self.heads.items()})


def open_scanner(model: Path | None) -> Scanner:
    """A scanner for any model, with a policy that asks nothing: here only scores matter."""
    return Scanner(model, Policy("scores only", Session(model).spec.identity, ()))


def predict(scanner: Scanner, rows: Sequence[Row], folder: Path, change: Change | None = None) -> Answers:
    """Score the picture of every row, `change`d first if that is given. Raises `ValueError` for an unreadable one."""
    items: Iterator[Any] = (folder / row.path for row in rows)
    if change is not None:
        items = (change(read_image(row, folder)) for row in rows)
    results = list(scanner.scan(items))
    for row, result in zip(rows, results, strict=True):
        if result.verdict == "undecided":
            raise ValueError(f"{row.path}: {result.error}")
    return Answers({head.name: _stack(results, head.name) for head in scanner.session.spec.heads})


def read_image(row: Row, folder: Path) -> Image.Image:
    """Decode the picture of one row at full size."""
    return decode((folder / row.path).read_bytes(), Limits(frames=1), 0)[0].image


def _stack(results: Sequence[Result], head: str) -> npt.NDArray[np.float64]:
    return np.array([list(result.scores[head].values()) for result in results])
