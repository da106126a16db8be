"""The labels, written once. They travel from here into the ONNX metadata and nowhere else.

To add a head: add it to `HEADS`, add its column to `targets`, write a policy that names its scores.
A target is a row of weights over labels: one weight of 1 is a plain label, several 1s mean "one of
these", all 1s mean "unknown", and weights that sum to 1 are a distribution (exact ages).
"""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from imgsafety.spec import Head

ATTIRE = Head("attire", "classes", ("no_person", "clothed", "revealing", "minimal"))
# One bin a year where the law and the buffer draw lines, wider where nobody asks for more.
AGE_EDGES = (0, 3, 6, 9, *range(12, 30), *range(30, 85, 5), 100)
AGE = Head(
    "age",
    "ages",
    tuple(f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(AGE_EDGES)),
    tuple(float(edge) for edge in AGE_EDGES),
)
HEADS = (ATTIRE, AGE)
HEAD_NAMES = tuple(head.name for head in HEADS)

# The classes of ImageNet, of 1,000, whose evidence is evidence of a label: bathing cap, bikini, brassiere, two kinds of maillot,
# swimming trunks. Networks have learned them from thousands of pictures of many origins.
CLASSES = 1000
BORROWED = {ATTIRE.name: {"minimal": (433, 445, 459, 638, 639, 842)}}
NOT_MINIMAL = "not_minimal"
EXPOSED = ("revealing", "minimal")
OLDEST = 99
# Spread of an exact age over its neighbours, in years (label distribution learning, Gao et al. 2017).
AGE_SPREAD = 1.5


def attire_target(attire: str) -> npt.NDArray[np.float32]:
    """Weights over `ATTIRE.labels` for a manifest value; empty is unknown."""
    allowed = {"": ATTIRE.labels, NOT_MINIMAL: ATTIRE.labels[:-1]}.get(attire, (attire,))
    return np.array([label in allowed for label in ATTIRE.labels], dtype=np.float32)


def age_target(low: float, high: float) -> npt.NDArray[np.float32]:
    """Weights over `AGE.labels`: 1 for every bin that apparent ages from `low` to `high` years touch."""
    return np.array([low < right and high >= left for left, right in pairwise(AGE.edges)], dtype=np.float32)


def age_distribution(age: float) -> npt.NDArray[np.float32]:
    """Weights over `AGE.labels` for an exact age: the share of a normal distribution in each bin."""
    centre = min(age, OLDEST) + 0.5
    below = [0.5 * (1 + math.erf((edge - centre) / (AGE_SPREAD * math.sqrt(2)))) for edge in AGE.edges]
    share = np.diff(below)
    target: npt.NDArray[np.float32] = (share / share.sum()).astype(np.float32)
    return target


def most_exposed(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Attire weights of a picture that joins two: the greater of any pair of allowed labels is allowed."""
    pairs = np.outer(first > 0, second > 0)
    joined = np.zeros(len(ATTIRE.labels), dtype=np.float32)
    for left, right in np.argwhere(pairs):
        joined[max(left, right)] = 1
    return joined
