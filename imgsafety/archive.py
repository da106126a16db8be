"""Files inside `.zip` and `.tar` archives, read in place: nothing is unpacked to disk.

In: the path of an archive. Out: `Member`s, each a named thing that can be read, like an open file.
What a reader would get wrong: one bad byte must not lose the rest. What cannot be read (a damaged or encrypted member, a link,
an archive inside an archive, all that follows a broken place) is a member too, whose reading raises the reason.
"""

import calendar
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from imgsafety.errors import ImageError

if TYPE_CHECKING:
    import tarfile
    import zipfile

# Archives that we do not read: they are listed all the same and end `undecided`, else what they hold would pass unseen.
UNREAD = (".7z", ".cb7", ".rar", ".cbr", ".tar.zst", ".tzst", ".tar.lz4", ".tar.lzma", ".tar.z")
ENDINGS = (".zip", ".cbz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", *UNREAD)
ZIP_MAGIC = b"PK\x03\x04"
EMPTY_ZIP_MAGIC = b"PK\x05\x06"
XZ_MAGIC = b"\xfd7zXZ\0"
LEAST_ENTRY = 64  # bytes of a zip that can hold an entry with a picture; Krita leaves out of its list one that says what a file is
ENCRYPTED = 1  # the bit of a zip entry's flags
MAX_PADDING = 64 * 1024 * 1024  # bytes of zeros at the end of a tar
# A compressed tar can only be read forwards, so its members wait in memory for their turn.
MAX_WAITING_BYTES = 32 * 1024 * 1024
# A few bytes of a compressed tar may stand for a terabyte, which takes an hour to step over. Text shrinks to a tenth.
MAX_GROWTH = 100


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside the file `archive`.

    name: `ARCHIVE/NAME`. read: return up to that many bytes from its start. mtime_ns: as the archive says, or none.
    opaque: cannot be read and may hold pictures, whatever its name.
    """

    name: str
    archive: Path
    from_start: ClassVar[bool] = True  # so does every `read`, unlike a file's
    read: Callable[[int], bytes]
    size: int | None = None
    mtime_ns: int | None = None
    opaque: bool = False


def is_archive(name: str) -> bool:
    """True when the file's name says that it is an archive."""
    return name.lower().endswith(ENDINGS)


def list_members(path: Path) -> Iterator[Member]:
    """Yield every file of an archive. An archive that breaks off ends with a member that says so."""
    seen: set[int] = set()
    try:
        for number, member in enumerate(_read(path)):
            # An archive may hold a name twice, also with and without a slash; all are looked at, under different names.
            inner = member.name.lstrip("/")
            while hash(inner) in seen:
                inner = f"{inner}#{number}"
            seen.add(hash(inner))
            member = replace(member, name=os.path.join(path, inner))
            yield refuse_nested(member) if is_archive(member.name) else member
    except Exception as problem:  # noqa: BLE001  # archives and their decompressors raise nearly every class on damaged bytes
        said = str(problem).partition("\n")[0].rstrip(":")  # tarfile lists what each decompressor says
        why = f"the archive breaks off: {said}" if seen else f"not an archive that can be read: {said}"
        yield Member(os.path.join(path, "...") if seen else os.fspath(path), path, _refusal(why), opaque=True)


def refuse_nested(member: Member) -> Member:
    """The member as one that cannot be read, because it is an archive itself."""
    return replace(member, read=_refusal("is an archive inside an archive; unpack the outer one"), opaque=True)


def _refusal(why: str) -> Callable[[int], bytes]:
    def read(_: int) -> bytes:
        raise ImageError(why)

    return read


def _read(path: Path) -> Iterator[Member]:
    if _is_zip(path):
        return _zip(path)
    if path.name.lower().endswith(UNREAD):
        raise ValueError("only zip and tar are, and not every compression; unpack it")
    return _tar(path)


def _is_zip(path: Path) -> bool:
    """By its first bytes: a tar that ends with a zip would pass for that zip. A zip may also stand behind a program."""
    import zipfile  # this and its like are imported where an archive is read: most scans meet none, and need not wait for them

    with path.open("rb") as file:
        if file.read(4) in (ZIP_MAGIC, EMPTY_ZIP_MAGIC):
            return True
    # What is not read may end with a zip too, which would not be all of it.
    if path.name.lower().endswith(UNREAD) or not zipfile.is_zipfile(path):
        return False
    try:
        with _open_tar(path):
            return False
    except Exception:  # noqa: BLE001  decompressors raise nearly every class on what is none
        return True


def _nanoseconds(seconds: Callable[[Any], float], date: Any) -> int | None:
    """A time as an archive says it, or none: dates that there are not, and numbers that are none, cost no picture."""
    try:
        return int(seconds(date) * 10**9)
    except (ValueError, OverflowError):
        return None


def _zip(path: Path) -> Iterator[Member]:
    import zipfile

    archive = zipfile.ZipFile(path)  # closed when its last member is dropped
    lock = threading.Lock()

    def reader(info: "zipfile.ZipInfo") -> Callable[[int], bytes]:
        def read(limit: int) -> bytes:
            with lock, archive.open(info) as file:
                return file.read(limit)

        return read

    entries = archive.infolist()
    for info in entries:
        if not info.is_dir() or info.file_size:
            time = _nanoseconds(calendar.timegm, (*info.date_time, 0, 0, 0))
            read = _refusal("is encrypted with a password; unpack the archive") if info.flag_bits & ENCRYPTED else reader(info)
            yield Member(info.filename, path, read, info.file_size, time, opaque=bool(info.flag_bits & ENCRYPTED))
    # The list stands at the end. Of two zips in one file, or of one that was cut off behind another, it names the last one's.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        first = min((info.header_offset for info in entries), default=len(data))
        if data.find(ZIP_MAGIC, 0, max(first - LEAST_ENTRY, 0)) >= 0:
            raise zipfile.BadZipFile("its list leaves out what stands before")


class _Bounded:
    """The bytes of a tar for `tarfile`, which would read as many as a header asks for, whatever that takes."""

    def __init__(self, file: IO[bytes], most: float) -> None:
        self._file, self._most = file, most
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_WAITING_BYTES:
            raise ValueError("one of its headers is too large")
        self._check(self.tell() + size)
        return self._file.read(size)

    def seek(self, position: int) -> None:
        self._check(position)
        self._file.seek(position)

    def _check(self, position: int) -> None:
        if position > self._most:
            raise ValueError(f"it grows to more than {MAX_GROWTH} times its size; unpack the archive")


@contextmanager
def _open_tar(path: Path) -> Iterator[tuple["tarfile.TarFile", bool]]:
    """Open a tar; say also whether it is plain, not compressed. Raises nearly every class for what is none."""
    import bz2
    import gzip
    import lzma
    import tarfile

    with path.open("rb") as file:
        head = file.read(len(XZ_MAGIC))
    kinds: dict[bytes, Callable[..., Any]] = {b"": open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open, XZ_MAGIC: lzma.open}
    *_, last = fitting = [opener for magic, opener in kinds.items() if head.startswith(magic)]
    for opener in fitting:  # a plain one may begin with any name
        most = math.inf if opener is open else max(MAX_PADDING, MAX_GROWTH * os.path.getsize(path))
        with closing(opener(path, "rb")) as bytes_:
            try:
                archive = tarfile.TarFile(fileobj=_Bounded(bytes_, most), errorlevel=2)  # type: ignore[arg-type]  # all it asks for
            except tarfile.ReadError:
                if opener is last:
                    raise
                continue
            yield archive, opener is open
            return


def _tar(path: Path) -> Iterator[Member]:
    import tarfile

    with _open_tar(path) as (archive, plain):
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member that was read
            if info.size < 0:  # some versions of tarfile would read it for ever
                raise tarfile.ReadError("a member of negative size")
            if not info.isdir():
                yield Member(info.name, path, _tar_reader(path, archive, info, plain), info.size, _nanoseconds(float, info.mtime))
        _check_end(archive)


def _check_end(archive: "tarfile.TarFile") -> None:
    """Raise `ReadError` unless a tar ends as it should: `next` takes a damaged header for the end."""
    import tarfile

    file, length = archive.fileobj, 0
    assert file is not None  # noqa: S101  # for the type checker
    file.seek(archive.offset)
    while block := file.read(64 * 1024):
        length += len(block)
        if block.strip(b"\0") or length > MAX_PADDING:
            raise tarfile.ReadError("there is more behind what can be read")
    if length < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")


def _tar_reader(path: Path, archive: "tarfile.TarFile", info: "tarfile.TarInfo", plain: bool) -> Callable[[int], bytes]:
    if not info.isreg() or info.issparse():
        return _refusal("is a link, a device or a sparse file inside an archive; unpack the archive")
    if plain:
        return lambda limit: _read_part(path, info.offset_data, info.size, limit)
    if info.size > MAX_WAITING_BYTES:
        return _refusal(f"is over the limit of {MAX_WAITING_BYTES:,} bytes inside a compressed archive; unpack the archive")
    file = archive.extractfile(info)
    data = file.read() if file else b""
    return lambda limit: data[:limit]


def _read_part(path: Path, start: int, size: int, limit: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(min(size, limit))
    if len(data) < min(size, limit):
        raise ImageError("the archive ends before its last file does")
    return data
