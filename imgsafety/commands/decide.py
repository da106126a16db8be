"""`imgsafety decide`: another policy for a run, from the scores it holds; no picture is read."""

import click

from imgsafety.policy import load_policy, shipped_policies
from imgsafety.runs import decide_run
from imgsafety.store import open_to_write
from imgsafety.terminal import summarise


@click.command(short_help="Apply another policy to the scores of a run.")
@click.argument("run", type=click.Path(dir_okay=False))
@click.option("--policy", required=True, help=f"The rules to apply: {', '.join(shipped_policies())}, or a TOML file.")
def decide(run: str, policy: str) -> int:
    """Apply another policy to the scores that RUN holds; no picture is read."""
    with open_to_write(run, create=False) as store:
        decide_run(store, load_policy(policy))
        return summarise(store.count(), run)
