"""`imgsafety info`: what would judge, and by which rules."""

from typing import Any

import click

from imgsafety import __version__
from imgsafety.runs import versions
from imgsafety.scan import Scanner
from imgsafety.terminal import NOTHING_FLAGGED, scanner_options


@click.command(short_help="Show model, heads, policy and versions.")
@scanner_options
def info(**settings: Any) -> int:
    """Show the model, its heads, the policy, the provider and versions."""
    scanner = Scanner(**settings)
    session, policy = scanner.session, scanner.policy
    click.echo(f"imgsafety    {__version__}")
    click.echo(f"model        {session.spec.identity}  {session.path}")
    click.echo(f"             sha256 {session.sha256}")
    first = f", first look of --cascade {session.spec.first_size} x {session.spec.first_size}" if session.spec.first_size else ""
    click.echo(f"input        {session.spec.size} x {session.spec.size} pixels{first}")
    for head in session.spec.heads:
        click.echo(f"head         {head.name}: {' '.join(head.labels)}  (temperature {head.temperature:.3f})")
    click.echo(f"policy       {policy.name}  sha256 {policy.sha256}")
    for rule in policy.rules:
        when = [f"{name} >= {threshold:g}" for name, threshold in rule.when.items()]
        when += [f"{name} < {threshold:g} in the picture that came in" for name, threshold in rule.before_below.items()]
        click.echo(f"  {rule.verdict:<9}  {rule.name}: {' and '.join(when)}")
    if policy.cascade:
        below = " and ".join(f"{name} < {value:g}" for name, value in policy.cascade.items())
        click.echo(f"  settled    by the first look of --cascade: {below}")
    for look, least in policy.least.items():
        above = " and ".join(f"{name} >= {value:g}" for name, value in least.items())
        scan = "" if look == "zoom" else " of --thorough"
        click.echo(f"  in a {look}{scan} rules ask for at least: {above}")
    if not policy.zoom:
        click.echo("  no zoom    this policy has no [zoom] table: small people are looked at as they are, and missed more")
    click.echo(f"provider     {session.provider}")
    known = versions()
    shown = ", ".join(f"{name} {known[name]}" for name in ("onnxruntime", "numpy", "pillow", "imagecodecs"))
    click.echo(f"versions     {shown}")
    return NOTHING_FLAGGED
