"""Pillow's reduction and resizing, bit by bit, for pictures that are tensors on a GPU.

In: `uint8 (height, width, 3)` of torch. Out: `TensorImage`, which answers to what `preprocess` asks of an RGB `PIL.Image`, so that
there is one definition of preprocessing wherever pixels are. What a reader would get wrong: all sums are of whole numbers and
exact, in integers or in float64, so their order does not matter and the pixels are Pillow's, not nearly Pillow's. But for
pictures much taller than wide: some versions of Pillow filter their rows first, and may round a pixel to the next of 255 levels.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

PRECISION = 22  # bits of a filter's weights, as in Pillow's Resample.c
SUPPORT = 1.0  # pixels to each side that the bilinear filter sees, before it is widened
REDUCING_PRECISION = 24  # bits of the factor that divides a sum in Pillow's Reduce.c


class TensorImage:
    """An RGB picture whose pixels are a tensor, on the device where that is."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[0])

    def reduce(self, factor: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> "TensorImage":
        """Like `PIL.Image.Image.reduce`: average blocks of columns and rows, less than whole ones at the right and below."""
        left, top, right, bottom = box or (0, 0, *self.size)
        (across, down), cut = factor, self.pixels[top:bottom, left:right]
        columns, rows = (math.ceil(side / by) for side, by in ((right - left, across), (bottom - top, down)))
        grown = cut.new_zeros(rows * down, columns * across, 3)
        grown[: bottom - top, : right - left] = cut
        sums = grown.view(rows, down, columns, across, 3).sum(dim=(1, 3))  # of uint8 in int64
        halves, factors = _copied(cut.device, _divisors, bottom - top, right - left, down, across)
        return TensorImage(((sums + halves) * factors >> REDUCING_PRECISION).byte())

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling,
        box: tuple[float, float, float, float] | None = None,
        reducing_gap: float | None = None,
    ) -> "TensorImage":
        """Like `PIL.Image.Image.resize`. Raises `ValueError` for what `preprocess` asks of nobody."""
        if resample != Image.Resampling.BILINEAR or (box and reducing_gap):
            raise ValueError("only the bilinear filter, and `reducing_gap` for the whole picture only")
        image, (width, height) = self, size
        left, top, right, bottom = box or (0, 0, *self.size)
        if reducing_gap:
            factor = tuple(int(side / to / reducing_gap) or 1 for side, to in zip(self.size, size, strict=True))
            image = self.reduce((factor[0], factor[1])) if max(factor) > 1 else self
            right, bottom = (side / by for side, by in zip(self.size, factor, strict=True))
        wide = _filtered(image.pixels.movedim(1, 0), left, right, width)  # columns first
        return TensorImage(_filtered(wide.movedim(1, 0), top, bottom, height))


def stack(pictures: Sequence[Any]) -> Any:
    """One batch `(batch, height, width, 3)` of arrays, or of tensors on one device."""
    if isinstance(pictures[0], np.ndarray):
        return np.stack(pictures)
    import torch

    return torch.stack(list(pictures))


def _filtered(pixels: Any, start: float, end: float, count: int) -> Any:
    """Resample the first of three dimensions from a range of it to `count`."""
    weights = _copied(pixels.device, _weights, len(pixels), start, end, count)
    sums = weights @ pixels.reshape(len(pixels), -1).double()
    levels = ((sums + 2.0 ** (PRECISION - 1)) / 2.0**PRECISION).floor().clamp(0, 255)
    return levels.byte().view(count, *pixels.shape[1:])


@lru_cache(maxsize=16)  # a whole picture's are asked for again and again, and take half a megabyte
def _copied(device: Any, make: Callable[..., npt.NDArray[Any]], *arguments: float) -> Any:
    """What a function makes, as a tensor on a device."""
    import torch

    return torch.from_numpy(make(*arguments)).to(device)


def _weights(length: int, start: float, end: float, count: int) -> npt.NDArray[np.float64]:
    """The whole numbers by which Pillow's `precompute_coeffs` weighs `length` pixels: `(count, length)`."""
    first, last = np.float32(start), np.float32(end)
    scale = float(last - first) / count
    widened = max(scale, 1.0)
    center = float(first) + (np.arange(count)[:, np.newaxis] + 0.5) * scale
    support, pixels = SUPPORT * widened, np.arange(length)
    low, high = (center - support + 0.5).astype(np.int64), (center + support + 0.5).astype(np.int64)  # towards 0, as in C
    near = (pixels >= np.maximum(low, 0)) & (pixels < np.minimum(high, length))
    weights = np.where(near, np.maximum(0.0, 1.0 - np.abs((pixels - center + 0.5) * (1.0 / widened))), 0.0)
    shares = weights / weights.cumsum(axis=1)[:, -1:]  # summed one after the other, as in C
    whole: npt.NDArray[np.float64] = np.floor(0.5 + shares * 2.0**PRECISION)
    return whole


def _divisors(height: int, width: int, down: int, across: int) -> npt.NDArray[np.int64]:
    """Of each block, half of its pixels, and what a sum is multiplied with instead of dividing by them: `(2, rows, columns, 1)`."""
    rows, columns = (
        np.minimum(by, side - np.arange(0, side, by))[:, np.newaxis] for side, by in ((height, down), (width, across))
    )
    pixels = rows * columns.T
    factors = (np.float32(2.0**32) / (pixels << (32 - REDUCING_PRECISION)).astype(np.float32)).astype(np.int64)
    return np.stack([pixels // 2, factors])[..., np.newaxis]
