"""Files to results as they appear, for generators that write into a folder.

In: a folder. Out: a `Result` for each picture below it, once the picture is whole. What a reader would get wrong: a file that
appears is not a file that is written. A file is judged once its size and date have rested for a moment, and again when they
change; should the system drop an event, the next listing of the folder finds the file.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imgsafety.errors import SetupError
from imgsafety.result import Result
from imgsafety.scan import Scanner
from imgsafety.source import list_file, stamp_of

REST = 0.2  # seconds a file must not change before it counts as written
GIVE_UP = 60.0  # seconds after which a file that keeps changing is judged as it is
LOOK_AGAIN = 5.0  # seconds between listings of the folder; more where listing takes long
STEP_MS = 50


def watch(
    scanner: Scanner, folder: str | os.PathLike[str], stop: Callable[[], bool] = lambda: False, existing: bool = False
) -> Iterator[Result]:
    """Yield a result for every picture that appears or changes below a folder, until `stop` says yes.

    existing: also judge what is there already. Raises `SetupError` when the folder is not there, or without the packages of the
    extra `watch`. What appears while others are judged is not missed. Linked folders are not entered.
    """
    folder = Path(os.path.abspath(folder))  # as the paths of events are: the same file must not have two names
    if not os.path.isdir(folder):
        raise SetupError(f"{folder} is not a folder that can be watched")
    judged = {} if existing else {path: stamp_of(path).mark for path in _files(folder)}
    resting: dict[Path, tuple[str, float, float]] = {}  # mark, since when, first seen
    for changed in _changes(folder, stop):
        ready = _rested({*changed, *resting}, resting, judged)
        yield from scanner.scan(item for path in ready for item in list_file(path))


def _changes(folder: Path, stop: Callable[[], bool]) -> Iterator[Iterable[Path]]:
    """Yield files that may have changed, several times a second; now and then all that are there."""
    try:
        from watchfiles import watch as events_of
    except ImportError as problem:
        raise SetupError("watching needs more packages: pip install 'imgsafety[watch]'") from problem
    next_listing = 0.0
    events = events_of(
        folder,
        watch_filter=None,
        debounce=2 * STEP_MS,
        step=STEP_MS,
        rust_timeout=STEP_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,  # what is closed is listed, and so reported
    )
    for batch in events:
        if stop():
            return
        if not os.path.isdir(folder):
            raise SetupError(f"{folder} is gone")
        if time.monotonic() >= next_listing:
            began = time.monotonic()
            files = list(_files(folder))
            next_listing = time.monotonic() + max(LOOK_AGAIN, 20 * (time.monotonic() - began))
            yield files
        named = {Path(name) for _, name in batch}
        yield [file for path in named for file in (_files(path) if os.path.isdir(path) else (path,))]


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is none, and folders that cannot be listed."""
    closed: list[Path] = []
    for at, _, names in os.walk(folder, onerror=lambda problem: closed.append(Path(problem.filename))):
        yield from (Path(at, name) for name in names)
    yield from closed


def _rested(paths: Iterable[Path], resting: dict[Path, tuple[str, float, float]], judged: dict[Path, str]) -> list[Path]:
    """Pick the files that have stopped changing since they were last judged; keep the others waiting."""
    ready = []
    now = time.monotonic()
    for path in sorted(paths):
        mark = stamp_of(path).mark
        before, since, first = resting.pop(path, ("", now, now))
        if not mark:  # gone, as temporary names are; another file may come by its name
            judged.pop(path, None)
        elif judged.get(path) == mark:
            continue
        elif (mark == before and now - since >= REST) or now - first >= GIVE_UP:
            judged[path] = mark
            ready.append(path)
        else:
            resting[path] = (mark, since if mark == before else now, first)
    return ready
