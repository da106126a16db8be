"""Bytes, pictures and arrays to views: what is bounded, what is refused, what is left alone."""

import contextlib
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imgsafety import ImageError
from imgsafety.decode import Limits, decode, from_array, from_pil
from tests.hostile import chunk, slow_jpeg

SIDE = 32


def encoded(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(size=(64, 48), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))


def animation(count, format_="GIF", size=(16, 16)):
    frames = [Image.new("RGB", size, (20 * index % 256, index, 255 - index)) for index in range(count)]
    return encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=50)


def png_header(width, height):
    """A PNG that promises a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(9_000, 9_000), (11_000, 11_000), (100_000, 100_000)])
def test_huge_dimensions_are_refused_by_the_header(size):
    with pytest.raises(ImageError, match=r"over the limit"):
        decode(png_header(*size), Limits(), SIDE)


def test_the_pixel_limit_is_a_setting():
    data = encoded(noise((20, 10)), "PNG")
    assert len(decode(data, Limits(max_pixels=200), SIDE)) == 1
    with pytest.raises(ImageError, match="20x10 pixels are over the limit of 199"):
        decode(data, Limits(max_pixels=199), SIDE)


def test_later_pages_are_held_to_the_limit_too():
    data = encoded(Image.new("RGB", (4, 4)), "TIFF", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    with pytest.raises(ImageError, match="64x64 pixels are over the limit of 100"):
        decode(data, Limits(max_pixels=100), SIDE)


def test_an_animation_is_limited_over_all_its_frames():
    with pytest.raises(ImageError, match="17 frames of 16x16 are over the limit"):
        decode(animation(17), Limits(max_pixels=256), SIDE)
    assert len(decode(animation(16), Limits(max_pixels=256), SIDE)) == 8


def test_no_bytes_are_refused():
    with pytest.raises(ImageError, match="the file is empty"):
        decode(b"", Limits(), SIDE)


def test_other_files_are_refused():
    with pytest.raises(ImageError, match="not an image of a kind we read"):
        decode(b"%PDF-1.7 not a picture", Limits(), SIDE)


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x0a\x05\x01\x08" + bytes(200)])
def test_decoders_that_nobody_needs_are_not_reached(data):
    with pytest.raises(ImageError, match="not an image of a kind we read"):
        decode(data, Limits(), SIDE)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about the same damage
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "PPM"])
def test_a_truncated_picture_is_refused(format_):
    data = encoded(noise(), format_)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2], Limits(), SIDE)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.integers(0, 400))
def test_damage_is_never_any_other_error(damage, format_, at):
    data = encoded(noise((16, 16)), format_)
    try:
        views = decode(data[:at] + damage + data[at + len(damage) :], Limits(max_pixels=10_000), SIDE)
    except ImageError:
        return
    assert views and all(view.image.mode == "RGB" for view in views)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_frames_are_spread_from_the_first_to_the_last(format_):
    views = decode(animation(10, format_), Limits(frames=4), SIDE)
    assert [view.frame for view in views] == [0, 3, 6, 9]
    assert views[-1].image.getpixel((8, 8))[0] == pytest.approx(180, abs=8)


@pytest.mark.parametrize("count", [2, 3, 8, 9, 50])
def test_the_last_frame_is_always_looked_at(count):
    frames = [view.frame for view in decode(animation(count), Limits(), SIDE)]
    assert frames[0] == 0 and frames[-1] == count - 1 and len(frames) == min(count, 8)


def test_one_frame_has_no_index():
    assert decode(animation(1), Limits(), SIDE)[0].frame is None


def test_large_photographs_are_decoded_no_smaller_than_the_model_needs():
    data = encoded(noise((1024, 512)), "JPEG")
    (view,) = decode(data, Limits(), SIDE)
    assert SIDE * 2 <= min(view.image.size) < 512


def test_orientation_holds_for_reduced_photographs():
    exif = Image.Exif()
    exif[0x0112] = 6
    (view,) = decode(encoded(noise((1024, 512)), "JPEG", exif=exif), Limits(), SIDE)
    assert view.image.height == 2 * view.image.width


def test_a_callers_picture_is_left_as_it_was():
    with Image.open(io.BytesIO(animation(5))) as image:
        image.seek(2)
        from_pil(image, Limits())
        assert image.tell() == 2
    still = Image.new("P", (4, 4))
    from_pil(still, Limits())
    assert still.mode == "P"


def test_a_closed_picture_is_an_image_error():
    image = Image.open(io.BytesIO(encoded(noise(), "PNG")))
    image.close()
    with pytest.raises(ImageError):
        from_pil(image, Limits())


@pytest.mark.parametrize("mode", "1 L P RGB RGBA CMYK YCbCr LAB HSV I F I;16 LA PA RGBa RGBX".split())
def test_every_mode_becomes_rgb(mode):
    views = from_pil(Image.new(mode, (4, 3)), Limits())
    assert all(view.image.mode == "RGB" and view.image.size == (4, 3) for view in views)


def test_grey_values_without_a_range_are_refused():
    with pytest.raises(ImageError, match="not 16-bit"):
        from_pil(Image.new("F", (4, 3), float("nan")), Limits())


def test_float_and_byte_arrays_give_the_same_views():
    bytes_ = np.asarray(noise())
    (first,), (second,) = from_array(bytes_, Limits()), from_array(bytes_ / 255, Limits())
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_one_array_gives_a_still_view(shape):
    (view,) = from_array(np.full(shape, 255, np.uint8), Limits())
    assert view.image.size == (5, 4) and view.image.mode == "RGB" and view.frame is None


def test_a_batch_of_arrays_numbers_its_pictures():
    assert [view.frame for view in from_array(np.zeros((3, 4, 5, 3), np.uint8), Limits())] == [0, 1, 2]


def test_a_clear_array_is_seen_over_white_and_over_black():
    views = from_array(np.zeros((4, 5, 4), np.uint8), Limits())
    assert [view.image.getpixel((0, 0)) for view in views] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 5), np.uint8),  # channels first
        np.zeros((4, 0, 3), np.uint8),
        np.zeros(5),
        np.zeros((4, 5, 3), np.int32),
        np.zeros((4, 5, 3), bool),
        np.full((4, 5, 3), 1.5),
        np.full((4, 5, 3), -0.5),
        np.full((4, 5, 3), np.nan),
        np.full((4, 5, 3), np.inf, np.float16),
        np.array([[["a", "b", "c"]]]),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_arrays_of_another_shape_type_or_range_are_refused(array):
    with pytest.raises(ImageError):
        from_array(array, Limits())


def test_an_array_over_the_limit_is_refused():
    with pytest.raises(ImageError, match="over the limit"):
        from_array(np.zeros((10, 11, 3), np.uint8), Limits(max_pixels=100))


def test_a_float_picture_that_ends_at_one_is_not_black():
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    (view,) = from_pil(Image.fromarray(values), Limits())
    assert np.abs(np.asarray(view.image)[..., 0] - values * 255).max() <= 0.5


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_a_damaged_picture_is_not_better_the_second_time(format_):
    data = bytearray(encoded(noise((256, 256)), format_))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    image = Image.open(io.BytesIO(bytes(data)))
    for _ in range(2):
        with pytest.raises(ImageError):
            from_pil(image, Limits())


def test_one_lazy_picture_in_many_threads_has_one_appearance():
    image = Image.open(io.BytesIO(encoded(noise((700, 700)), "PNG")))
    wanted = noise((700, 700)).tobytes()
    with ThreadPoolExecutor(8) as threads:
        views = list(threads.map(lambda _: from_pil(image, Limits())[0].image.tobytes(), range(16)))
    assert views == [wanted] * 16


@pytest.mark.parametrize("edit", ["thumbnail", "paste"])
@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_what_a_caller_did_to_a_frame_is_judged_and_stays(format_, position, edit):
    frames = [noise((64, 48), seed) for seed in range(3)]
    image = Image.open(io.BytesIO(encoded(frames[0], format_, save_all=True, append_images=frames[1:])))
    image.seek(position)
    if edit == "thumbnail":
        image.thumbnail((20, 20))
    else:
        image.load()
        image.paste(200 if image.mode == "P" else (200,) * len(image.getbands()), (0, 0, 32, 48))
    mine = image.convert("RGB").tobytes(), image.size
    for _ in range(2):
        try:
            views = from_pil(image, Limits())
        except ImageError:  # Pillow itself cannot go to another frame of these any more, of MPO only in some versions
            assert edit == "thumbnail" and format_ in ("MPO", "PNG", "WEBP")
        else:
            assert [view.frame for view in views] == [0, 1, 2]
            assert (views[position].image.tobytes(), views[position].image.size) == mine
        image.load()
        assert (image.convert("RGB").tobytes(), image.size) == mine


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "WEBP", "PNG", "JPEG"])
def test_what_a_caller_did_to_a_still_picture_is_judged_and_stays(format_):
    image = Image.open(io.BytesIO(encoded(noise(), format_)))
    image.load()
    image.paste(200 if image.mode == "P" else (200,) * len(image.getbands()), (0, 0, 32, 48))
    mine = image.convert("RGB").tobytes()
    for _ in range(2):
        (view,) = from_pil(image, Limits())
        assert view.image.tobytes() == mine == image.convert("RGB").tobytes() and view.frame is None


def test_an_animation_that_breaks_off_goes_back_to_its_frame():
    image = Image.open(io.BytesIO(animation(8, "GIF", (64, 64))[:-40]))
    image.seek(1)
    with contextlib.suppress(ImageError):
        from_pil(image, Limits())
    assert image.tell() == 1


def test_what_a_mask_hides_is_looked_at():
    with pytest.raises(ImageError, match="spans nan"):
        from_array(np.ma.masked_invalid(np.full((8, 8, 3), np.nan)), Limits())


@pytest.mark.parametrize("side", [1400, 3000])
def test_a_jpeg_of_endless_passes_is_noticed_whatever_its_size(side):
    with pytest.raises(ImageError, match=r"longer than 0\.5 seconds"):
        decode(slow_jpeg(side), Limits(timeout=0.5), SIDE)


def test_a_palette_with_transparency_is_seen_on_white_and_on_black():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    palette = image.quantize()
    assert palette.mode == "P" and len(from_pil(palette, Limits())) == 2


def png(image, **kwargs):
    data = encoded(image, "PNG", **kwargs)
    return data, data.index(b"IDAT") - 4


def ambiguous():
    """PNGs of which Pillow and libpng, which browsers use, make different pictures, and what is wrong with each."""
    palette, pixels = png(noise((16, 16)).quantize(200))
    start = palette.index(b"PLTE") - 4
    clear = chunk(b"tRNS", bytes(200))
    yield "too long", palette[:pixels] + chunk(b"tRNS", bytes(256)) + palette[pixels:], "more transparent colours"
    yield "no colours", palette[:pixels] + chunk(b"tRNS") + palette[pixels:], "tRNS that does not fit"
    yield "two", palette[:pixels] + chunk(b"tRNS", bytes([255])) + clear + palette[pixels:], "two tRNS"
    yield "before its colours", palette[:start] + clear + palette[start:], "PLTE in a wrong place"
    yield "behind the pixels", palette[:-12] + clear + palette[-12:], "tRNS in a wrong place"
    grey, pixels = png(noise((16, 16)).convert("L"))
    yield "three bytes", grey[:pixels] + chunk(b"tRNS", bytes(3)) + grey[pixels:], "tRNS that does not fit"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0))
    few = grey[:8] + header + chunk(b"tRNS", bytes([0, 7])) + chunk(b"IDAT", zlib.compress(bytes([0, 0x7F]))) + grey[-12:]
    yield "four bits", few, "tRNS that does not fit"
    colour, pixels = png(noise((16, 16)).convert("RGBA"))
    yield "beside alpha", colour[:pixels] + chunk(b"tRNS", bytes(6)) + colour[pixels:], "tRNS that does not fit"
    moving = encoded(Image.new("RGB", (16, 16), "white"), "PNG", save_all=True, append_images=[noise((16, 16))])
    control = moving.index(b"acTL") - 4
    yield "announced twice", moving[:control] + moving[control : control + 20] * 2 + moving[control + 20 :], "two acTL"
    yield "not announced", moving[:control] + moving[control + 20 :], "not announced"
    dark, light = (chunk(b"gAMA", level.to_bytes(4, "big")) for level in (1000, 45455))
    many = chunk(b"tEXt", b"a\0b") * 100_001
    yield "many chunks", colour[:-12] + many + colour[-12:], "100,000 chunks"
    yield "two gammas", colour[:33] + dark + light + colour[33:], "two gAMA"
    yield "a gamma beside sRGB", colour[:33] + dark + chunk(b"sRGB", b"\0\0") + colour[33:], "gamma"
    yield "a gamma beside a damaged profile", colour[:33] + dark + chunk(b"iCCP", b"x\0\0junk") + colour[33:], "gamma"


@pytest.mark.filterwarnings("ignore:Invalid APNG")  # Pillow's, as the command does
@pytest.mark.parametrize(("data", "what"), [pytest.param(data, what, id=name) for name, data, what in ambiguous()])
def test_a_png_that_decoders_read_in_two_ways_is_refused(data, what):
    with pytest.raises(ImageError, match=what):
        decode(data, Limits(), SIDE)


def test_usual_chunks_are_no_reason_to_refuse_a_png():
    palette = noise((16, 16)).quantize(200)
    usual = [
        png(palette, transparency=bytes(200))[0],
        png(palette, transparency=7)[0],
        png(noise((16, 16)).convert("L"), transparency=7)[0],
        png(noise((16, 16)), transparency=(1, 2, 3), icc_profile=b"x" * 200)[0],
        encoded(noise((16, 16)), "PNG", save_all=True, append_images=[palette.convert("RGB")]),
    ]
    for data in usual:
        at = data.index(b"IDAT") - 4
        described = data[:33] + chunk(b"gAMA", (45455).to_bytes(4, "big")) + chunk(b"sRGB", b"\0") + data[33:at] + data[at:]
        assert decode(data, Limits(), SIDE) and decode(described, Limits(), SIDE)


def test_a_loaded_picture_with_more_transparent_colours_than_colours_is_refused():
    data, pixels = png(noise((16, 16)).quantize(200))
    image = Image.open(io.BytesIO(data[:pixels] + chunk(b"tRNS", bytes(256)) + data[pixels:]))
    image.load()
    with pytest.raises(ImageError, match="more transparent colours"):
        from_pil(image, Limits())


def test_more_frames_than_there_are_cost_nothing():
    assert len(decode(animation(3, "GIF", (16, 16)), Limits(frames=10**9), SIDE)) == 3


@pytest.mark.parametrize("extra", [{"gamma": 20.0}, {"transparency": True}])
def test_a_png_that_browsers_show_otherwise_is_refused(extra):
    file = io.BytesIO()
    if "gamma" in extra:
        about = PngInfo()
        about.add(b"gAMA", (2_000_000).to_bytes(4, "big"))
        Image.new("RGB", (8, 8), (1, 1, 1)).save(file, "PNG", pnginfo=about)
    else:
        Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(file, "PNG", transparency=30_000)
    with pytest.raises(ImageError, match="not read as it is shown"):
        decode(file.getvalue(), Limits(), 0)
    loaded = Image.open(file)
    loaded.load()
    with pytest.raises(ImageError, match="not read as it is shown"):
        from_pil(loaded, Limits())


@pytest.mark.parametrize(("tag", "value"), [(330, 8), (50706, b"\1\4\0\0")])
def test_a_tiff_of_which_only_a_preview_could_be_read_is_refused(tag, value):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "green").save(file, "TIFF", tiffinfo={tag: value})
    with pytest.raises(ImageError, match="only a preview"):
        decode(file.getvalue(), Limits(), 0)
