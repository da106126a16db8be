"""How soon does `imgsafety watch` answer? `python benchmarks/watch.py FOLDER`

Copies pictures of a folder, one at a time and then a thousand at once, into a folder that is watched, and notes when each has
its line.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import click

from imgsafety import find_images

SINGLE, PAUSE = 20, 0.4
BURST = 1000
START_UP = 3.0  # seconds until the watcher listens
PATIENCE = 60.0


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    pictures = [path for path in find_images([folder]) if isinstance(path, Path)][:BURST]
    if not pictures:
        raise click.ClickException(f"no pictures in {folder}")
    with tempfile.TemporaryDirectory() as watched:
        command = [sys.executable, "-m", "imgsafety", "watch", watched]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
            assert watcher.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
            answered: dict[str, float] = {}
            threading.Thread(target=note, args=(watcher.stdout, answered), daemon=True).start()
            time.sleep(START_UP)
            single = [put(pictures, Path(watched), f"single-{number}", PAUSE) for number in range(SINGLE)]
            wait(answered, SINGLE)
            delays = [answered[name] - written for name, written in single if name in answered]
            click.echo(
                f"one at a time: {len(delays)} of {SINGLE}, median {statistics.median(delays):.2f} s, most {max(delays):.2f} s"
            )
            burst = [put(pictures, Path(watched), f"burst-{number}", 0, number) for number in range(BURST)]
            wait(answered, SINGLE + BURST)
            last = max(answered.values()) - burst[-1][1]
            click.echo(f"at once: {len(answered) - SINGLE} of {BURST}, all within {last:.2f} s of the last one written")
            watcher.terminate()


def note(lines: IO[str], answered: dict[str, float]) -> None:
    """Keep when each file was answered."""
    for line in lines:
        answered[Path(json.loads(line)["path"]).name] = time.time()


def put(pictures: list[Path], watched: Path, stem: str, pause: float, number: int = 0) -> tuple[str, float]:
    """Copy one picture into the watched folder; return its name there and when it was written."""
    picture = pictures[number % len(pictures)]
    name = stem + picture.suffix
    shutil.copyfile(picture, watched / name)
    written = time.time()
    time.sleep(pause)
    return name, written


def wait(answered: dict[str, float], count: int) -> None:
    """Wait until so many files are answered, or patience ends."""
    end = time.time() + PATIENCE
    while len(answered) < count and time.time() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    main()
