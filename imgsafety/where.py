"""Maps to places: which boxes a score comes from, and which part of the picture to look at more closely.

In: a plane of shares (rows, columns) that sums to a score. Out: boxes in fractions of width and height.
What a reader would get wrong: the boxes are as coarse as the map (a 7x7 grid at 224 pixels), and each place of the map has
seen far beyond its own cell. They say where to look, not where a body ends.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from imgsafety.result import Box, Grid, Part, Plane, Scores

Heads = Mapping[str, npt.NDArray[np.float64]]

HEAD = "attire"  # whose evidence tells where to look more closely
SOMEBODY = 0.5  # chance from which on a place shows somebody
SURELY = 2.0  # chances of all places of somebody together, from where on they are worth a look
SOMEBODY_ELSE = 1.0  # the same outside a zoom, from where on it does not show everybody
SMALLEST, LARGEST = 0.25, 0.75  # side of a zoom: smaller has too few pixels, larger shows little more than the whole does
FINER = 2  # times the places of a look's map, where two looks are joined
SHARE = 0.8  # boxes cover the fewest places that hold this share of the score
FLOOR = 0.01  # of the evidence of nobody at a place: a place without any is not worth infinitely much
FOCUSED = 0.3  # least share of the gravest label's evidence in that half, a quarter of the places (docs/experiments.md)
TINY = 1e-12
WHOLE_SHARE = 0.8  # of the whole, in what it and a zoom say together (docs/experiments.md)
LEAST = 0.01  # probability in a zoom: a decoy that draws the zoom takes a whole of 0.9 to no less than 0.69


def boxes(grid: Plane | Grid) -> tuple[Box, ...]:
    """Box the places that carry a score, strongest box first."""
    plane = np.asarray(grid, dtype=np.float64)
    found = sorted(_islands(_carrying(plane)), key=lambda island: -plane[island].sum())
    return tuple(_around(island) for island in found)


def focus(scores: Scores) -> Part | None:
    """What to look at more closely: somebody small, or else the half of the picture that most is to be seen in.

    None where the evidence is spread over the whole picture, so that nothing small can be meant. scores: with the maps of
    `HEAD`, and with people if the model finds them; if not, halves are the only zooms.
    """
    maps = np.array([scores.maps[f"{HEAD}.{label}"] for label in scores.heads[HEAD]])  # (labels, rows, columns), nobody first
    shares = maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), TINY)
    # What counts is the share of each label's evidence that a place has, the graver the label the more, whatever its
    # probability: small people are found where the model is not sure of them.
    evidence = (np.arange(len(shares))[:, np.newaxis, np.newaxis] * shares).sum(axis=0) / (shares[0] + FLOOR)
    if scores.people is None:
        return _half(evidence, shares[-1], "zoom")
    return _somebody(scores.people, evidence) or _half(evidence, shares[-1], "half")


def _somebody(people: Plane, evidence: Plane) -> Part | None:
    """The square around those people who touch each other that have most evidence, unless they fill the picture.

    They are found where the model cannot tell yet how they are dressed; what it then sees is somebody whole.
    """
    sure = [island for island in _islands(people >= SOMEBODY) if people[island].sum() >= SURELY]
    if not sure:
        return None
    down, across = (np.arange(count) * own // count for count, own in zip(people.shape, evidence.shape, strict=True))
    weights = people * evidence[down[:, np.newaxis], across]
    left, top, right, bottom = _around(max(sure, key=lambda island: weights[island].sum()))
    side = max(SMALLEST, bottom - top, right - left)
    if side > LARGEST:
        return None
    top, left = _start(top, bottom, side), _start(left, right, side)
    outside = np.where(people >= SOMEBODY, people, 0.0)
    starts = zip((top, left), people.shape, strict=True)
    outside[tuple(slice(round(start * count), round((start + side) * count)) for start, count in starts)] = 0.0
    return Part(top, left, side, "zoom", alone=bool(outside.sum() < SOMEBODY_ELSE))


def _start(start: float, end: float, side: float) -> float:
    """Where a side begins that has the middle of start and end in its own, as far as the picture allows."""
    return min(max((start + end - side) / 2, 0.0), 1 - side)


def _half(evidence: Plane, gravest: Plane, look: str) -> Part | None:
    """The half of height and width that most evidence is in. gravest: each place's share of the gravest label."""
    rows, columns = evidence.shape
    finer, gravest_finer = _finer(evidence), _finer(gravest)  # of which a half has as many places
    windows = _hats(rows) @ finer @ _hats(columns).T
    row, column = np.unravel_index(np.argmax(windows), windows.shape)
    if gravest_finer[row : row + rows, column : column + columns].sum() / FINER**2 < FOCUSED:
        return None
    return Part(float(row) / (FINER * rows), float(column) / (FINER * columns), 1 / FINER, look)


@cache
def _hats(count: int) -> npt.NDArray[np.float64]:
    """Weights of the places of a finer map in each window of `count`: they rise to its middle, as what is cut off is seen badly."""
    starts, places = np.ogrid[: (FINER - 1) * count + 1, : FINER * count]
    hats: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(places - starts + 1.0, starts + count - places))
    return hats


def _finer(plane: Plane) -> Plane:
    """Each place as `FINER` rows and columns of places alike."""
    return plane.repeat(FINER, axis=0).repeat(FINER, axis=1)


def placed(plane: Plane, part: Part) -> Plane:
    """The map of a part as one of the whole picture, of twice as many places: nothing comes from where it did not look."""
    down, across = (_overlaps(start, part.side, count) for start, count in zip((part.top, part.left), plane.shape, strict=True))
    grown: Plane = down @ plane @ across.T
    return grown


def _overlaps(start: float, side: float, count: int) -> npt.NDArray[np.float64]:
    """The share of each of a part's places, columns of the answer, that lies in each of the picture's `FINER * count`."""
    mine = start + side * np.arange(count + 1) / count
    theirs = np.arange(FINER * count + 1)[:, np.newaxis] / (FINER * count)
    common = np.minimum(theirs[1:], mine[1:]) - np.maximum(theirs[:-1], mine[:-1])
    overlaps: npt.NDArray[np.float64] = np.maximum(common, 0.0) / (side / count)
    return overlaps


def together(whole: Heads, closer: Iterable[Heads]) -> Heads:
    """What all looks at a picture say together, of every head probabilities `(..., labels)`.

    closer: at most one of these was taken, which answers for what it differs in; others are copies of the whole's.
    """
    joint = dict(whole)
    for look in closer:
        taken = np.any([np.any(look[name] != whole[name], axis=-1, keepdims=True) for name in whole], axis=0)
        said = {**look, HEAD: pool(whole[HEAD], look[HEAD])}
        joint = {name: np.where(taken, said[name], joint[name]) for name in whole}
    return joint


def pool(whole: npt.NDArray[np.float64], closer: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What a look at the whole and a zoom say together: their logarithmic opinion pool (Genest and Zidek 1986).

    whole, closer: probabilities `(..., labels)`. On pictures of an origin that the model has not learned it ranks better than the
    whole alone (docs/experiments.md).
    """
    weights = whole**WHOLE_SHARE * np.maximum(closer, LEAST) ** (1 - WHOLE_SHARE)
    pooled: npt.NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return pooled


def joined(whole: Plane, zoomed: Plane, score: float) -> Plane:
    """The map of a score that both looks answer for: the places of the whole's map halved, and those of the zoom's.

    zoomed: as `placed` gives it.
    """
    first, second = (plane / max(plane.sum(), TINY) for plane in (_finer(whole), zoomed))
    together: Plane = score * (WHOLE_SHARE * first + (1 - WHOLE_SHARE) * second)
    return together


def _around(island: npt.NDArray[np.bool_]) -> Box:
    """The box of the places that are true."""
    down, across = (np.flatnonzero(island.any(axis=axis)) for axis in (1, 0))
    rows, columns = island.shape
    return float(across[0] / columns), float(down[0] / rows), float((across[-1] + 1) / columns), float((down[-1] + 1) / rows)


def _carrying(plane: Plane) -> npt.NDArray[np.bool_]:
    order = np.argsort(plane, axis=None)[::-1]
    covered = np.cumsum(plane.ravel()[order])
    carrying = np.zeros(plane.size, dtype=np.bool_)
    carrying[order[: int(np.searchsorted(covered, SHARE * covered[-1])) + 1]] = True
    return carrying.reshape(plane.shape)


def _islands(places: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Split places into groups that touch, diagonals included.

    All places are the bits of one integer, a row after the other with a gap between: they grow by shifting it, in microseconds.
    """
    rows, columns = places.shape
    stride = columns + 1
    apart = np.zeros((rows, stride), dtype=np.bool_)
    apart[:, :columns] = places
    packed = np.packbits(apart, bitorder="little")
    rest = int.from_bytes(packed.tobytes(), "little")
    islands: list[npt.NDArray[np.bool_]] = []
    while rest:
        island, grown = 0, rest & -rest
        while grown != island:
            island = grown
            wide = island | island << 1 | island >> 1
            grown = (wide | wide << stride | wide >> stride) & rest
        rest ^= island
        bits = np.frombuffer(island.to_bytes(len(packed), "little"), np.uint8)
        unpacked = np.unpackbits(bits, count=rows * stride, bitorder="little")
        islands.append(unpacked.reshape(rows, stride)[:, :columns].astype(np.bool_))
    return islands
