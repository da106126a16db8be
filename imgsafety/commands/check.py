"""`imgsafety check` and `imgsafety check-edit`: everything that is known of a few files."""

from typing import Any

import click
from click.core import ParameterSource

from imgsafety.scan import Scanner
from imgsafety.terminal import details_format, scanner_options, show


@click.command(short_help="Judge a few files and show all that is known.")
@click.argument("files", nargs=-1, required=True, type=click.Path(readable=False))
@scanner_options
@click.option(
    "--map",
    "maps",
    is_flag=True,
    help="Also say where, as JSON: boxes (left, top, right, bottom from 0 to 1), and each score's share per place of a grid.",
)
@details_format
def check(files: tuple[str, ...], maps: bool, format_: str, **settings: Any) -> int:
    """Judge a few FILES and show everything that is known of each."""
    if maps and format_ == "text" and click.get_current_context().get_parameter_source("format_") is not ParameterSource.DEFAULT:
        raise click.UsageError("--map is numbers for programs; it goes with --format jsonl")
    scanner = Scanner(**settings)
    results = [scanner.check(file, maps=maps) for file in files]
    return show(results, "jsonl" if maps else format_)


@click.command("check-edit")
@click.argument("before", type=click.Path(readable=False))
@click.argument("after", type=click.Path(readable=False))
@scanner_options
@details_format
def check_edit(before: str, after: str, format_: str, **settings: Any) -> int:
    """Judge AFTER, an edit of BEFORE: was somebody undressed?"""
    return show([Scanner(**settings).check_edit(before, after)], format_)
