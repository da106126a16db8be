"""What the commands share: exit statuses, options, output, progress, and stopping when asked to.

What a reader would get wrong: results go to standard output or a file, everything said to people goes to standard error.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from imgsafety import sink, source
from imgsafety.decode import FRAMES, MAX_PIXELS
from imgsafety.errors import SetupError
from imgsafety.policy import shipped_policies
from imgsafety.result import SEVERITY, Result
from imgsafety.scan import DEFAULT_BATCH_SIZE
from imgsafety.session import PROVIDERS

NOTHING_FLAGGED, FLAGGED, FAILED, INTERRUPTED = 0, 1, 2, 130


def scanner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that build a `Scanner`, the same for every command that judges."""
    options = (
        click.option(
            "--policy",
            default="default",
            show_default=True,
            help=f"Rules that turn scores into verdicts: {', '.join(shipped_policies())}, or a TOML file.",
        ),
        click.option("--model", type=click.Path(), help="Model file (.onnx) to use instead of the shipped one."),
        click.option(
            "--provider",
            type=click.Choice(list(PROVIDERS)),
            default="cpu",
            show_default=True,
            help="What runs the model. cuda and tensorrt need onnxruntime-gpu (see README).",
        ),
        click.option(
            "--frames",
            type=click.IntRange(1),
            default=FRAMES,
            show_default=True,
            help="Frames of an animation that are judged, spread over its length.",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(1),
            default=MAX_PIXELS,
            show_default=True,
            help="Larger pictures are undecided, without being decoded.",
        ),
        click.option(
            "--thorough",
            is_flag=True,
            help="Also judge turns and the negative of each picture: finds what was disguised, with 5 or 6 looks, not 1 or 2.",
        ),
        click.option(
            "--isolate",
            is_flag=True,
            help="Decode in worker processes: a decoder that crashes, hangs or takes all memory costs one picture, not the scan.",
        ),
    )
    return with_options(command, options)


def batch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a `Scanner` that judges many pictures together."""
    options = (
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            default=DEFAULT_BATCH_SIZE,
            show_default=True,
            help="Pictures per call of the model.",
        ),
        click.option("--workers", type=click.IntRange(1), help="Threads; default: one per core."),
        click.option(
            "--cascade",
            is_flag=True,
            help="Faster, misses more: a small network looks first, the whole one only where that is unsure; no zoom.",
        ),
    )
    return with_options(command, options)


def with_options(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Give a command these options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


details_format = click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="text is for people, jsonl for programs.",
)


def show(results: list[Result], format_: str) -> int:
    """Print everything about a few results, and return the exit status that follows."""
    for result in results:
        lines = sink.describe(result) if format_ == "text" else [sink.to_jsonl(result).rstrip("\n")]
        for line in lines:
            click.echo(line)
    return FLAGGED if any(result.flagged for result in results) else NOTHING_FLAGGED


def summarise(counts: Mapping[str, int], where: str) -> int:
    """Say how many pictures got which verdict, and return the exit status that follows."""
    total = sum(counts.get(verdict, 0) for verdict in SEVERITY)
    if not total:
        raise SetupError(f"no pictures in {where}")
    shown = ", ".join(f"{counts.get(verdict, 0):,} {verdict}" for verdict in ("allow", "review", "block", "undecided"))
    click.echo(f"{total:,} pictures: {shown}; {counts['flagged']:,} flagged", err=True)
    return FLAGGED if counts["flagged"] else NOTHING_FLAGGED


def refuse_overwriting(written: Iterable[str | None], read: Iterable[str | None]) -> None:
    """Raise `click.UsageError` when two files that a command writes are one, when it reads one of them, or one is a picture."""
    taken = {os.path.realpath(path) for path in read if path is not None}
    for path in written:
        if path is None:
            continue
        if os.path.realpath(path) in taken or (os.path.isfile(path) and source.is_judged(path)):
            raise click.UsageError(f"{path} is read or kept by this command, a picture or an archive: choose another to write to")
        taken.add(os.path.realpath(path))


@contextmanager
def open_output(output: str | None) -> Iterator[TextIO]:
    """The file to write to, or standard output. Names that are not UTF-8 keep their bytes."""
    if output is None:
        if sys.stdout is None:
            raise SetupError("standard output is closed; name a file with --output")
        if hasattr(sys.stdout, "reconfigure") and sys.stdout.encoding.lower() == "utf-8":
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        file = open(output, "w", encoding="utf-8", errors="surrogateescape", newline="")  # noqa: SIM115  # closed below
    except OSError as problem:
        raise SetupError(f"output {output} cannot be written: {problem.strerror}") from problem
    with file:
        yield file


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; a second one ends the program as usual."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, _: object) -> None:
        received.append(number)
        for signal_, handler in earlier.items():
            signal.signal(signal_, handler)
        click.echo("imgsafety: finishing what was begun; once more to end at once", err=True)

    earlier = {signal_: signal.signal(signal_, note) for signal_ in signals}
    try:
        yield received
    finally:
        for signal_, handler in earlier.items():
            signal.signal(signal_, handler)


def with_progress(results: Iterator[Result], candidates: Callable[[], Iterable[object]], done: int = 0) -> Iterator[Result]:
    """Pass results through; on a terminal show rate, time left and what was flagged so far.

    candidates: lists the same files again, beside the scan, so that the bar learns its total without holding up work.
    done: how many of them were judged before.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate, flagged_so_far = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[flagged]:,} flagged")
    columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), flagged_so_far)
    # stdout is redirected through the bar only when it is the same terminal; a pipe must stay clean.
    same_terminal = sys.stdout.isatty()
    console = Console(stderr=True, soft_wrap=True)  # else a long line of results would be broken where the terminal ends
    with Progress(*columns, console=console, redirect_stdout=same_terminal) as progress:
        task = progress.add_task("scan", total=None, completed=done, flagged=0, rate="")
        count = threading.Thread(target=lambda: progress.update(task, total=sum(1 for _ in candidates())), daemon=True)
        count.start()
        started, flagged = time.monotonic(), 0
        for judged, result in enumerate(results, start=1):
            flagged += result.flagged
            # Results come in bursts, a batch at a time; the mean since the start is what a person can use.
            progress.update(task, advance=1, flagged=flagged, rate=f"{judged / (time.monotonic() - started):,.0f}/s")
            yield result
