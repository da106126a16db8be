"""What Pillow does not do for PNGs: refuse those of which decoders make different pictures, and decode plain ones faster.

In: a PNG file that Pillow has opened, and its bytes. Out of `read_plain`: the picture that Pillow would make of it, or none where
Pillow has to. What a reader would get wrong: Pillow still reads the header, after which the limits hold, and has the last word on
what is damaged. What libspng (of imagecodecs, extra `fast`) accepts has all its pixels, though Pillow may miss the end of their
stream.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from imgsafety.errors import ImageError

# It cannot be stopped on the way: 2048 x 2048 pixels take 100 ms, and 2 seconds where every byte attacks the decoder.
MOST_PIXELS = 2048 * 2048
# What a viewer may do to the pixels: turn, clear, or animate them.
NOT_PLAIN = ("exif", "xmp", "raw profile", "transparency", "interlace", "loop")
# Chunks that say how the pixels look: at most one of each, and before the pixels. Of two, decoders take the first or the last.
BEFORE_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"acTL", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP"))
ONCE = BEFORE_PIXELS | {b"eXIf"}
MOST_CHUNKS = 100_000  # usual ones hold 8 kB or more of the pixels
GREY, COLOUR, PALETTE = 0, 2, 3  # kinds of pixels that may name what is transparent


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


def refuse_ambiguous(data: bytes, frames: int) -> None:
    """Raise `ImageError` for a PNG that viewers may show otherwise than Pillow reads it.

    Pillow and libpng, which browsers use, differ in what they make of chunks that should not be there: one heeds what the other
    ignores, and so a few bytes would hide a picture from us. frames: how many Pillow finds.
    """
    sizes: dict[bytes, int] = {}
    pixels = frame = False
    for number, (kind, length) in enumerate(_chunks(data)):
        if number == MOST_CHUNKS:
            raise ImageError(f"a PNG of more than {MOST_CHUNKS:,} chunks")
        if kind in ONCE and kind in sizes:
            raise ImageError(f"a PNG with two {kind.decode()}, of which decoders take the one or the other")
        if (kind in BEFORE_PIXELS and pixels) or (kind == b"PLTE" and b"tRNS" in sizes):
            raise ImageError(f"a PNG with {kind.decode()} in a wrong place, which decoders heed or ignore")
        sizes[kind] = length
        pixels |= kind == b"IDAT"
        frame |= kind == b"fdAT"
    if frame and frames == 1:
        raise ImageError("a PNG with frames of an animation that are not announced, which decoders show or ignore")
    if b"tRNS" in sizes and not _fits(data, sizes[b"tRNS"], sizes.get(b"PLTE", 0) // 3):
        raise ImageError("a PNG with tRNS that does not fit its pixels, which decoders heed or ignore")


def _chunks(data: bytes, at: int = 8) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk from here to the end; what breaks off is for Pillow."""
    kind = b""
    while kind != b"IEND" and len(data) >= at + 8:
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        yield kind, length
        at += 12 + length


def _fits(data: bytes, length: int, colours: int) -> bool:
    """Whether what is transparent is named as the pixels ask for."""
    depth, kind = data[24], data[25]
    if kind == PALETTE:
        return 0 < length <= min(colours, 1 << depth)
    # Pillow does not scale a level of grey as it scales the pixels of less than eight bits.
    return (kind == GREY and length == 2 and depth >= 8) or (kind == COLOUR and length == 6)


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
    return next((kind for kind, _ in _chunks(data, first) if kind != b"IDAT"), b"") == b"IEND"
