"""The only resize."""

import numpy as np
import pytest
from PIL import Image

from imgsafety import ImageError
from imgsafety.preprocess import ZOOM, reduced, to_detail, to_pixels, zoom
from imgsafety.result import Part


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (3, 2000), (32, 32)])
def test_every_picture_becomes_a_square_of_bytes(size):
    pixels = to_pixels(Image.new("RGB", size, (10, 20, 30)), 32)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert (pixels == (10, 20, 30)).all()


def test_nothing_is_cut_off():
    image = Image.new("RGB", (400, 20))
    image.paste("white", (0, 0, 200, 20))
    pixels = to_pixels(image, 32)
    assert pixels[:, :15].min() > 250 and pixels[:, 17:].max() < 5


def test_detail_is_averaged_not_skipped():
    board = np.indices((512, 512)).sum(axis=0) % 2 * 255
    pixels = to_pixels(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 32)
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(to_pixels(Image.fromarray(pixels), 32), pixels)


@pytest.mark.parametrize("size", [(1024, 1024), (320, 240), (1501, 2003), (985, 12), (3, 2)])
def test_a_zoom_is_a_part_of_the_picture_at_twice_the_side(size):
    rows, columns = np.indices(size[::-1])
    waves = np.stack([127 + 120 * np.sin(rows / 9), 127 + 120 * np.sin(columns / 7), (rows + columns) % 256], axis=2)
    image = Image.fromarray(waves.astype(np.uint8))
    whole, detail = to_pixels(image, ZOOM * 64).astype(int), to_detail(image, 64)
    for top, left in ((0, 0), (10, 64), (64, 30)):
        part = zoom(detail, Part(top / 128, left / 128, 1 / ZOOM, "zoom"), 64)
        assert np.abs(part - whole[top : top + 64, left : left + 64]).max() <= 2  # of 255: rounding


@pytest.mark.parametrize("size", [(1024, 1024), (1301, 803), (985, 300), (530, 1338), (1004, 1050)])
@pytest.mark.parametrize("part", [(0.0, 0.0, 0.5), (0.5, 0.5, 0.5), (3 / 14, 0.1, 0.25), (0.25, 0.13, 0.75), (0.57, 0.2162, 0.398)])
def test_a_part_is_reduced_as_the_whole_would_be(size, part):
    detail = to_detail(Image.effect_noise(size, 90).convert("RGB"), 64)
    ahead, late = (zoom(one, Part(*part, "zoom"), 64) for one in (reduced(detail), detail))
    assert max(detail.steps) > 1 and np.array_equal(ahead, late)


def test_a_large_picture_is_not_kept_whole():
    assert to_detail(Image.new("RGB", (2001, 1000)), 64).image.width < 2001


def test_a_picture_that_is_closed_meanwhile_is_an_image_error():
    image = Image.new("RGB", (300, 300))
    detail = to_detail(image, 64)
    image.close()
    with pytest.raises(ImageError, match="cannot be zoomed into"):
        zoom(detail, Part(0.0, 0.0, 0.5, "zoom"), 64)
