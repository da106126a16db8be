"""`imgsafety selftest`: does this installation work at all?"""

from typing import Any

import click

from imgsafety.scan import Scanner
from imgsafety.selftest import run_selftest
from imgsafety.terminal import FAILED, NOTHING_FLAGGED, scanner_options


@click.command(short_help="Show that model and policy work together.")
@scanner_options
def selftest(**settings: Any) -> int:
    """Show with drawn frames that model, runtime and policy work together; needs no real picture."""
    scanner = Scanner(**settings)
    report = run_selftest(scanner.session, scanner.policy, scanner.check, scanner.check_edit)
    for step in report.steps:
        click.echo(f"{'ok' if step.passed else 'FAILED':<6}  {step.name:<13} {step.detail}")
    return NOTHING_FLAGGED if report.passed else FAILED
