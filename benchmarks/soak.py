"""Does anything grow? `python benchmarks/soak.py FOLDER --minutes 60`

Threads judge the pictures of a folder again and again, as paths, bytes and decoded pictures in turn, and broken bytes now and
then. Once a minute it notes memory and open descriptors. Fails when memory after the first minutes, which fill caches,
grows by more than 5 %, or when a descriptor is left open. Linux.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from PIL import Image

from imgsafety import Scanner, find_images

MINUTE = 60.0
SETTLED_AFTER = 0.1  # of the time: until then caches fill
GROWTH = 1.05
BROKEN = b"\xff\xd8\xff nothing"


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--minutes", type=click.IntRange(2), default=60, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "json_", type=click.Path(dir_okay=False, path_type=Path), help="Write all notes here.")
def main(folder: Path, minutes: int, threads: int, json_: Path | None) -> None:
    paths = [path for path in itertools.islice(find_images([folder]), 500) if isinstance(path, Path)]
    if not paths:
        raise click.ClickException(f"no pictures in {folder}")
    scanner, ended = Scanner(), threading.Event()
    counts = [Counter[str]() for _ in range(threads)]
    callers = [
        threading.Thread(target=call, args=(scanner, paths[number % len(paths) :] + paths[: number % len(paths)], ended, count))
        for number, count in enumerate(counts)
    ]
    for caller in callers:
        caller.start()
    notes = []
    try:
        for minute in range(1, minutes + 1):
            time.sleep(MINUTE)
            calls = sum(count.total() for count in counts)
            notes.append({"minute": minute, "mebibytes": resident(), "descriptors": descriptors(), "calls": calls})
            click.echo("  ".join(f"{name} {value:,}" for name, value in notes[-1].items()))
        dead = sum(not caller.is_alive() for caller in callers)
    finally:
        ended.set()
    for caller in callers:
        caller.join()
    settled = notes[int(len(notes) * SETTLED_AFTER) :]
    first, most = settled[0]["mebibytes"], max(note["mebibytes"] for note in settled)
    # Each thread may hold one file open at the moment of a note.
    leaked = max(0, settled[-1]["descriptors"] - settled[0]["descriptors"] - threads)
    total = dict(sum(counts, Counter()))
    click.echo(f"{total}; memory {first} to at most {most} MiB; descriptors left open: {leaked}; threads that died: {dead}")
    if json_:
        json_.write_text(json.dumps({"counts": total, "notes": notes}, indent=1) + "\n")
    sys.exit(most > first * GROWTH or leaked > 0 or dead > 0)


def call(scanner: Scanner, paths: list[Path], ended: threading.Event, counts: Counter[str]) -> None:
    """Judge the pictures in turn until the end."""
    for number, path in enumerate(itertools.cycle(paths)):
        if ended.is_set():
            return
        counts[scanner.check(item(path, number)).verdict] += 1


def item(path: Path, number: int) -> Any:
    """The picture in one of the ways that callers hold it."""
    match number % 4:
        case 0:
            return path
        case 1:
            return path.read_bytes()
        case 2:
            with Image.open(path) as image:
                return image.convert("RGB")
        case _:
            return BROKEN


def resident() -> int:
    """Resident memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
