"""One RGB image to the model's pixels: the only resize in the project.

In: an upright RGB `PIL.Image` of any size, or a `TensorImage`. Out: `uint8 (size, size, 3)`, an array or, of the latter, a tensor.
The whole picture is squeezed into the square, never cropped: what a crop leaves out would pass unseen.
The trainer imports this function, so the model learns from exactly what the scanner shows it.
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from imgsafety.errors import ImageError
from imgsafety.resample import TensorImage
from imgsafety.result import Box, Detail, Part, Rgb

# A large picture is first reduced by whole steps (averaging blocks of pixels, JPEG while decoding), as long as this many times
# the model's side is left: a third of the time of filtering all pixels; few verdicts change, either way (docs/performance.md).
REDUCING_MARGIN = 1.1
# A picture of no more pixels is kept for a zoom as it is: most are not zoomed into, and where they are, a part is reduced in less
# time than the whole. Larger ones would take too much memory in a batch.
MOST_KEPT = 1_100_000
# Edges of a zoom lie at such fractions of a pixel, which stay exact where `_cut` moves them: the filter counts in single precision.
FRACTION = 64
ZOOM = 2  # how much larger than the model's side a picture is kept to zoom into
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
LOOKS = ("whole", "zoom", *("turn",) * len(TURNS), "negative")  # what a thorough scan looks at, in this order
CLOSER = ("half", "zoom")  # looks at a part of the picture, of which at most one is taken


def to_pixels(image: Image.Image | TensorImage, size: int) -> Rgb:
    """Resize an RGB image to `uint8 (size, size, 3)`, antialiased (Pillow's bilinear filter)."""
    return _rgb(image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=REDUCING_MARGIN))


def shrink(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize `uint8 (batch, side, side, 3)` to a smaller side, which is what a first look sees."""
    return np.stack([to_pixels(Image.fromarray(one), size) for one in pixels])


def with_half(taken: tuple[str, ...]) -> tuple[str, ...]:
    """The looks that a model takes which finds people: besides zooms, halves of pictures without anybody small."""
    return (*taken[:1], CLOSER[0], *taken[1:]) if len(taken) > 1 else taken


def looks(image: Image.Image, thorough: bool) -> list[Image.Image]:
    """Return what is judged of one picture: itself, and if `thorough` also its turns and its negative (against disguise)."""
    return [image, *(image.transpose(turn) for turn in TURNS), ImageOps.invert(image)] if thorough else [image]


def most_detail(size: int) -> int:
    """The most rows, and columns, of a `reduced` picture for a zoom of this size."""
    return 2 * math.ceil(ZOOM * REDUCING_MARGIN * size)


def to_detail(image: Image.Image | TensorImage, size: int) -> Detail:
    """Keep an RGB image for a zoom of this size, to be reduced by whole steps, as `to_pixels` does first; a large one at once."""
    across, down = (max(1, int(side / (ZOOM * size) / REDUCING_MARGIN)) for side in image.size)
    detail = Detail(image, (across, down), image.height / down, image.width / across)
    return detail if image.width * image.height <= MOST_KEPT else reduced(detail)


def reduced(detail: Detail) -> Detail:
    """The same with its steps taken."""
    return replace(detail, image=detail.image.reduce(detail.steps), steps=(1, 1)) if max(detail.steps) > 1 else detail


def zoom(detail: Detail, part: Part, size: int) -> Rgb:
    """Return what `to_pixels` makes of this part of a picture: `uint8 (size, size, 3)`.

    Raises `ImageError` when its pixels are gone: whoever handed in an image may have closed it by now.
    """
    top, left = part.top * detail.height, part.left * detail.width
    edges = (left, top, left + part.side * detail.width, top + part.side * detail.height)
    box: Box = tuple(round(edge * FRACTION) / FRACTION for edge in edges)  # type: ignore[assignment]  # four of them
    try:
        image, box = _cut(detail, box, size)
        return _rgb(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    except Exception as problem:  # Pillow raises nearly every class
        raise ImageError(f"cannot be zoomed into: {type(problem).__name__}: {problem}") from problem


def _rgb(image: Image.Image | TensorImage) -> Rgb:
    return image.pixels if isinstance(image, TensorImage) else np.asarray(image, dtype=np.uint8)


def _cut(detail: Detail, box: Box, size: int) -> tuple[Image.Image | TensorImage, Box]:
    """Reduce the box of a picture and as much around it as the filter sees; return that and the box in it.

    Also where there is nothing to reduce: Pillow filters rows or columns first as the whole image's sides suggest, and a picture
    that was reduced in a worker process must give the same pixels.
    """
    (across, down), (left, top, right, bottom) = detail.steps, box
    beside, above = (max(1.0, side / size) + 1 for side in (right - left, bottom - top))
    first, start = int(max(0, left - beside)), int(max(0, top - above))
    last, end = math.ceil(right + beside) * across, math.ceil(bottom + above) * down
    source = (first * across, start * down, min(last, detail.image.width), min(end, detail.image.height))
    return detail.image.reduce((across, down), source), (left - first, top - start, right - first, bottom - start)
