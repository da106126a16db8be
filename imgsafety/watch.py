"""Files to results as they appear, for generators that write into a folder.

In: a folder. Out: a `Result` for each picture below it, once the picture is whole. What a reader would get wrong: a file that
appears is not a file that is written. A file is judged once it has rested for a moment, and again when it changes, is replaced or
can be read at last; should the system drop an event, the next listing of the folder finds the file, and the last one is at the end.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from imgsafety.errors import SetupError
from imgsafety.result import Result
from imgsafety.scan import Scanner
from imgsafety.source import can_read, list_file, state_of

REST = 0.2  # seconds a file must not change before it counts as written
GIVE_UP = 60.0  # seconds after which a file that keeps changing is judged as it is
LOOK_AGAIN = 5.0  # seconds between listings of the folder; more where listing takes long
STEP_MS = 50
UNREAD = "unread"  # a state that `state_of` never gives


def watch(
    scanner: Scanner,
    folder: str | os.PathLike[str],
    stop: Callable[[], bool] = lambda: False,
    existing: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Yield a result for every picture that appears or changes below a folder, until `stop` says yes.

    What was not judged by then is judged as it is. existing: also judge what is there already. ready: called once, when what
    appears from now on will be judged. Raises `SetupError` when the folder is not there, or without the packages of the extra
    `watch`. What appears while others are judged is not missed. Linked folders are not entered.
    """
    folder = Path(os.path.abspath(folder))  # as the paths of events are: the same file must not have two names
    if not os.path.isdir(folder):
        raise SetupError(f"{folder} is not a folder that can be watched")
    events = _events(folder)
    judged = {} if existing else {path: state_of(path) for path in _files(folder)}
    resting: dict[Path, tuple[str, float, float]] = {}  # state, since when, first seen
    ready()
    for changed in _changes(folder, events, stop):
        rested = _rested({*changed, *resting}, resting, judged)
        yield from scanner.scan(item for path in rested for item in list_file(path))
    left = _rested({*_files(folder), *resting}, resting, judged, at_once=True)
    yield from scanner.scan(item for path in left for item in list_file(path))


def _events(folder: Path) -> Iterator[set[tuple[Any, str]]]:
    try:
        from watchfiles import watch as events_of
    except ImportError as problem:
        raise SetupError("watching needs more packages: pip install 'imgsafety[watch]'") from problem
    return events_of(
        folder,
        watch_filter=None,
        debounce=2 * STEP_MS,
        step=STEP_MS,
        rust_timeout=STEP_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,  # what is closed is listed, and so reported
    )


def _changes(folder: Path, events: Iterable[set[tuple[Any, str]]], stop: Callable[[], bool]) -> Iterator[Iterable[Path]]:
    """Yield files that may have changed, several times a second; now and then, and at first, all that are there."""
    next_listing = 0.0
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


def _rested(
    paths: Iterable[Path], resting: dict[Path, tuple[str, float, float]], judged: dict[Path, str], at_once: bool = False
) -> list[Path]:
    """Pick the files that have stopped changing since they were last judged; keep the others waiting, unless it is `at_once`."""
    ready = []
    now = time.monotonic()
    for path in sorted(paths):
        state = state_of(path)
        before, since, first = resting.pop(path, ("", now, now))
        if not state:  # gone, as temporary names are; another file may come by its name
            judged.pop(path, None)
        elif _is_known(path, state, judged.get(path)):
            continue
        elif at_once or (state == before and now - since >= REST) or now - first >= GIVE_UP:
            judged[path] = state if can_read(path) else UNREAD
            ready.append(path)
        else:
            resting[path] = (state, since if state == before else now, first)
    return ready


def _is_known(path: Path, state: str, known: str | None) -> bool:
    return known == state or (known == UNREAD and not can_read(path))
