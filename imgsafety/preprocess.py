"""One RGB image to the model's pixels: the only resize in the project.

In: an upright RGB `PIL.Image` of any size. Out: `uint8 (size, size, 3)`.
The whole picture is squeezed into the square, never cropped: what a crop leaves out would pass unseen.
The trainer imports this function, so the model learns from exactly what the scanner shows it.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

# A large picture is first reduced by whole steps (averaging blocks of pixels, JPEG while decoding), as long as this many times
# the model's side is left: a third of the time of filtering all pixels; few verdicts change, either way (docs/performance.md).
REDUCING_MARGIN = 1.1
TILE = 0.6  # of the picture's sides: four tiles overlap in the middle, so a person on a seam is whole in one
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
LOOKS = ("whole", *("tile",) * 4, *("turn",) * len(TURNS), "negative")  # what a thorough scan looks at, in the order of `looks`


def to_pixels(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to `uint8 (size, size, 3)`, antialiased (Pillow's bilinear filter)."""
    square = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=REDUCING_MARGIN)
    return np.asarray(square, dtype=np.uint8)


def shrink(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize `uint8 (batch, side, side, 3)` to a smaller side, which is what a first look sees."""
    return np.stack([to_pixels(Image.fromarray(one), size) for one in pixels])


def looks(image: Image.Image, thorough: bool) -> list[Image.Image]:
    """Return what is judged of one picture: itself, and if `thorough` four tiles, three turns and the negative of it.

    Tiles find small people and cells of a collage, the others pictures that were turned or inverted to get through.
    """
    if not thorough:
        return [image]
    width, height = round(TILE * image.width), round(TILE * image.height)
    corners = [(left, top) for top in (0, image.height - height) for left in (0, image.width - width)]
    tiles = [image.crop((left, top, left + max(1, width), top + max(1, height))) for left, top in corners]
    return [image, *tiles, *(image.transpose(turn) for turn in TURNS), ImageOps.invert(image)]
