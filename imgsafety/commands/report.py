"""`imgsafety report`: what a run found, for people (HTML) and for programs (JSON, CSV, Parquet)."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from imgsafety import sink
from imgsafety.errors import SetupError
from imgsafety.page import points, to_html
from imgsafety.report import MOST_FLAGGED, VIEWS, compare, find_rates, for_public, list_flagged, summarise
from imgsafety.store import Store, files_of, open_to_read
from imgsafety.terminal import NOTHING_FLAGGED, open_output, refuse_overwriting

FILE = click.Path(dir_okay=False)


@click.command(short_help="Report what scans found, or what changed.")
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option("--html", type=FILE, help="Write one self-contained page. Needs the extra `report`.")
@click.option("--json", "json_", type=FILE, help="Write all figures, without the list of files.")
@click.option("--csv", type=FILE, help="Write every file with its scores and verdict as a table.")
@click.option("--parquet", type=FILE, help="The same as Parquet, with every score. Needs the extra `parquet`.")
@click.option(
    "--duplicates",
    type=click.Choice(list(VIEWS)),
    default="count",
    show_default=True,
    help="Count every file, or files with the same bytes once.",
)
@click.option(
    "--error-rates", type=FILE, help="Correct by the counts in this JSON file, of the form of weights/operating_points.json."
)
@click.option(
    "--public",
    is_flag=True,
    help="Leave out of page and JSON what leads to single files or tells of the machine: the list, names, folders, the system.",
)
@click.option(
    "--rows", type=click.IntRange(0), default=MOST_FLAGGED, show_default=True, help="Flagged files that the page lists, at most."
)
def report(
    runs: tuple[str, ...],
    html: str | None,
    json_: str | None,
    csv: str | None,
    parquet: str | None,
    duplicates: str,
    error_rates: str | None,
    public: bool,
    rows: int,
) -> int:
    """Report what a scan into RUN found, or what changed from one RUN to a second.

    Without an option, says the figures that can be quoted. Reports may be made while the scan goes on.
    """
    _check_choice(len(runs), bool(csv or parquet), public)
    refuse_overwriting([html, json_, csv, parquet], [*(file for run in runs for file in files_of(run)), error_rates])
    with ExitStack() as stack:
        stores = [stack.enter_context(open_to_read(run)) for run in runs]
        summaries = [summarise(store, find_rates(store, error_rates), duplicates) for store in stores]
        changes = compare(stores[0], stores[1], summaries) if len(stores) == 2 else None
        if public:
            summaries = [for_public(summary) for summary in summaries]
        if html:
            flagged = [None if public else list_flagged(store, duplicates, rows) for store in stores]
            _write(html, to_html(summaries, flagged, changes))
        if json_:
            _write(json_, json.dumps({"runs": summaries, "changes": changes}, indent=2) + "\n")
        if csv:
            _write_csv(csv, stores[0], VIEWS[duplicates])
        if parquet:
            sink.write_parquet(stores[0].results(VIEWS[duplicates]), stores[0].heads, parquet)
    _say(summaries)
    if changes:
        _say_changes(changes)
    return NOTHING_FLAGGED


def _check_choice(runs: int, table: bool, public: bool) -> None:
    if runs > 2:
        raise click.UsageError("a report is of one run, or compares two")
    if table and runs == 2:
        raise click.UsageError("--csv and --parquet write the files of one run")
    if table and public:
        raise click.UsageError("--csv and --parquet list every file, which --public leaves out")


def _write(path: str, text: str) -> None:
    data = text.encode(errors="backslashreplace")  # names need not be UTF-8
    try:
        Path(path).write_bytes(data)
    except OSError as problem:
        raise SetupError(f"output {path} cannot be written: {problem.strerror}") from problem


def _write_csv(path: str, store: Store, view: str) -> None:
    with open_output(path) as file:
        file.write(sink.HEADERS["csv"])
        file.writelines(map(sink.to_csv, store.results(view)))


def _say_changes(changes: dict[str, Any]) -> None:
    for name, kinds in changes["figures"].items():
        kind = "corrected" if kinds["corrected"] else "raw"
        if change := kinds[kind]:
            value, low, high = (points(change[end]) for end in ("value", "low", "high"))
            how = {"raw": "as counted", "corrected": "corrected"}[kind]
            click.echo(f"change of {name.replace('_', ' ')}: {value} points ({low} to {high}, {how})")
    for caution in changes["cautions"]:
        click.echo(caution, err=True)


def _say(summaries: Sequence[dict[str, Any]]) -> None:
    for summary in summaries:
        click.echo(f"{summary['name']}: {summary['quote']}")
        if "unknown" in summary["error_rates"]:
            click.echo(f"{summary['name']}: not corrected: {summary['error_rates']['unknown']}", err=True)
