"""Changes to a picture: always RGB, the same for the same seed, the label still in view."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training import augment

CHANGES = {
    "crop": lambda image, random: augment.crop(image, 0.4, random),
    "turn": augment.turn,
    "recolour": augment.recolour,
    "stylise": augment.stylise,
    "cover": augment.cover,
    "degrade": lambda image, random: augment.degrade(image, 48, random),
    "compress": augment.compress,
    "add_noise": augment.add_noise,
}


def photo(size=(120, 90)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))


def catalogue():
    """A blue figure on white ground."""
    image = Image.new("RGB", (60, 80), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 40, 70), fill="blue")
    return image


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("size", [(120, 90), (60, 80), (9, 200)])
def test_changes_keep_a_picture_and_leave_the_original(name, size):
    image = photo(size)
    for seed in range(40):
        changed = CHANGES[name](image, np.random.default_rng(seed))
        assert changed.mode == "RGB" and min(changed.size) > 0
    assert np.array_equal(np.asarray(image), np.asarray(photo(size)))


@pytest.mark.parametrize("name", CHANGES)
def test_changes_depend_on_the_seed_alone(name):
    first, again = (np.asarray(CHANGES[name](photo(), np.random.default_rng(5))) for _ in range(2))
    others = [np.asarray(CHANGES[name](photo(), np.random.default_rng(seed))) for seed in range(20)]
    assert np.array_equal(first, again)
    assert any(other.shape != first.shape or not np.array_equal(other, first) for other in others)


def test_a_figure_is_cut_from_white_ground():
    figure = augment.cut_out(catalogue())
    assert figure.mode == "RGBA"
    assert figure.size == pytest.approx((21, 61), abs=3)
    assert figure.getpixel((figure.width // 2, figure.height // 2)) == (0, 0, 255, 255)
    assert figure.getpixel((0, 0))[3] < 255


def test_what_has_no_figure_on_white_ground_is_not_cut():
    for image in (photo(), Image.new("RGB", (60, 80), "white"), Image.new("RGB", (60, 80), "black")):
        assert augment.cut_out(image) is None


def test_a_pasted_figure_lies_inside_and_has_its_share():
    figure = Image.new("RGBA", (30, 60), (255, 0, 0, 255))
    for seed in range(60):
        canvas = augment.paste(figure, Image.new("RGB", (200, 100)), 0.5, np.random.default_rng(seed))
        left, top, right, bottom = canvas.getbbox()
        assert canvas.size == (200, 100) and right - left >= 20 and 40 <= bottom - top <= 70


def test_a_crop_keeps_its_least_area_within_what_stretching_costs():
    for seed in range(60):
        cropped = augment.crop(photo((300, 300)), 0.6, np.random.default_rng(seed))
        assert cropped.width * cropped.height >= 0.6 * 300 * 300 / np.exp(0.3) - 600


def test_a_collage_shows_every_picture():
    colours = ["red", "lime", "blue", "yellow"]
    grid = augment.collage([Image.new("RGB", (9, 9), colour) for colour in colours], 2, np.random.default_rng(0))
    centres = {grid.getpixel((x, y)) for x in (60, 180) for y in (60, 180)}
    assert centres == {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)}


def test_degrading_never_goes_below_the_least_side():
    detail = [augment.degrade(photo((400, 300)), 150, np.random.default_rng(seed)).size for seed in range(60)]
    assert min(max(size) for size in detail) >= 149 and max(max(size) for size in detail) == 400


def test_a_soft_window_is_opaque_in_its_middle():
    for seed in range(20):
        window = augment.soft_window(photo(), np.random.default_rng(seed))
        assert window.mode == "RGBA" and window.getpixel((60, 45))[3] == 255


def test_a_stylised_picture_has_few_levels_or_few_colours():
    for seed in range(20):
        pixels = np.asarray(augment.stylise(photo(), np.random.default_rng(seed)))
        levels = max(len(np.unique(pixels[..., channel])) for channel in range(3))
        assert levels <= 16 or len(np.unique(pixels.reshape(-1, 3), axis=0)) <= 32
