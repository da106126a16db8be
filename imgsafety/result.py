"""The values that travel through the package, all frozen.

`Scores` is a model's opinion of one picture, `Verdict` the policy's decision, `Result` the whole answer
for one item. `undecided` means there are no scores; it is never `allow`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

    from imgsafety.resample import TensorImage

Decision = Literal["allow", "review", "block", "undecided"]
Rgb = npt.NDArray[np.uint8] | Any  # or a tensor of torch, where it stays on a GPU
Plane = npt.NDArray[np.floating[Any]]  # (rows, columns)
Grid = list[list[float]]  # the same, ready for JSON
Box = tuple[float, float, float, float]  # left, top, right, bottom, in fractions of width and height

# From harmless to grave. `undecided` outranks `allow` and `review`: a picture with one unreadable frame
# must not pass because the readable ones were harmless. `block` outranks it: what is known stays known.
SEVERITY: dict[str, int] = {"allow": 0, "review": 1, "undecided": 2, "block": 3}


@dataclass(frozen=True, slots=True)
class Pixels:
    """One look at one frame, ready for the model.

    rgb: uint8 (size, size, 3). frame: its index in an animation or batch, none for a still picture. detail: what part of it can
    be looked at more closely in; else none.
    """

    rgb: Rgb
    frame: int | None = None
    detail: "Detail | None" = None


@dataclass(frozen=True, slots=True)
class Detail:
    """A picture with enough pixels to zoom into.

    image: RGB, not squeezed. steps: how many of its columns, and of its rows, are one of what is zoomed into. height, width: of the
    picture in these; the last row and column may stand for less than a whole one.
    """

    image: "Image | TensorImage"
    steps: tuple[int, int]
    height: float
    width: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a picture to look at more closely: its top, left and side, in fractions of the picture's height and width.

    look: `zoom` where somebody small fills it; `half` where it is only what most is to be seen in. alone: whether nobody is seen
    outside it; none where it may not show all of somebody.
    """

    top: float
    left: float
    side: float
    look: str
    alone: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """A model's opinion of one frame.

    heads: for every head, the probability of each label; they sum to 1.
    named: what a policy can name: `head.label`, `head.at_least.label`, `head.under_YEARS`, and the
        short names `minimal_attire`, `exposed` (minimal or revealing), `minor`, `under_25`.
    age, age_low, age_high: expected apparent age and a 90 % interval in years; none when nobody is seen.
    maps: for every named score, the share that each place of a coarse grid (rows, columns) contributes;
        it sums to the score. Empty unless asked for.
        Float arrays `(rows, columns)`, those of people as well.
    people: the chance that somebody is at each place of a finer grid; none from a model that does not tell, or unless asked for.
    """

    heads: Mapping[str, Mapping[str, float]]
    named: Mapping[str, float]
    age: float | None = None
    age_low: float | None = None
    age_high: float | None = None
    maps: Mapping[str, Plane] = field(default_factory=dict)
    people: Plane | None = None

    def __eq__(self, other: object) -> bool:
        """Compare by value; arrays cannot be asked whether they are equal with one yes or no."""
        return isinstance(other, Scores) and self._values() == other._values()

    def _values(self) -> tuple[object, ...]:
        maps = {name: plane.tolist() for name, plane in self.maps.items()}
        people = None if self.people is None else self.people.tolist()
        return self.heads, self.named, self.age, self.age_low, self.age_high, maps, people


@dataclass(frozen=True, slots=True)
class Reason:
    """A rule that fired, what it asks for, and the scores that made it fire."""

    rule: str
    verdict: str
    scores: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.rule} ({', '.join(f'{name} {score:.2f}' for name, score in self.scores.items())})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The policy's decision and every rule that fired; for `undecided`, the error that left no scores."""

    decision: Decision
    reasons: tuple[Reason, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One item's answer. Attributes and JSON keys are the same; scores are floats in [0, 1] or none.

    path: as given, or none for an item that came without a name. sha256: of the file's bytes, or none
    when the item came as pixels. frame: index of the frame that decided, or none for a still picture.
    maps and boxes: where the scores come from; boxes only of scores that made a rule fire.
    """

    path: str | None
    verdict: Decision
    reasons: tuple[Reason, ...] = ()
    error: str | None = None
    sha256: str | None = None
    frame: int | None = None
    minimal_attire: float | None = None
    minor: float | None = None
    under_25: float | None = None
    apparent_age: float | None = None
    apparent_age_low: float | None = None
    apparent_age_high: float | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    maps: Mapping[str, Grid] = field(default_factory=dict)
    boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)

    @property
    def flagged(self) -> bool:
        """True when somebody should look: a rule fired, or there is no verdict."""
        return bool(self.reasons) or self.verdict != "allow"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values; `maps` and `boxes` are left out when they were not asked for."""
        values = asdict(self)
        if not self.maps:
            del values["maps"], values["boxes"]
        return values


def make_result(
    path: str | None,
    sha256: str | None,
    frame: int | None,
    scores: Scores,
    verdict: Verdict,
    boxes: Mapping[str, tuple[Box, ...]],
) -> Result:
    """Join what is known of one item into its `Result`."""
    return Result(
        path,
        verdict.decision,
        verdict.reasons,
        verdict.error,
        sha256,
        frame,
        minimal_attire=scores.named.get("minimal_attire"),
        minor=scores.named.get("minor"),
        under_25=scores.named.get("under_25"),
        apparent_age=scores.age,
        apparent_age_low=scores.age_low,
        apparent_age_high=scores.age_high,
        scores=scores.heads,
        maps={name: plane.tolist() for name, plane in scores.maps.items()},
        boxes=boxes,
    )
