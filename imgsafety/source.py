"""What to look at: folders and archives to files, and one item of any kind to its bytes or pixels.

In: what the caller has in hand (path, bytes, file object, PIL image, array, tensor). Out: `Loaded`, still
undecoded. What a reader would get wrong: a folder is not searched by file name alone. A file with
another ending whose first bytes are those of a picture is looked at too, else renaming would hide it.
"""

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety.archive import ZIP_MAGIC, Member, is_archive, list_members, refuse_nested
from imgsafety.errors import ImageError
from imgsafety.resample import TensorImage

T = TypeVar("T")

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .ppm .pgm .pbm .pnm".split()
)
# Pictures that we do not decode: they are listed all the same and end `undecided`, else they would pass unseen.
ENDINGS |= frozenset(".heic .heif .hif .jxl .jp2 .j2k .j2c .jpx .jpf .svg .svgz .ico .icns .psd .psb .pcx .tga .qoi .exr".split())
ENDINGS |= frozenset(".dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .pef".split())  # of cameras
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # behind the ending of a single picture
# First bytes of JPEG, PNG, GIF, BMP, TIFF, BigTIFF and PNM; WebP, AVIF and HEIF carry their mark a few bytes in.
MAGIC: tuple[bytes, ...] = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
MAGIC += (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
MAGIC += tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\r\n")
MAGIC_INSIDE = ((b"WEBP", 8), (b"ftypavi", 4), (b"ftypmif1", 4), (b"ftypmsf1", 4), (b"ftyphei", 4))
HEAD_BYTES = 16
MAX_BYTES = 256 * 1024 * 1024
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what the system says of a file that is no more, and of a link to nothing


@dataclass(frozen=True, slots=True)
class Loaded:
    """One item's content: a file's `bytes`, a PIL image, an array (height, width, channels), or a picture on a GPU.

    path is none for items without a name; sha256 is none for items that came as pixels.
    """

    content: bytes | Image.Image | npt.NDArray[Any] | TensorImage
    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of all that are there.

    include, exclude: shell patterns for a file's name or its path below the folder that was named; an excluded folder is not
    entered. max_files: stop after so many. sample: a uniform random sample of so many, the same for the same names and seed.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_files: int | None = None
    sample: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was when somebody looked: `mark` is another one when its size or its date changed."""

    mark: str
    size: int | None
    mtime_ns: int | None


def find_images(paths: Iterable[str | os.PathLike[str]], selection: Selection | None = None) -> Iterator[Path | Member]:
    """Yield files that may be pictures: named files as they are, folders searched to the bottom, archives read in place.

    Listing is lazy, one folder at a time, in the order of names, linked folders last; each folder once. A folder that cannot be
    listed is yielded itself, so that loading it reports the error instead of losing what is inside. Archives yield `Member`s.
    """
    chosen = selection or Selection()
    roots = tuple(map(Path, paths))
    return select(lambda: list_places(roots, chosen), chosen)


def select(listing: Callable[[], Iterator[tuple[str, T]]], selection: Selection) -> Iterator[T]:
    """Yield what a selection keeps of a listing.

    listing: starts it anew (a sample needs it twice); yields every candidate's place and the candidate. A place is the number of
    the root it lies under, a slash, and its path below that root.
    """

    def kept() -> Iterator[tuple[str, T]]:
        return ((place, item) for place, item in listing() if _keeps(selection, place.partition("/")[2], item))

    if selection.sample is not None:
        return _sample(kept, selection.sample, selection.seed)
    return islice((item for _, item in kept()), selection.max_files)


def _keeps(selection: Selection, name: str, item: object) -> bool:
    """Whether a name fits. What cannot be looked into is kept whatever is to be included: its pictures may be."""
    included = not selection.include or matches(name, selection.include) or _is_opaque(item)
    return included and not matches(name, selection.exclude)


def _is_opaque(item: object) -> bool:
    if isinstance(item, Member):
        return item.opaque
    return isinstance(item, Path) and _is_closed(item)


def _sample(kept: Callable[[], Iterator[tuple[str, T]]], count: int, seed: int) -> Iterator[T]:
    """The `count` files whose names hash lowest: a uniform sample that depends on nothing but names and seed."""

    def rank(place: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{place}".encode(errors="surrogateescape"), digest_size=16).digest()

    lowest = nsmallest(count, (rank(place) for place, _ in kept()))
    return (item for place, item in kept() if lowest and rank(place) <= lowest[-1])


def list_places(roots: Sequence[Path], selection: Selection) -> Iterator[tuple[str, Path | Member]]:
    """Yield every candidate and its place, see `select`; folders that the selection excludes are not entered."""
    visited: set[tuple[int, int]] = set()
    for number, root in enumerate(roots):
        is_folder = os.path.isdir(root)  # unlike Path.is_dir, it raises nothing
        prefix = os.path.join(root if is_folder else root.parent, "")

        def excluded(folder: Path, prefix: str = prefix) -> bool:
            return matches(os.fspath(folder).removeprefix(prefix), selection.exclude)

        for path in _walk(root, visited, excluded) if is_folder else (root,):
            if excluded(path):  # an archive as a whole
                continue
            for item in _open(path, named=not is_folder):
                place = (name_of(item) or "").removeprefix(prefix)
                yield f"{number}/{place}", item


def matches(place: str, patterns: Iterable[str]) -> bool:
    """True when a file's or folder's name, or its path below the folder that was named, fits one of the patterns."""
    return any(fnmatchcase(place, pattern) or fnmatchcase(os.path.basename(place), pattern) for pattern in patterns)


def _walk(root: Path, visited: set[tuple[int, int]], excluded: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield all files below a folder, and folders that cannot be listed.

    Linked folders come last: what is found under two names has its own, by which patterns know it, and not a link's.
    """
    links = deque([root])
    while links:
        waiting = [_list_folder(links.popleft(), visited)]
        while waiting:
            for path, is_folder in waiting[-1]:
                if not is_folder:
                    yield path
                elif excluded(path):
                    continue
                elif path.is_symlink():
                    links.append(path)
                else:
                    waiting.append(_list_folder(path, visited))
                    break
            else:
                waiting.pop()


def _list_folder(folder: Path, visited: set[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
    """Yield what a folder holds, by name, and whether it is a folder. One that cannot be listed yields itself."""
    names, folders = [], set()
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if _is_folder(entry):
                    folders.add(entry.name)
    except OSError:
        yield folder, False
        return
    names.sort()
    for name in names:
        yield folder / name, name in folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _open(path: Path, named: bool) -> Iterator[Path | Member]:
    """Yield a file that may be a picture, or those inside an archive. named: by the caller, and so taken as it is."""
    if has_ending(path.name):
        yield path
    elif os.path.isfile(path):  # reading a pipe or device would block
        head = _read_head(path)
        if is_archive(path.name) or (head or b"").startswith(ZIP_MAGIC):
            yield from _pictures_in(path)
        elif named or head is None or looks_like_image(head):
            yield path
    elif named or is_archive(path.name) or _is_closed(path):
        yield path


def _is_closed(path: Path) -> bool:
    """True for a folder, which could not be listed, and for what does not let itself be looked at: it may be a picture."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except ValueError:  # a NUL byte in the name
        return True
    except OSError as problem:
        return problem.errno not in GONE


def list_file(path: Path) -> Iterator[Path | Member]:
    """Yield what `find_images` would make of one file in a folder: itself, the pictures in an archive, or nothing."""
    return _open(path, named=False)


def _pictures_in(archive: Path) -> Iterator[Member]:
    """Yield the members that may be pictures, or hold some."""
    for member in list_members(archive):
        if member.opaque or has_ending(member.name):
            yield member
            continue
        try:
            head = member.read(HEAD_BYTES)
        except Exception:  # noqa: BLE001, S112  # as for files: what cannot be read and is not named like a picture is not one
            continue
        if head.startswith(ZIP_MAGIC):  # whatever its name: an office document, say
            yield refuse_nested(member)
        elif looks_like_image(head):
            yield member


def has_ending(name: str) -> bool:
    """True for a name that ends like a picture's, or like that of one that was compressed."""
    stem, ending = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1] if ending in COMPRESSED else ending) in ENDINGS


def is_judged(path: str) -> bool:
    """True for a file that is named, or begins, like a picture or an archive."""
    head = _read_head(Path(path))
    return has_ending(path) or is_archive(path) or head is None or head.startswith(ZIP_MAGIC) or looks_like_image(head)


def can_read(path: Path) -> bool:
    """False for a file that is there and whose first bytes cannot be read."""
    return not os.path.isfile(path) or _read_head(path) is not None


def _read_head(path: Path) -> bytes | None:
    """The first bytes; of a file that is gone none at all, and `None` of one that cannot be read: it may be a picture."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as problem:
        return b"" if problem.errno in GONE else None


def looks_like_image(head: bytes) -> bool:
    """True for the first `HEAD_BYTES` of a picture."""
    return head.startswith(MAGIC) or any(head[at:].startswith(mark) for mark, at in MAGIC_INSIDE)


def stamp_of(item: Path | Member) -> Stamp:
    """Say what would differ if the bytes had changed. Never raises: a file that is gone has an empty mark."""
    if isinstance(item, Member):
        return Stamp(stamp_of(item.archive).mark, item.size, item.mtime_ns)
    try:
        status = item.stat()
    except (OSError, ValueError):
        return Stamp("closed" if _is_closed(item) else "", None, None)
    return Stamp(f"{status.st_size}:{status.st_mtime_ns}", status.st_size, status.st_mtime_ns)


def state_of(path: Path) -> str:
    """Like the mark of `stamp_of`, but another one also when a file of its size and date took its place, or its mode changed.

    Not for marks that are kept: a folder that was copied would be judged anew.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return stamp_of(path).mark
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}:{status.st_ctime_ns}"


def name_of(item: Any) -> str | None:
    """Return the path of a path, the name of a file object or of a file-backed image, else none."""
    try:
        if isinstance(item, str | os.PathLike):
            return os.fsdecode(item)
        name = getattr(item, "filename" if isinstance(item, Image.Image) else "name", None)
    except Exception:  # noqa: BLE001  # a caller's object may raise anything; `load` will say what
        return None
    return name if isinstance(name, str) and name else None


def load(item: Any) -> Loaded:
    """Read one item. Raises `ImageError` when it cannot be read or is of no kind we know."""
    try:
        return _load(item)
    except (ImageError, MemoryError):
        raise
    except Exception as problem:  # a caller's object may raise anything from any attribute
        raise ImageError(f"cannot be read: {problem}") from problem


def _load(item: Any) -> Loaded:
    if isinstance(item, Loaded):
        return item
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
            folder = "a folder that cannot be listed, or is given as one picture: a scan looks into folders"
            raise ImageError(f"is {folder if os.path.isdir(path) else 'not a regular file'}")
        with open(path, "rb") as file:
            return _within_limit(file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as problem:  # ValueError: a NUL byte in the name
        raise ImageError(f"cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


def _read_file(file: Any) -> bytes:
    """Read to the end, which is where nothing comes: a pipe gives what it has."""
    parts, left = [], MAX_BYTES + 1
    while left > 0 and (part := file.read(left)) != b"":
        if part is None:
            raise ImageError("the file object has no more bytes yet; read it to its end, and hand in the bytes")
        if not isinstance(part, bytes):
            raise ImageError("the file object is open in text mode; open it with 'rb'")
        parts.append(part)
        left -= len(part)
        if getattr(file, "from_start", None) is True:  # one of ours, which gave all, and would begin anew
            break
    return _within_limit(b"".join(parts))


def _within_limit(data: bytes) -> bytes:
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
