"""A float tensor of several pictures to the pixels of each, rounded on the device where the tensor is.

In: what a generator has before it saves anything: `(batch, channels, height, width)`, torch, any float type, CPU or
CUDA. Out: `uint8 (height, width, channels)`, rounded as a PNG of the picture would be: RGB on CUDA as a `TensorImage`, of which
only the model's pixels ever leave the device; all else as an array. What a reader would get wrong: the range is said by the
caller, never guessed. A dark picture in [-1, 1] and a bright one in [0, 1] can hold the same numbers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from imgsafety.decode import FLOAT_SLACK
from imgsafety.errors import ImageError, SetupError
from imgsafety.resample import TensorImage

RANGES = ((0.0, 1.0), (-1.0, 1.0))


def split_tensor(
    tensor: Any, value_range: tuple[float, float], stay: bool = True
) -> list[npt.NDArray[np.uint8] | TensorImage | ImageError]:
    """Return each picture's pixels, or the `ImageError` that says why it has none (NaN, outside the range).

    stay: RGB may stay on a GPU. Raises `SetupError` when the tensor or the range cannot be right for any picture.
    """
    if not isinstance(value_range, tuple) or value_range not in RANGES:  # an array would compare its numbers one by one
        raise SetupError(f"value_range is {value_range!r}; it must be (0, 1) or (-1, 1)")
    _require_batch(tensor)
    low, high = value_range
    unit = (tensor.detach().float() - low) / (high - low)
    least, most = (edge.cpu().numpy() for edge in (unit.flatten(1).amin(1), unit.flatten(1).amax(1)))
    rounded = (unit.nan_to_num(0).clamp(0, 1) * 255).round().byte().movedim(1, -1)
    stays = stay and rounded.is_cuda and rounded.shape[-1] == 3
    pixels = [TensorImage(picture) for picture in rounded] if stays else rounded.cpu().numpy()
    return [
        # Written so that NaN fails it.
        picture if lowest >= -FLOAT_SLACK and highest <= 1 + FLOAT_SLACK else _outside(lowest, highest, value_range)
        for picture, lowest, highest in zip(pixels, least, most, strict=True)
    ]


def _require_batch(tensor: Any) -> None:
    if not hasattr(tensor, "is_floating_point") or not tensor.is_floating_point():
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise SetupError(f"{kind} is not a float tensor of torch; `check` takes other kinds")
    if tensor.is_nested or tensor.is_meta or str(tensor.layout) != "torch.strided":
        kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else f"{tensor.layout}"
        raise SetupError(f"a {kind} tensor does not hold the numbers of every pixel; make it a dense one")
    if tensor.ndim != 4 or 0 in tensor.shape or tensor.shape[1] not in (1, 3, 4):
        raise SetupError(f"tensor of shape {tuple(tensor.shape)} is not (batch, 1, 3 or 4 channels, height, width)")


def _outside(lowest: float, highest: float, value_range: tuple[float, float]) -> ImageError:
    low, high = value_range
    found = f"{lowest * (high - low) + low:g} to {highest * (high - low) + low:g}"
    return ImageError(f"tensor spans {found}, not [{low:g}, {high:g}]; clamp what a decoder overshoots, or name the other range")
