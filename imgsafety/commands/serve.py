"""`imgsafety serve`: the check as an HTTP service."""

import ipaddress
import signal
from typing import Any

import click

from imgsafety.errors import SetupError
from imgsafety.scan import MAX_WAIT, Scanner
from imgsafety.terminal import NOTHING_FLAGGED, batch_options, scanner_options


@click.command(short_help="Answer over HTTP.")
@scanner_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than loopback need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--token",
    envvar="IMGSAFETY_TOKEN",
    show_envvar=True,
    help="Bearer token to ask for; better set in the environment, where other users cannot read it.",
)
@click.option("--max-bytes", type=click.IntRange(1), default=32 * 1024 * 1024, show_default=True, help="Larger bodies are refused.")
@click.option("--max-files", type=click.IntRange(1), default=64, show_default=True, help="Pictures in one batch.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for a body to arrive, and again to be judged; then undecided.",
)
@click.option("--max-connections", type=click.IntRange(1), default=128, show_default=True, help="At once; more are answered 503.")
@batch_options
@click.option(
    "--max-wait",
    type=click.FloatRange(0),
    default=MAX_WAIT,
    show_default=True,
    help="Seconds that a picture may wait to be judged together with others.",
)
def serve(
    host: str, port: int, token: str | None, max_bytes: int, max_files: int, timeout: float, max_connections: int, **settings: Any
) -> int:
    """Answer over HTTP: /check, /check-batch, /check-edit, /healthz, /metrics, and the description at /docs."""
    try:
        from imgsafety.integrations import serve as service
    except ImportError as problem:
        raise SetupError(f"{problem}; the service needs more: pip install 'imgsafety[serve]'") from problem
    if not token and not _is_loopback(host):
        raise SetupError(f"host {host} can be reached from other machines: set IMGSAFETY_TOKEN, or listen on 127.0.0.1")
    scanner = Scanner(**settings, timeout=timeout)  # what nobody waits for any more is not decoded further
    scanner.selftest()  # the service would run it too, but only log what it raises
    limits = service.ServiceLimits(max_bytes, max_files, timeout, max_connections)
    # uvicorn ends gracefully on the first signal and then raises it again; to have ended so is success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    service.serve(service.create_app(scanner, limits, token), host, port, limits)
    return NOTHING_FLAGGED


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
