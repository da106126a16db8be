"""`imgsafety watch`: a line of JSON for each picture that a generator writes into a folder."""

from typing import Any

import click

from imgsafety import sink
from imgsafety.scan import Scanner
from imgsafety.terminal import FLAGGED, NOTHING_FLAGGED, open_output, scanner_options, stop_on_signals
from imgsafety.watch import watch as watch_folder


@click.command(short_help="Judge pictures as they appear in a folder.")
@click.argument("folder", type=click.Path())
@scanner_options
@click.option("--existing", is_flag=True, help="Also judge what is in the folder already.")
def watch(folder: str, existing: bool, **settings: Any) -> int:
    """Judge pictures as they appear below FOLDER, one line of JSON each, until SIGINT or SIGTERM.

    Says on standard error when it begins: what is written from then on has its line before the command ends.
    """

    def ready() -> None:
        click.echo(f"imgsafety: watching {click.format_filename(folder)}", err=True)

    scanner = Scanner(**settings)
    status = NOTHING_FLAGGED
    with stop_on_signals() as received, open_output(None) as file:
        for result in watch_folder(scanner, folder, lambda: bool(received), existing, ready):
            file.write(sink.to_jsonl(result))
            file.flush()
            status = FLAGGED if result.flagged else status
    return status
