"""An append-only record of every verdict, in which a change shows: JSON lines, each with the hash of the line before.

In: results, and who judged them. Out: a file that `verify` holds against itself. Each line is handed to the system in one
write before the result goes anywhere else, and forced to disk once a second and at the end. What a reader would get wrong: whoever
can write the file can also compute a new chain, or cut off its end. Only the head hash, noted somewhere else, excludes that.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imgsafety.errors import SetupError
from imgsafety.result import Result

START = "0" * 64  # what the first line names as the hash of the line before
SYNC_EVERY = 1.0  # seconds
HASH = re.compile("[0-9a-f]{64}")
LINE = re.compile(rb'(\{.*), "hash": "([0-9a-f]{64})"\}', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judged: the model's and the policy's names and SHA-256."""

    model: str
    model_sha256: str
    policy: str
    policy_sha256: str


@dataclass(frozen=True, slots=True)
class Chain:
    """What `verify` found. head: hash of the last line. faults: number of a line in the file, and what is wrong with it."""

    lines: int
    head: str
    faults: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    previous: str
    hash: str


class AuditLog:
    """One log that is open for appending; made by `open_log`."""

    def __init__(self, descriptor: int, last: _Line, judge: Judge) -> None:
        self._descriptor, self._last, self._judge = descriptor, last, judge
        self._synced = time.monotonic()

    @property
    def head(self) -> str:
        """Hash of the last line: note it elsewhere, and a removed tail shows too."""
        return self._last.hash

    def write(self, result: Result) -> None:
        """Append one result. Raises `OSError` when it cannot be written whole; then the log stays as it was."""
        number, previous = self._last.number + 1, self._last.hash
        known = {name: value for name, value in result.to_dict().items() if name not in ("maps", "boxes")}
        entry = {"number": number, "time": datetime.now(UTC).isoformat(), **asdict(self._judge), **known, "previous": previous}
        body = json.dumps(entry).encode()
        digest = hashlib.sha256(body).hexdigest()
        _append(self._descriptor, body[:-1] + f', "hash": "{digest}"}}\n'.encode())
        self._last = _Line(number, previous, digest)
        if time.monotonic() - self._synced >= SYNC_EVERY:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()


@contextmanager
def open_log(path: str | os.PathLike[str], judge: Judge) -> Iterator[AuditLog]:
    """Open a log for one writer. Raises `SetupError` when it cannot be written or its last line is not whole."""
    import fcntl  # not on Windows: there only this function fails

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as problem:
        raise SetupError(f"audit log {path} cannot be written: {problem.strerror}") from problem
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"another imgsafety is writing to the audit log {path}") from None
        yield AuditLog(descriptor, _last_line(Path(path)), judge)
    finally:
        if os.path.isfile(path):  # devices cannot be forced to disk
            os.fsync(descriptor)
        os.close(descriptor)


def verify(path: str | os.PathLike[str], head: str | None = None) -> Chain:
    """Read a whole log. head: the hash that its last line had when somebody noted it, else a removed tail cannot be found.

    A fault names the line where the chain is broken. Raises `SetupError` when the file cannot be read, or head is no hash.
    """
    head = None if head is None else _read_head(head)
    last, count, seen, faults = _Line(0, START, START), 0, {START}, []
    for count, raw in enumerate(_read_lines(Path(path)), 1):
        line = _parse(raw)
        if line is None:
            faults.append((count, "was altered, or is not a line of this log"))
            # Its own words cannot be believed; the next line says which hash it had.
            last = _Line(last.number + 1, last.hash, "")
            continue
        if line.number != last.number + 1:
            missing = line.number - last.number - 1
            faults.append((count, f"{missing} removed before it" if missing > 0 else f"is number {line.number}: out of order"))
        elif last.hash and line.previous != last.hash:
            faults.append((count, "does not follow the line before it: one of the two was replaced"))
        seen.add(line.hash)
        last = line
    if head is not None and head not in seen:
        faults.append((count, "is not followed by the head that was noted: lines were removed at the end, or replaced"))
    return Chain(count, last.hash, tuple(faults))


def _read_head(noted: str) -> str:
    """A head as the log writes it, from one as people and other programs write it."""
    head = noted.strip().lower()
    if not HASH.fullmatch(head):
        raise SetupError(f"head {noted!r} is not the hash of a line: that has 64 digits from 0 to f")
    return head


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as problem:
        raise SetupError(f"audit log {path} cannot be read: {problem.strerror}") from problem


def _parse(raw: bytes) -> _Line | None:
    """Read one line; none unless it is whole and its hash is that of its words."""
    found = LINE.fullmatch(raw.removesuffix(b"\n"))
    if not found or not raw.endswith(b"\n") or hashlib.sha256(found[1] + b"}").hexdigest().encode() != found[2]:
        return None
    try:
        entry: dict[str, Any] = json.loads(raw)
        return _Line(int(entry["number"]), str(entry["previous"]), str(entry["hash"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _last_line(path: Path) -> _Line:
    if not path.is_file() or not path.stat().st_size:
        return _Line(0, START, START)
    raw = b""
    with path.open("rb") as file:
        position, block = file.seek(0, os.SEEK_END), 65_536
        while position and b"\n" not in raw[:-1]:
            position = max(0, position - block)
            file.seek(position)
            raw = file.read()
    line = _parse(raw[raw.rfind(b"\n", 0, -1) + 1 :])
    if line is None:
        raise SetupError(f"audit log {path}: its last line was altered or is not whole; keep the file and name another")
    return line


def _append(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
