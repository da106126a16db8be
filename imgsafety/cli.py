"""The command `imgsafety`: `scan` folders, `check` a few files, `check-edit` a pair, `info`, `selftest`.

Exit status: 0 nothing flagged, 1 something flagged or undecided, 2 the command could not do its work.
"""

import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from imgsafety import __version__, sink, source
from imgsafety.decode import FRAMES, MAX_PIXELS
from imgsafety.errors import ImgSafetyError, SetupError
from imgsafety.policy import shipped_policies
from imgsafety.result import Result
from imgsafety.scan import DEFAULT_BATCH_SIZE, Scanner
from imgsafety.selftest import run_selftest
from imgsafety.session import PROVIDERS

NOTHING_FLAGGED, FLAGGED, FAILED, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        status = cli.main(argv, prog_name="imgsafety", standalone_mode=False)
        return int(status or NOTHING_FLAGGED)
    except click.ClickException as problem:
        problem.show()
    except ImgSafetyError as problem:
        click.echo(f"imgsafety: {problem}", err=True)
    except BrokenPipeError:  # the reader of our output has seen enough; nothing is left to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        click.echo(f"imgsafety: cannot write the results: {problem}", err=True)
    except (KeyboardInterrupt, click.Abort):
        click.echo("imgsafety: interrupted", err=True)
        return INTERRUPTED
    return FAILED


def _scanner_options(command: Callable[..., Any]) -> Callable[..., Any]:
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
            help="Also judge tiles and turns of each picture: finds more of what is small or rotated, at 8 times the model's price.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


_details_format = click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="text is for people, jsonl for programs.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Check pictures for people in minimal attire and for people who appear to be minors.

    Exit status: 0 nothing flagged, 1 something flagged or undecided, 2 the command could not do its work.
    """


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@_scanner_options
@click.option(
    "--batch-size", type=click.IntRange(1), default=DEFAULT_BATCH_SIZE, show_default=True, help="Pictures per call of the model."
)
@click.option("--workers", type=click.IntRange(1), help="Threads; default: one per core.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(sink.FORMATS)),
    default="text",
    show_default=True,
    help="text lists what is flagged; jsonl and csv hold every picture.",
)
@click.option("--output", type=click.Path(dir_okay=False), help="Write results to this file instead of the terminal.")
def scan(paths: tuple[str, ...], format_: str, output: str | None, **settings: Any) -> int:
    """Judge every picture in PATHS: files, and folders with all that is below them."""
    missing = [path for path in paths if not os.path.lexists(path)]
    for path in missing:
        click.echo(f"imgsafety: {sink.printable(path)}: no such file or folder", err=True)
    present = [path for path in paths if path not in missing]
    if not present:
        return FAILED
    scanner = Scanner(**settings)
    counts: Counter[str] = Counter()
    with _open_output(output) as file:
        file.write(sink.HEADERS.get(format_, ""))
        for result in _with_progress(scanner.scan(source.find_images(present)), present):
            file.write(sink.FORMATS[format_](result))
            counts[result.verdict] += 1
            counts["flagged"] += result.flagged
    total = sum(counts.values()) - counts["flagged"]
    if not total:
        raise SetupError(f"no pictures in {', '.join(map(sink.printable, present))}")
    shown = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in ("allow", "review", "block", "undecided"))
    click.echo(f"{total:,} pictures: {shown}; {counts['flagged']:,} flagged", err=True)
    if missing:
        return FAILED
    return FLAGGED if counts["flagged"] else NOTHING_FLAGGED


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@_scanner_options
@click.option("--map", "maps", is_flag=True, help="Also say where: the share of each label per place of a coarse grid.")
@_details_format
def check(files: tuple[str, ...], maps: bool, format_: str, **settings: Any) -> int:
    """Judge a few FILES and show everything that is known of each."""
    scanner = Scanner(**settings)
    results = [scanner.check(file, maps=maps) for file in files]
    return _show(results, "jsonl" if maps else format_)


@cli.command("check-edit")
@click.argument("before", type=click.Path())
@click.argument("after", type=click.Path())
@_scanner_options
@_details_format
def check_edit(before: str, after: str, format_: str, **settings: Any) -> int:
    """Judge AFTER, an edit of BEFORE: was somebody undressed?"""
    return _show([Scanner(**settings).check_edit(before, after)], format_)


@cli.command()
@_scanner_options
def info(**settings: Any) -> int:
    """Show the model, its heads, the policy, the provider and versions."""
    import numpy
    import onnxruntime
    import PIL

    scanner = Scanner(**settings)
    session, policy = scanner.session, scanner.policy
    click.echo(f"imgsafety    {__version__}")
    click.echo(f"model        {session.spec.identity}  {session.path}")
    click.echo(f"             sha256 {session.sha256}")
    click.echo(f"input        {session.spec.size} x {session.spec.size} pixels")
    for head in session.spec.heads:
        click.echo(f"head         {head.name}: {' '.join(head.labels)}  (temperature {head.temperature:.3f})")
    click.echo(f"policy       {policy.name}  sha256 {policy.sha256}")
    for rule in policy.rules:
        when = [f"{name} >= {threshold:g}" for name, threshold in rule.when.items()]
        when += [f"{name} < {threshold:g} in the picture that came in" for name, threshold in rule.before_below.items()]
        click.echo(f"  {rule.verdict:<9}  {rule.name}: {' and '.join(when)}")
    click.echo(f"provider     {session.provider}")
    click.echo(f"versions     onnxruntime {onnxruntime.__version__}, numpy {numpy.__version__}, pillow {PIL.__version__}")
    return NOTHING_FLAGGED


@cli.command()
@_scanner_options
def selftest(**settings: Any) -> int:
    """Show with drawn frames that model, runtime and policy work together; needs no real picture."""
    scanner = Scanner(**settings)
    report = run_selftest(scanner.session, scanner.policy, scanner.check, scanner.check_edit)
    for step in report.steps:
        click.echo(f"{'ok' if step.passed else 'FAILED':<6}  {step.name:<13} {step.detail}")
    return NOTHING_FLAGGED if report.passed else FAILED


def _show(results: list[Result], format_: str) -> int:
    for result in results:
        lines = sink.describe(result) if format_ == "text" else [sink.to_jsonl(result).rstrip("\n")]
        for line in lines:
            click.echo(line)
    return FLAGGED if any(result.flagged for result in results) else NOTHING_FLAGGED


@contextmanager
def _open_output(output: str | None) -> Iterator[TextIO]:
    """The file to write to, or standard output. Names that are not UTF-8 keep their bytes."""
    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
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


def _with_progress(results: Iterator[Result], paths: Iterable[str]) -> Iterator[Result]:
    """Pass results through; on a terminal show rate, time left and what was flagged so far."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate, flagged_so_far = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[flagged]:,} flagged")
    columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), flagged_so_far)
    # stdout is redirected through the bar only when it is the same terminal; a pipe must stay clean.
    same_terminal = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=same_terminal) as progress:
        task = progress.add_task("scan", total=None, flagged=0, rate="")
        started = time.monotonic()
        threading.Thread(target=_count, args=(paths, progress, task), daemon=True).start()
        flagged = 0
        for result in results:
            flagged += result.flagged
            # Results come in bursts, a batch at a time; the mean since the start is what a person can use.
            rate = (progress.tasks[0].completed + 1) / (time.monotonic() - started)
            progress.update(task, advance=1, flagged=flagged, rate=f"{rate:,.0f}/s")
            yield result


def _count(paths: Iterable[str], progress: Any, task: Any) -> None:
    """List the same folders beside the scan, so that the bar learns its total without holding up work."""
    progress.update(task, total=sum(1 for _ in source.find_images(paths)))


def run() -> None:
    """Entry point of the installed command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Pillow's remarks on damaged files; each file has its own line here
    sys.exit(main())
