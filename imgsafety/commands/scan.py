"""`imgsafety scan`: judge folders, archives and files; with `--run`, into a file that the same command goes on with."""

import codecs
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import click

from imgsafety import sink, source
from imgsafety.audit_log import Judge, open_log
from imgsafety.errors import SetupError
from imgsafety.result import Result
from imgsafety.runs import scan_run
from imgsafety.scan import Scanner
from imgsafety.source import Selection
from imgsafety.store import FLAGGED as FLAGGED_ROWS
from imgsafety.store import files_of, open_to_write
from imgsafety.terminal import (
    FAILED,
    FLAGGED,
    NOTHING_FLAGGED,
    batch_options,
    open_output,
    refuse_overwriting,
    scanner_options,
    stop_on_signals,
    summarise,
    with_options,
    with_progress,
)

MOST_SHOWN = 5  # of the paths, in a message
SIGNAL_BASE = 128  # what a shell adds to a signal's number for the exit status


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which files of all that are there."""
    options = (
        click.option("--include", multiple=True, help="Only files whose name, or path below PATH, matches: '*.png', '2025/*'."),
        click.option("--exclude", multiple=True, help="No file whose name or path matches; a folder that matches is not entered."),
        click.option("--max-files", type=click.IntRange(1), help="Stop after so many files."),
        click.option("--sample", type=click.IntRange(1), help="Judge a uniform random sample of so many files."),
        click.option("--seed", type=int, default=0, show_default=True, help="Another seed is another sample."),
    )
    return with_options(command, options)


@click.command(short_help="Judge folders, files and archives.")
@click.argument("paths", nargs=-1, type=click.Path(readable=False))
@click.option(
    "--files-from",
    type=click.File("rb"),
    metavar="LIST",
    help="Also judge what this file names, a name to a line or ended by NUL; - is standard input (find … -print0).",
)
@scanner_options
@batch_options
@selection_options
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(sink.FORMATS)),
    default="text",
    show_default=True,
    help="text lists what is flagged; jsonl and csv hold every picture.",
)
@click.option("--output", type=click.Path(), help="Write results to this file instead of the terminal.")
@click.option(
    "--audit-log",
    type=click.Path(dir_okay=False),
    help="Also append every verdict to this file, in which later changes show. See `audit verify`.",
)
@click.option(
    "--run",
    type=click.Path(dir_okay=False),
    help="Keep the scan in this file: stop it in any way, give the same command again, and it goes on; what it writes then holds "
    "all of the run; of a picture that is judged again the later line counts. See `report` and `decide`.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray scans on a cluster: PATHS and --output may be addresses (s3://…), and --output is a folder of Parquet files that "
    "the same command goes on with. Needs the extra `ray`.",
)
def scan(
    paths: tuple[str, ...],
    files_from: BinaryIO | None,
    format_: str,
    output: str | None,
    audit_log: str | None,
    run: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_files: int | None,
    sample: int | None,
    seed: int,
    engine: str,
    **settings: Any,
) -> int:
    """Judge every picture in PATHS: files, archives, and folders with all that is below them."""
    list_name = files_from.name if files_from else None
    if files_from:
        paths += _names_in(files_from)
    if not paths:
        nothing = f"{list_name} names nothing" if list_name else "nothing is named"
        raise click.UsageError(f"{nothing}: files, archives and folders are wanted, or --files-from with a list of them")
    if sample and max_files:
        raise click.UsageError("--sample draws from all files; it does not go with --max-files")
    selection = Selection(include, exclude, max_files, sample, seed)
    if engine == "ray":
        if not output or run or audit_log or format_ != "text":
            raise click.UsageError("--engine ray needs --output, a folder; it does not go with --run, --audit-log or --format")
        return _scan_on_cluster(paths, output, selection, settings)
    refuse_overwriting([*(files_of(run) if run else ()), audit_log, output], [list_name, *paths])
    there = {path: os.path.lexists(path) for path in paths}
    missing = [path for path in there if not there[path]]
    for path in missing:
        hint = "; addresses are for --engine ray, and nothing is fetched from the web" if "://" in path else ""
        click.echo(f"imgsafety: {sink.printable(path)}: no such file or folder{hint}", err=True)
    present = [path for path in paths if there[path]]
    if not present:
        return FAILED
    scanner = Scanner(**settings)
    with _open_audit_log(audit_log, scanner) as record:
        write = partial(_write, format_, output)
        if run:
            status = _scan_into(run, format_, scanner, paths, present, selection, write, record)
        else:
            status = _scan(scanner, present, selection, write, record)
    return FAILED if missing and status in (NOTHING_FLAGGED, FLAGGED) else status


def _names_in(file: BinaryIO) -> tuple[str, ...]:
    """The names in a list that `find -print0`, `git ls-files -z` and the like write, or in lines of any system."""
    data = file.read().removeprefix(codecs.BOM_UTF8)
    names = data.split(b"\0") if b"\0" in data else data.splitlines()
    return tuple(os.fsdecode(name) for name in names if name)


def _shown(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MOST_SHOWN:,} more" if len(paths) > MOST_SHOWN else ""
    return " ".join(map(sink.printable, paths[:MOST_SHOWN])) + more


Writer = Callable[[Iterator[Result], Iterable[Result]], None]  # of new results, and of those that a run held before
Record = Callable[[Result], None]


def _write(format_: str, output: str | None, results: Iterator[Result], earlier: Iterable[Result]) -> None:
    with open_output(output) as file:
        shown = sink.printable_lines if file.isatty() else str
        file.write(sink.HEADERS.get(format_, ""))
        for result in chain(earlier, results):
            # Asked anew each time: while a progress bar is drawn, it stands in for standard output.
            (sys.stdout if output is None else file).write(shown(sink.FORMATS[format_](result)))


@contextmanager
def _open_audit_log(path: str | None, scanner: Scanner) -> Iterator[Record]:
    """What records a verdict, in the log if there is one; its head is said at the end."""
    if path is None:
        yield lambda _: None
        return
    session, policy = scanner.session, scanner.policy
    with open_log(path, Judge(session.spec.identity, session.sha256, policy.name, policy.sha256)) as log:
        try:
            yield log.write
        finally:  # also of what a signal or a full disk cut short
            click.echo(f"{path}: head {log.head}", err=True)


def _scan(scanner: Scanner, paths: list[str], selection: Selection, write: Writer, record: Record) -> int:
    counts: Counter[str] = Counter()

    def counted(results: Iterator[Result]) -> Iterator[Result]:
        for result in results:
            record(result)
            counts[result.verdict] += 1
            counts["flagged"] += result.flagged
            yield result

    find = partial(source.find_images, paths, selection)
    write(counted(with_progress(scanner.scan(find()), find)), ())
    return summarise(counts, _shown(paths))


def _scan_on_cluster(paths: tuple[str, ...], output: str, selection: Selection, settings: dict[str, Any]) -> int:
    from rich.console import Console
    from rich.progress import track

    from imgsafety.integrations.ray import is_address, scan_ray

    for path in paths:
        if not is_address(path) and not os.path.lexists(path):
            raise SetupError(f"{sink.printable(path)}: no such file or folder")
    counts: Counter[str] = Counter()
    parts, judged = scan_ray(paths, output, selection, settings)
    for part in track(judged, "scan", parts, console=Console(stderr=True), disable=not sys.stderr.isatty()):
        counts.update(part)
    return summarise(counts, _shown(paths))


def _scan_into(
    run: str,
    format_: str,
    scanner: Scanner,
    paths: Sequence[str],
    present: Sequence[str],
    selection: Selection,
    write: Writer,
    record: Record,
) -> int:
    with open_to_write(run) as store, stop_on_signals() as received:
        results = scan_run(scanner, store, paths, selection, lambda: bool(received), record, present)
        # Whichever call judged them, what is written holds all of the run; of those that text leaves out none are read.
        earlier = store.results(condition=FLAGGED_ROWS if format_ == "text" else "1")
        counts = store.count()
        done = sum(counts.values()) - counts["flagged"]  # which are counted by their verdicts as well
        write(with_progress(results, partial(source.find_images, present, selection), done), earlier)
        counts = store.count()
        status = summarise(counts, _shown(present)) if any(counts.values()) or not received else NOTHING_FLAGGED
    if received:
        click.echo(f"imgsafety: stopped; what was judged is in {run}, and the same command goes on from there", err=True)
        return SIGNAL_BASE + received[0]
    return status
