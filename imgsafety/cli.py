"""The command `imgsafety`: one file per sub-command in `commands`, put together here.

Exit status: 0 nothing flagged, 1 something flagged or undecided, 2 the command could not do its work, 128 and a signal's
number where that stopped it.
"""

import io
import sys
import traceback
import warnings

import click

from imgsafety import __version__
from imgsafety.commands.audit import audit
from imgsafety.commands.check import check, check_edit
from imgsafety.commands.decide import decide
from imgsafety.commands.info import info
from imgsafety.commands.report import report
from imgsafety.commands.scan import scan
from imgsafety.commands.selftest import selftest
from imgsafety.commands.serve import serve
from imgsafety.commands.watch import watch
from imgsafety.errors import ImgSafetyError
from imgsafety.terminal import FAILED, INTERRUPTED, NOTHING_FLAGGED


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        status = cli.main(argv, prog_name="imgsafety", standalone_mode=False)
        return int(status or NOTHING_FLAGGED)
    except click.ClickException as problem:
        problem.show()
    except ImgSafetyError as problem:
        click.echo(f"imgsafety: {problem}", err=True)
    except SystemExit:  # click's answer to a reader of our output that has seen enough; nobody is left to tell
        return FAILED
    except OSError as problem:
        click.echo(f"imgsafety: cannot write the results: {problem}", err=True)
    except (KeyboardInterrupt, click.Abort):
        click.echo("imgsafety: interrupted", err=True)
        return INTERRUPTED
    return FAILED


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Check pictures for people in minimal attire and for people who appear to be minors.

    Exit status: 0 nothing flagged, 1 something flagged (by a label too) or undecided, 2 the command could not do its work, 128 and
    a signal's number (130 for Ctrl-C) where that stopped it.
    """


for _command in (audit, scan, check, check_edit, decide, info, report, selftest, serve, watch):
    cli.add_command(_command)


def run() -> None:
    """Entry point of the installed command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Pillow's remarks on damaged files; each file has its own line here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the scan
    try:
        status = main()
    except Exception:  # noqa: BLE001  whatever it is: Python's own exit status for it is 1, which says that something is flagged
        traceback.print_exc()
        status = FAILED
    sys.exit(status)
