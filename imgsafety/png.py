"""Plain PNGs, decoded by libspng where imagecodecs is installed (extra `fast`): faster than Pillow.

In: a PNG file that Pillow has opened, and its bytes. Out: the picture that Pillow would make of it, or none where Pillow has to.
What a reader would get wrong: Pillow still reads the header, after which the limits hold, and has the last word on what is
damaged. Nothing is refused here; what is accepted has all its pixels, though Pillow may miss the end of their stream.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

# It cannot be stopped on the way: 2048 x 2048 pixels take 100 ms, and 2 seconds where every byte attacks the decoder.
MOST_PIXELS = 2048 * 2048
# What a viewer may do to the pixels: turn, clear, or animate them.
NOT_PLAIN = ("exif", "xmp", "raw profile", "transparency", "interlace", "loop")


def read_plain(image: PngImageFile, data: bytes) -> Image.Image | None:
    """Decode a PNG file of 8-bit RGB or RGBA pixels that nothing turns, clears or animates; none for any other.

    image: as opened by Pillow from the bytes `data`, its pixels not read yet.
    """
    decode = _decoder()
    if decode is None or not _is_plain(image, data):
        return None
    try:
        picture = Image.fromarray(np.asarray(decode(data)))
    except Exception:  # noqa: BLE001  of whatever class: Pillow tries once more, and its error is the one that is told
        return None
    return picture if (picture.mode, picture.size) == (image.mode, image.size) else None


@cache
def _decoder() -> Callable[[bytes], Any] | None:
    try:
        # Not `png_decode`, which warns on the terminal and loses a reference to None with each damaged file, until Python aborts.
        from imagecodecs import spng_decode  # only who has a PNG waits for it
    except Exception:  # noqa: BLE001  one that is broken, or made for another numpy, raises other classes than ImportError
        return None
    decode: Callable[[bytes], Any] = spng_decode
    return decode


def _is_plain(image: PngImageFile, data: bytes) -> bool:
    pixels = image.width * image.height
    # Compressed pixels are hardly longer than pixels, unless somebody wants the decoder to work for nothing.
    if image.mode not in ("RGB", "RGBA") or pixels > MOST_PIXELS or len(data) > len(image.mode) * pixels + 100_000:
        return False
    if any(word in str(key).lower() for key in image.info for word in NOT_PLAIN):
        return False
    # All of the picture, as no part of an animation: `fcTL` says which part, and so does a text of that name.
    if [(tile.extents, tile.args) for tile in image.tile] != [((0, 0, *image.size), image.mode)]:
        return False
    start = image.tile[0].offset
    # Compressed texts are for Pillow, which limits what they grow to.
    return not any(kind in data[:start] for kind in (b"zTXt", b"iTXt")) and _ends_with_pixels(data, start - 8)


def _ends_with_pixels(data: bytes, first: int) -> bool:
    """Whether nothing follows the pixels, whose first chunk starts here; an orientation might."""
    while data[first + 4 : first + 8] == b"IDAT":
        first += 12 + int.from_bytes(data[first : first + 4])
    return data[first + 4 : first + 8] == b"IEND"
