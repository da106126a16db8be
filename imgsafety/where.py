"""Maps to boxes: where in the picture a score comes from.

In: a grid of shares (rows, columns) that sums to a score. Out: boxes in fractions of width and height.
What a reader would get wrong: the boxes are as coarse as the map (a 7x7 grid at 224 pixels), and each place of the map has
seen far beyond its own cell. They say where to look, not where a body ends.
"""

import numpy as np
import numpy.typing as npt

from imgsafety.result import Box, Grid

SHARE = 0.8  # boxes cover the fewest places that hold this share of the score


def boxes(grid: Grid) -> tuple[Box, ...]:
    """Box the places that carry a score, strongest box first."""
    plane = np.asarray(grid, dtype=np.float64)
    rows, columns = plane.shape
    found = sorted(_islands(_carrying(plane)), key=lambda island: -sum(plane[place] for place in island))
    return tuple(
        (
            min(column for _, column in island) / columns,
            min(row for row, _ in island) / rows,
            (max(column for _, column in island) + 1) / columns,
            (max(row for row, _ in island) + 1) / rows,
        )
        for island in found
    )


def _carrying(plane: npt.NDArray[np.float64]) -> set[tuple[int, int]]:
    order = np.argsort(plane, axis=None)[::-1]
    covered = np.cumsum(plane.ravel()[order])
    count = int(np.searchsorted(covered, SHARE * covered[-1])) + 1
    return {(int(at) // plane.shape[1], int(at) % plane.shape[1]) for at in order[:count]}


def _islands(places: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Split places into groups that touch, diagonals included."""
    rest = set(places)
    islands: list[set[tuple[int, int]]] = []
    while rest:
        island: set[tuple[int, int]] = set()
        edge = {rest.pop()}
        while edge:
            island |= edge
            near = {(row + down, column + right) for row, column in edge for down in (-1, 0, 1) for right in (-1, 0, 1)}
            edge = near & rest
            rest -= edge
        islands.append(island)
    return islands
