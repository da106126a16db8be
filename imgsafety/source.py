"""What to look at: folders to paths, and one item of any kind to its bytes or pixels.

In: what the caller has in hand (path, bytes, file object, PIL image, array, tensor). Out: `Loaded`, still
undecoded. What a reader would get wrong: a folder is not searched by file name alone. A file with
another ending whose first bytes are those of a picture is looked at too, else renaming would hide it.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety.errors import ImageError

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .ppm .pgm .pbm .pnm".split()
)
# First bytes of JPEG, PNG, GIF, BMP and TIFF; WebP and AVIF carry their mark a few bytes in.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
MAGIC_INSIDE = ((b"WEBP", 8), (b"ftypavif", 4), (b"ftypavis", 4))
MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """One item's content: a file's `bytes`, a PIL image, or an array (height, width, channels).

    path is none for items without a name; sha256 is none for items that came as pixels.
    """

    content: bytes | Image.Image | npt.NDArray[Any]
    path: str | None = None
    sha256: str | None = None


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield files that may be pictures: named files as they are, folders searched to the bottom, in order.

    Listing is lazy, one folder at a time, and links are followed, each folder once. A folder that cannot be
    listed is yielded itself, so that loading it reports the error instead of losing what is inside.
    """
    visited: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if path.is_dir():
            yield from _walk(path, visited)
        else:
            yield path


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_dir(entry)) for entry in entries)
    except OSError:
        yield folder
        return
    for name, is_dir in found:
        if is_dir:
            yield from _walk(folder / name, visited)
        elif os.path.splitext(name)[1].lower() in ENDINGS or _looks_like_image(folder / name):
            yield folder / name


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _looks_like_image(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe or device would block
            return False
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return head.startswith(MAGIC) or any(head[at:].startswith(mark) for mark, at in MAGIC_INSIDE)


def name_of(item: Any) -> str | None:
    """Return the path of a path, the name of a file object or of a file-backed image, else none."""
    if isinstance(item, str | os.PathLike):
        return os.fsdecode(item)
    name = getattr(item, "filename" if isinstance(item, Image.Image) else "name", None)
    return name if isinstance(name, str) and name else None


def load(item: Any) -> Loaded:
    """Read one item. Raises `ImageError` when it cannot be read or is of no kind we know."""
    if isinstance(item, Image.Image) or (isinstance(item, np.ndarray) and item.dtype != object):
        return Loaded(item, name_of(item))
    if _is_tensor(item):
        return Loaded(_to_array(item))
    if isinstance(item, bytes | bytearray | memoryview):
        return _hashed(bytes(item), None)
    if isinstance(item, str | os.PathLike):
        return _hashed(_read_path(os.fsdecode(item)), name_of(item))
    if hasattr(item, "read"):
        return _hashed(_read_file(item), name_of(item))
    raise ImageError(f"{type(item).__name__} is not a path, bytes, file, PIL image, numpy array or torch tensor")


def _hashed(data: bytes, path: str | None) -> Loaded:
    return Loaded(data, path, hashlib.sha256(data).hexdigest())


def _read_path(path: str) -> bytes:
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            kind = "a folder that cannot be listed" if os.path.isdir(path) else "not a regular file"
            raise ImageError(f"is {kind}")
        with open(path, "rb") as file:
            return _read_file(file)
    except (OSError, ValueError) as problem:  # ValueError: a NUL byte in the name
        raise ImageError(f"cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


def _read_file(file: Any) -> bytes:
    try:
        data = file.read(MAX_BYTES + 1)
    except Exception as problem:  # a caller's file object may raise anything
        raise ImageError(f"cannot be read: {problem}") from problem
    if not isinstance(data, bytes):
        raise ImageError("the file object is open in text mode; open it with 'rb'")
    if len(data) > MAX_BYTES:
        raise ImageError(f"is over the limit of {MAX_BYTES:,} bytes")
    return data


def _is_tensor(item: Any) -> bool:
    """Tell a torch tensor without importing torch."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(item).__mro__)


def _to_array(tensor: Any) -> npt.NDArray[Any]:
    """CHW or NCHW tensor on any device to HWC or NHWC numpy; half precisions become float32."""
    if tensor.ndim not in (3, 4):
        raise ImageError(f"tensor of shape {tuple(tensor.shape)} is neither CHW nor NCHW")
    values = tensor.detach()
    if values.is_floating_point():
        values = values.float()
    array: npt.NDArray[Any] = values.cpu().numpy()
    return np.moveaxis(array, -3, -1)
