"""Bytes, PIL images and arrays to upright RGB views, bounded in pixels and time, and those to the model's pixels.

In: what `source.load` hands over. Out of `prepare`: `Pixels` of everything that is judged of it. Before these come `View`s: every
RGB picture that somebody who opens the item could see. A still picture gives one view; an animation gives frames sampled over
its whole length; a picture with transparent parts gives two, over white and over black, because the viewer's page decides.
What a reader would get wrong: `Image.open` only reads the header, so size limits hold before any decoding; and views are
made one at a time, because eight frames of the largest size do not fit into memory together.
"""

import contextlib
import io
import math
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from imgsafety.errors import ImageError
from imgsafety.png import read_plain, refuse_ambiguous
from imgsafety.preprocess import REDUCING_MARGIN, ZOOM, looks, reduced, to_detail, to_pixels
from imgsafety.resample import TensorImage
from imgsafety.result import Detail, Pixels

# Decoders we let untrusted bytes reach. JPEG's also opens MPO, which many phones write into .jpg files; Pillow
# raises KeyError for the name MPO itself.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
HIDDEN_TAGS = frozenset((330, 50706))  # of a TIFF: SubIFDs and DNGVersion
# An animation may hold this many times the pixels of the largest still picture, over all its frames.
ANIMATION_FACTOR = 16
# Walking over frames costs time even where they hold next to nothing.
MAX_FRAMES = 10_000
# A thinner picture explodes when it is resized: 1 x 70,000,000 pixels would need 63 GB on the way to 224 x 224.
MAX_SIDE = 65_535
# JPEG data goes to its decoder in pieces, so that one that makes every byte cost a pass over the picture is noticed. Larger
# pieces take a tenth less time; they are for pictures over which a pass is short.
JPEG_BLOCK, LARGE_JPEG_BLOCK, SHORT_PASS = 4096, 16_384, 2_000_000
FLOAT_SLACK = 1e-3
GAMMAS = (0.2, 1.2)  # that a PNG may name; 0.45 is usual, 1 linear. Beyond, a browser shows what is all but black to us
MAX_PIXELS = 80_000_000
FRAMES = 8
TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """max_pixels: width times height that is still decoded. frames: how many frames of an animation
    are judged, spread evenly from the first to the last, at least both. timeout: seconds for one file; looked at between frames and
    whenever a decoder asks for more bytes, so that one that never does is stopped only by `Scanner(isolate=True)`.
    """

    max_pixels: int = MAX_PIXELS
    frames: int = FRAMES
    timeout: float = TIMEOUT


@dataclass(frozen=True, slots=True)
class View:
    """One upright RGB picture; `frame` is its index in an animation or batch, none for a still one."""

    image: Image.Image
    frame: int | None = None


class _TimedFile(io.BytesIO):
    """A file in memory that refuses to be read when its time is up."""

    def __init__(self, data: bytes, timeout: float) -> None:
        super().__init__(data)
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise ImageError(f"takes longer than {self.timeout:g} seconds")

    def read(self, size: int | None = -1) -> bytes:
        self.check()
        return super().read(size)


def prepare(content: Any, limits: Limits, size: int, thorough: bool, detailed: bool = False) -> list[Pixels]:
    """Decode bytes, a PIL image or an array in this process; if `detailed`, fill `Pixels.detail` of whole pictures.

    A `TensorImage` stays where it is. Raises `ImageError`.
    """
    side = ZOOM * size if detailed else size
    try:
        if isinstance(content, TensorImage):
            check_size(content.size, limits)
            return [Pixels(to_pixels(content, size), detail=to_detail(content, size) if detailed else None)]
        with contextlib.closing(iter_views(content, limits, side)) as views:  # a caller's image is free again in any case
            return [
                Pixels(to_pixels(look, size), view.frame, _detail(view, size) if detailed and look is view.image else None)
                for view in views
                for look in looks(view.image, thorough)
            ]
    except (ImageError, MemoryError):
        raise
    except Exception as problem:  # the resize is Pillow's, or torch's, which raise nearly every class
        raise ImageError(f"cannot be prepared: {type(problem).__name__}: {problem}") from problem


def _detail(view: View, size: int) -> Detail:
    detail = to_detail(view.image, size)
    return detail if view.frame is None else reduced(detail)  # many frames kept whole would take much memory


def iter_views(content: bytes | Image.Image | npt.NDArray[Any], limits: Limits, size: int) -> Generator[View]:
    """Yield what `decode`, `from_pil` or `from_array` would return for the content, with one view in memory at a time."""
    if isinstance(content, bytes):
        return _decode(content, limits, size)
    if isinstance(content, np.ndarray):
        return _from_array(content, limits)
    return _from_pil(content, limits)


def decode(data: bytes, limits: Limits, size: int) -> list[View]:
    """Decode a file's bytes. size: the model's side, for reduced JPEG decoding. Raises `ImageError`."""
    return list(_decode(data, limits, size))


def from_pil(image: Image.Image, limits: Limits) -> list[View]:
    """Make views of a PIL image, all its frames included, without changing it. Raises `ImageError`.

    The view of an RGB image may be the image itself.
    """
    return list(_from_pil(image, limits))


def from_array(array: npt.NDArray[Any], limits: Limits) -> list[View]:
    """Make views of `(height, width)`, `(height, width, 1|3|4)` or `(batch, height, width, 1|3|4)`.

    uint8, or floats in [0, 1]. Raises `ImageError` for any other shape, type or range.
    """
    return list(_from_array(array, limits))


def _decode(data: bytes, limits: Limits, size: int) -> Generator[View]:
    if not data:
        raise ImageError("the file is empty")
    file = _TimedFile(data, limits.timeout)
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield from _views(image, limits, size, file)
    except ImageError:
        raise
    except Exception as problem:  # Pillow's decoders raise nearly every class there is on damaged bytes
        raise ImageError(_explain(problem)) from problem


class _Use:
    """What is kept beside a caller's image.

    Pillow cannot load or seek one image in two threads, and a second try to load a damaged one succeeds with half of its pixels.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.error: str | None = None


def _from_pil(image: Image.Image, limits: Limits) -> Generator[View]:
    use: _Use = vars(image).setdefault("_imgsafety_use", _Use())
    with use.lock:
        if use.error:
            raise ImageError(use.error)
        position, shown = 0, None
        try:
            position = image.tell()
            if vars(image).get("n_frames", 1) > 1 or hasattr(type(image), "n_frames"):  # some walk over all to count them
                check_size(image.size, limits)
                shown = image.copy()  # the caller may have changed this frame, which such a walk decodes anew
                decoder = vars(image).get("_decoder")  # of WebP and AVIF, which would read the other frames as of this size
                if decoder and decoder.get_info()[0] != shown.size:
                    raise ImageError("a frame of an animation that was resized in place; hand in a copy of it")
            yield from _views(image, limits, shown=shown)
        except (ImageError, MemoryError):
            raise
        except Exception as problem:  # a lazily opened image raises what its decoder raises
            use.error = _explain(problem)
            raise ImageError(use.error) from problem
        finally:
            if shown is not None:
                _go_back(image, position, shown)


def _go_back(image: Image.Image, position: int, shown: Image.Image) -> None:
    """Go back to a frame of a caller's animation, as it was shown."""
    with contextlib.suppress(Exception):
        image.seek(position)
        image.load()
    for name in ("im", "_size", "_mode", "palette", "info"):  # as Pillow's own operations in place do
        setattr(image, name, getattr(shown, name))
    vars(image)["tile"] = []  # nothing more to decode


def _from_array(array: npt.NDArray[Any], limits: Limits) -> Generator[View]:
    array = np.asarray(array)  # a masked array would hide what it masks
    if array.ndim not in (2, 3, 4) or 0 in array.shape or (array.ndim > 2 and array.shape[-1] not in (1, 3, 4)):
        raise ImageError(f"array of shape {array.shape} is not (height, width, 1, 3 or 4)")
    stack = array if array.ndim == 4 else array[np.newaxis]
    for index, values in enumerate(stack):
        check_size((values.shape[1], values.shape[0]), limits)
        bytes_ = _to_uint8(values)
        image = Image.fromarray(bytes_[..., 0] if bytes_.ndim == 3 and bytes_.shape[-1] == 1 else bytes_)
        for rgb in _flatten(image):
            yield View(rgb, index if len(stack) > 1 else None)


def _to_uint8(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise ImageError(f"array of type {values.dtype} is neither uint8 nor float in [0, 1]")
    # Written so that NaN fails it.
    if not (values.min() >= -FLOAT_SLACK and values.max() <= 1 + FLOAT_SLACK):
        raise ImageError(f"float array spans {values.min():g} to {values.max():g}, not [0, 1]")
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return levels


def _views(
    image: Image.Image, limits: Limits, size: int = 0, file: _TimedFile | None = None, shown: Image.Image | None = None
) -> Iterator[View]:
    """shown: what stands for the frame at which a caller's animation is."""
    position = image.tell() if shown else None
    check_size(image.size, limits)
    count = getattr(image, "n_frames", 1)
    _refuse_unseen(image)
    if isinstance(image, PngImageFile):
        _refuse_other_looks(image)
        if file is not None:
            refuse_ambiguous(file.getvalue(), count)
    if count == 1:
        yield from (View(rgb) for rgb in _flatten(_still(shown or image, size, file)))
        return
    if count > MAX_FRAMES or image.width * image.height * count > ANIMATION_FACTOR * limits.max_pixels:
        raise ImageError(f"{count} frames of {image.width}x{image.height} are over the limit for an animation")
    chosen = {round(at) for at in np.linspace(0, count - 1, min(count, max(limits.frames, 2)))}
    # Formats that only go forwards decode the frames between as well, so each step is held to the limits.
    for index in range(count):
        if file is not None:
            file.check()
        image.seek(index)
        _refuse_unseen(image)
        check_size(image.size, limits)  # pages of a TIFF differ in size, and a GIF's frame may be larger than its screen
        if index in chosen or index == position:
            for rgb in _flatten(ImageOps.exif_transpose(shown if shown and index == position else image)):
                yield View(rgb, index)


def _refuse_unseen(image: Image.Image) -> None:
    """Raise `ImageError` for a TIFF, as cameras write them, whose picture is in parts that Pillow does not read."""
    if HIDDEN_TAGS.intersection(getattr(image, "tag_v2", ())):
        raise ImageError("a raw file, or a TIFF with pictures inside its pages: only a preview of it could be read")


def _refuse_other_looks(image: PngImageFile) -> None:
    """Raise `ImageError` for a PNG that browsers show otherwise than Pillow reads it."""
    clear = image.info.get("transparency")
    levels = clear if isinstance(clear, tuple) else (clear,) if isinstance(clear, int) else ()
    # What a caller has loaded has no tiles any more.
    deep = image.mode.startswith("I;16") or max(levels, default=0) > 255 or any("16B" in str(tile[3]) for tile in image.tile)
    if clear is not None and deep:
        raise ImageError("a PNG of 16 bits with a transparent colour, which is not read as it is shown")
    if isinstance(clear, bytes) and image.palette and len(clear) > len(image.palette.palette) // 3:
        raise ImageError("a PNG with more transparent colours than colours, which is not read as it is shown")
    gamma = image.info.get("gamma")
    # Also beside a profile, which browsers would heed instead: one that is damaged they ignore.
    if gamma is not None and not GAMMAS[0] <= gamma <= GAMMAS[1]:
        raise ImageError(f"a PNG with the gamma {gamma:g}, which is not read as it is shown")


def _still(image: Image.Image, size: int, file: _TimedFile | None) -> Image.Image:
    """Return the picture, upright."""
    if size and isinstance(image, JpegImageFile):
        side, (width, height) = math.ceil(REDUCING_MARGIN * size), image.size
        image.draft("RGB", (side, side))
        image.decodermaxblock = LARGE_JPEG_BLOCK if width * height <= SHORT_PASS else JPEG_BLOCK
    if file is not None and isinstance(image, PngImageFile) and (plain := read_plain(image, file.getvalue())):
        return plain
    image.load()  # a PNG may tell its orientation after its pixels
    # Copied only where it has to be turned: a copy of a picture in memory takes a sixth of the time to prepare it.
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Raise `ImageError` for a picture of this width and height that is too large, or empty."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width}x{height} pixels")
    if width * height > limits.max_pixels:
        raise ImageError(f"{width}x{height} pixels are over the limit of {limits.max_pixels:,}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{width}x{height} pixels are over the limit of {MAX_SIDE:,} for one side")


def _flatten(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the RGB pictures that a viewer could see of one frame."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        yield _from_deep_grey(image)
    elif not image.has_transparency_data:
        yield image if image.mode == "RGB" else image.convert("RGB")
    else:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] == 255:
            yield rgba.convert("RGB")
            return
        for ground in ("white", "black"):
            # Not one expression: each of these holds all pixels.
            over = Image.new("RGBA", rgba.size, ground)
            over.alpha_composite(rgba)
            yield over.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not (values.min() >= 0 and values.max() <= 65535):
        raise ImageError(f"grey values from {values.min():g} to {values.max():g} are not 16-bit")
    # 16-bit files hold 257 steps per 8-bit level; Pillow's own conversion would clip them to white. Floats may end at 1.
    deep = values.max() > 255 or image.mode.startswith("I;16")
    scale = 257 if deep else 1 / 255 if image.mode == "F" and values.max() <= 1 else 1
    return Image.fromarray(np.rint(values / scale).astype(np.uint8)).convert("RGB")


def _explain(problem: Exception) -> str:
    if isinstance(problem, UnidentifiedImageError):
        return f"not an image of a kind we read ({', '.join(FORMATS)})"
    if isinstance(problem, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"over the limit that PIL.Image.MAX_IMAGE_PIXELS sets: {problem}"
    return f"cannot be decoded: {type(problem).__name__}: {problem}"
