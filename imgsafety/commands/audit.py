"""`imgsafety audit verify`: is the log that `scan --audit-log` wrote still what it was?"""

import click

from imgsafety.audit_log import verify as verify_log
from imgsafety.terminal import FLAGGED, NOTHING_FLAGGED


@click.group()
def audit() -> None:
    """Work with the log of `scan --audit-log`."""


@audit.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--head", help="The hash that an earlier run printed: without it, lines removed at the end leave no trace.")
def verify(file: str, head: str | None) -> int:
    """Find altered, removed and reordered lines in FILE. Exit status 1 when there are any."""
    chain = verify_log(file, head)
    for line, fault in chain.faults:
        click.echo(f"line {line}: {fault}")
    click.echo(f"{chain.lines:,} lines, {len(chain.faults):,} faults, head {chain.head}", err=True)
    return FLAGGED if chain.faults else NOTHING_FLAGGED
