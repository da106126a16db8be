"""What a model promises: `ModelSpec`, written into the ONNX file by the trainer, read by `Session`.

In and out: JSON text (the value of the metadata key `imgsafety`) to frozen values and back.
The numbers that prepare pixels (mean, deviation, temperature) are layers of the graph; they are not
repeated here, so they cannot disagree with it.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from imgsafety.errors import ModelError

METADATA_KEY = "imgsafety"
FIRST_KEY = "imgsafety.first"  # of the model for first looks, in base64
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Head:
    """One question the model answers with a probability per label.

    kind: `classes` (ordered labels, least to most) or `ages` (bins of years).
    edges: for `ages`, the bounds of the bins in years, one more than there are labels; else empty.
    temperature: what calibration chose; already applied inside the graph, kept here for the record.
    """

    name: str
    kind: Literal["classes", "ages"]
    labels: tuple[str, ...]
    edges: tuple[float, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("classes", "ages"):
            raise ModelError(f"head {self.name!r}: kind is {self.kind!r}, not 'classes' or 'ages'")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ModelError(f"head {self.name!r}: needs two or more labels, each once")
        expected = len(self.labels) + 1 if self.kind == "ages" else 0
        if len(self.edges) != expected:
            raise ModelError(f"head {self.name!r}: {len(self.edges)} edges where {expected} are needed")
        if list(self.edges) != sorted(set(self.edges)):
            raise ModelError(f"head {self.name!r}: edges must rise")

    @property
    def middles(self) -> tuple[float, ...]:
        """For `ages`, the middle of each bin in years; else empty."""
        return _middles(self.edges)


@cache  # asked of every picture
def _middles(edges: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((low + high) / 2 for low, high in pairwise(edges))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Name, version, sides of the input in pixels, and heads of one model file.

    size: the side of a picture. first_size: the side of a first look of a cascade; 0 where the file takes no other side.
    """

    name: str
    version: str
    size: int
    heads: tuple[Head, ...]
    first_size: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ModelError(f"spec of {self.name!r}: size {self.size} is outside 16 to 4096 pixels")
        if self.first_size and not 16 <= self.first_size < self.size:
            raise ModelError(f"spec of {self.name!r}: first_size {self.first_size} is outside 16 to {self.size - 1} pixels")
        if not self.heads or len({head.name for head in self.heads}) != len(self.heads):
            raise ModelError(f"spec of {self.name!r}: needs one or more heads, each name once")

    @property
    def identity(self) -> str:
        """`name version`, what a policy names to say which model its thresholds belong to."""
        return f"{self.name} {self.version}"


def shipped_file(name: str) -> Path | None:
    """Return the path of a file that comes with the model (wheel, editable install or checkout), none if it is absent."""
    here = Path(__file__).parent
    found = [folder / name for folder in (here / "weights", here.parent / "weights") if (folder / name).is_file()]
    return found[0] if found else None


def to_json(spec: ModelSpec) -> str:
    """Return the spec as JSON text for the model's metadata."""
    return json.dumps({"format": FORMAT, **asdict(spec)})


def from_json(text: str) -> ModelSpec:
    """Read a spec. Raises `ModelError` when a field is missing, unknown, or of the wrong type."""
    try:
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("format") != FORMAT:
            raise ModelError(f"spec is of another format than {FORMAT}; update imgsafety")
        heads = tuple(_head(entry) for entry in fields.pop("heads"))
        sides = {name: int(fields.get(name, 0)) for name in ("size", "first_size")}
        return ModelSpec(**{**fields, **sides, "heads": heads})
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as problem:
        raise ModelError(f"the model's spec cannot be read: {problem!r}") from problem


def _head(entry: dict[str, Any]) -> Head:
    lists = {"labels": tuple(map(str, entry["labels"])), "edges": tuple(map(float, entry["edges"]))}
    return Head(**{**entry, **lists, "temperature": float(entry["temperature"])})
