"""Every picture in tests/golden decodes to the array beside it; tests/golden/make.py draws both."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from imgsafety.decode import Limits, decode, from_pil

GOLDEN = Path(__file__).parent / "golden"
PICTURES = sorted(path for path in GOLDEN.iterdir() if path.suffix in {".png", ".jpg", ".gif", ".webp", ".tif", ".bmp", ".avif"})
LOSSY = {".jpg", ".avif"}
MODEL_SIDE = 224


def difference(path: Path, views: list) -> np.ndarray:
    expected = np.load(path.with_suffix(".npy")).astype(int)
    assert len(views) == len(expected)
    return np.abs(np.stack([np.asarray(view.image, int) for view in views]) - expected)


def test_there_are_pairs_of_every_format():
    assert len(PICTURES) >= 30
    assert {path.suffix for path in PICTURES} == {".png", ".jpg", ".gif", ".webp", ".tif", ".bmp", ".avif"}
    assert {path.stem for path in PICTURES} == {path.stem for path in GOLDEN.glob("*.npy")}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_picture_decodes_to_what_was_drawn(path):
    if path.suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    gap = difference(path, decode(path.read_bytes(), Limits(), MODEL_SIDE))
    # Blending may round to the neighbouring level; lossy files ring at the edges of blocks.
    assert gap.mean() < 4 and gap.max() < 48 if path.suffix in LOSSY else gap.max() <= 1


@pytest.mark.parametrize("path", [path for path in PICTURES if path.suffix not in LOSSY], ids=lambda path: path.name)
def test_an_opened_picture_gives_the_same_views_as_its_bytes(path):
    with Image.open(path) as image:
        assert difference(path, from_pil(image, Limits())).max() <= 1
