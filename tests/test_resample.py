"""A picture that stays on a GPU becomes the pixels that Pillow makes of it; on the CPU torch does the same sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imgsafety.preprocess import reduced, to_detail, to_pixels, zoom
from imgsafety.resample import TensorImage, stack
from imgsafety.result import Part
from imgsafety.session import Session

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
# Not much taller than wide: of those some versions of Pillow filter the rows first.
SIDES = [(1024, 1024), (1344, 768), (832, 1216), (300, 299), (224, 224), (100, 90), (31, 7), (1, 1)]


def both(size, device="cpu"):
    noise = np.random.default_rng(sum(size)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise), TensorImage(torch.from_numpy(noise).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIDES)
def test_the_model_sees_what_pillow_makes(size, device):
    picture, tensor = both(size, device)
    for side in (224, 96, 32):
        assert np.array_equal(to_pixels(picture, side), to_pixels(tensor, side).cpu())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(1024, 1024), (1344, 768), (1501, 1501), (300, 299)])
@pytest.mark.parametrize("part", [(0.0, 0.0, 0.5), (0.5, 0.5, 0.5), (3 / 14, 0.1, 0.25), (0.25, 0.13, 0.75)])
def test_a_zoom_sees_what_pillow_makes(size, part, device):
    details = [to_detail(one, 224) for one in both(size, device)]
    expected, found = (zoom(detail, Part(*part, "zoom"), 224) for detail in details)
    assert np.abs(expected.astype(int) - found.cpu().numpy().astype(int)).max() <= (part[2] != 0.5)
    whole, late = (reduced(detail).image for detail in details)
    assert np.array_equal(whole, late.pixels.cpu())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.integers(1, 9))
def test_blocks_are_averaged_as_pillow_averages_them(width, height, across, down):
    picture, tensor = both((width, height))
    assert np.array_equal(picture.reduce((across, down)), tensor.reduce((across, down)).pixels)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 99))
def test_whatever_the_order_of_passes_a_pixel_moves_by_one_level_at_most(width, height, side):
    picture, tensor = (to_pixels(one, side) for one in both((width, height)))
    assert np.abs(picture.astype(int) - tensor.numpy().astype(int)).max() <= 1


def test_a_session_takes_tensors_and_answers_as_for_arrays(toy_path):
    session = Session(toy_path)
    pictures = np.random.default_rng(0).integers(0, 256, (3, session.spec.size, session.spec.size, 3), dtype=np.uint8)
    assert session.run(torch.from_numpy(pictures)) == session.run(pictures)
    assert torch.equal(stack([torch.from_numpy(one) for one in pictures]), torch.from_numpy(stack(list(pictures))))
