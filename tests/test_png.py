"""The faster decoder of plain PNGs: what it reads is what Pillow reads, and the rest is left to Pillow."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgsafety.decode import Limits, decode
from imgsafety.png import read_plain
from tests.hostile import chunk, encoded

pytest.importorskip("imagecodecs", reason="the extra `fast` is not installed")


def noise(mode="RGB", size=(37, 23)):
    channels = len(mode)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    values[: size[1] // 2] = 90  # half of it compresses
    return Image.fromarray(values)


def before(mark, data, inserted):
    at = data.index(mark) - 4
    return data[:at] + inserted + data[at:]


def by_pillow(data):
    """Pillow's pixels, or none where it refuses the file."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            return image.mode, np.asarray(image)
    except Exception:  # noqa: BLE001  Pillow raises nearly every class there is on damaged bytes
        return None


def by_us(data):
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            picture = read_plain(image, data)
    except Exception:  # noqa: BLE001  as above, while it reads the header
        return None
    return picture and (picture.mode, np.asarray(picture))


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
EXIF = ORIENTED.tobytes()[6:]
PLAIN = encoded(noise(), "PNG")


@given(mode=st.sampled_from(["RGB", "RGBA"]), size=st.tuples(st.integers(1, 90), st.integers(1, 90)), level=st.integers(0, 9))
def test_plain_pictures_are_what_pillow_makes_of_them(mode, size, level):
    data = encoded(noise(mode, size), "PNG", compress_level=level, dpi=(72, 72), icc_profile=b"x" * 200)
    (ours_mode, ours), (theirs_mode, theirs) = by_us(data), by_pillow(data)
    assert ours_mode == theirs_mode == mode and np.array_equal(ours, theirs)


def test_what_generators_write_into_their_files_is_plain():
    data = before(b"IDAT", PLAIN, chunk(b"tEXt", b"parameters\0a street in the rain, Steps: 20"))
    assert by_us(data) is not None


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise().convert("L"), "PNG"),
        encoded(noise().convert("P"), "PNG"),
        encoded(noise(), "PNG", transparency=(90, 90, 90)),
        encoded(noise(), "PNG", exif=EXIF),
        before(b"IEND", PLAIN, chunk(b"eXIf", EXIF)),
        before(b"IDAT", PLAIN, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n0\n" + EXIF.hex().encode())),
        before(b"IDAT", PLAIN, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>")),
        encoded(noise(), "PNG", save_all=True, append_images=[noise()]),
        before(b"IDAT", PLAIN, chunk(b"acTL", struct.pack(">II", 1, 0))),
        before(b"IDAT", PLAIN, chunk(b"iTXt", b"parameters\0\0\0\0\0rain")),
        before(b"IDAT", PLAIN, chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 37, 12, 0, 0, 1, 1, 0, 0))),
        PLAIN + b"IEND" + bytes(600_000),
    ],
    ids="grey palette clear turned turned-late turned-by-text turned-by-xmp animated animated-once text frame padded".split(),
)
def test_what_something_turns_clears_animates_or_pads_is_left_to_pillow(data):
    assert by_pillow(data) is not None and by_us(data) is None


def test_a_part_that_a_text_names_is_not_mistaken_for_the_picture():
    data = before(b"IDAT", PLAIN, chunk(b"tEXt", b"bbox\0somewhere"))
    assert by_pillow(data) is None and by_us(data) is None


def test_a_turned_picture_comes_out_upright():
    [view] = decode(before(b"IEND", PLAIN, chunk(b"eXIf", EXIF)), Limits(), 32)
    assert np.array_equal(np.asarray(view.image), np.rot90(np.asarray(noise()), -1))


def test_a_picture_with_clear_parts_is_seen_over_white_and_over_black():
    image = noise("RGBA")
    assert by_us(encoded(image, "PNG")) is not None and len(decode(encoded(image, "PNG"), Limits(), 32)) == 2


@given(at=st.integers(0, len(PLAIN) - 1), bit=st.integers(0, 7))
def test_what_pillow_refuses_is_never_read(at, bit):
    damaged = bytearray(PLAIN)
    damaged[at] ^= 1 << bit
    ours, theirs = by_us(bytes(damaged)), by_pillow(bytes(damaged))
    assert ours is None or (theirs is not None and ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1]))


@pytest.mark.parametrize("kept", [8, 33, 41, 60, len(PLAIN) // 2, len(PLAIN) - 13])
def test_a_picture_that_breaks_off_is_not_read(kept):
    assert by_us(PLAIN[:kept]) is None
