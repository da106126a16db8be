"""One RGB image to the model's pixels: the only resize in the project.

In: an upright RGB `PIL.Image` of any size. Out: `uint8 (size, size, 3)`.
The whole picture is squeezed into the square, never cropped: what a crop leaves out would pass unseen.
The trainer imports this function, so the model learns from exactly what the scanner shows it.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image


def to_pixels(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to `uint8 (size, size, 3)`, antialiased (Pillow's bilinear filter)."""
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square, dtype=np.uint8)
