"""One RGB image to the model's pixels: the only resize in the project.

In: an upright RGB `PIL.Image` of any size. Out: `uint8 (size, size, 3)`.
The whole picture is squeezed into the square, never cropped: what a crop leaves out would pass unseen.
The trainer imports this function, so the model learns from exactly what the scanner shows it.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from imgsafety.result import Detail, Part

# A large picture is first reduced by whole steps (averaging blocks of pixels, JPEG while decoding), as long as this many times
# the model's side is left: a third of the time of filtering all pixels; few verdicts change, either way (docs/performance.md).
REDUCING_MARGIN = 1.1
ZOOM = 2  # how much larger than the model's side a picture is kept to zoom into
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
LOOKS = ("whole", "zoom", *("turn",) * len(TURNS), "negative")  # what a thorough scan looks at, in this order
CLOSER = ("half", "zoom")  # looks at a part of the picture, of which at most one is taken


def to_pixels(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to `uint8 (size, size, 3)`, antialiased (Pillow's bilinear filter)."""
    square = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=REDUCING_MARGIN)
    return np.asarray(square, dtype=np.uint8)


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
    """The most rows, and columns, of a `Detail` for a zoom of this size."""
    return 2 * math.ceil(ZOOM * REDUCING_MARGIN * size)


def to_detail(image: Image.Image, size: int) -> Detail:
    """Reduce an RGB image by whole steps, as `to_pixels` does first, to no less than a zoom of this size needs."""
    across, down = (max(1, int(side / (ZOOM * size) / REDUCING_MARGIN)) for side in image.size)
    reduced = image.reduce((across, down)) if max(across, down) > 1 else image
    return Detail(np.asarray(reduced, dtype=np.uint8), image.height / down, image.width / across)


def zoom(detail: Detail, part: Part, size: int) -> npt.NDArray[np.uint8]:
    """Return what `to_pixels` makes of this part of a picture: `uint8 (size, size, 3)`."""
    top, left = part.top * detail.height, part.left * detail.width
    box = (left, top, left + part.side * detail.width, top + part.side * detail.height)
    return np.asarray(Image.fromarray(detail.rgb).resize((size, size), Image.Resampling.BILINEAR, box=box), dtype=np.uint8)
