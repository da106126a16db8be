"""Many callers, one scanner: does judging them together pay? `python benchmarks/concurrency.py FOLDER`

Four ways to serve the same calls on the same files: one caller after the other, with `check` and with `submit` (which then waits
for nobody), every caller its own `check` in its own thread, and every caller its own `submit` (micro-batching). Each caller asks
again as soon as it is answered. Shows throughput and the 50th and 95th percentile of latency per way, as medians over rounds that
take turns, and the throughput against the faster way of one caller.
With `--items decoded` callers hold decoded pictures, as a generator does, and with `bytes` they hold files.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from imgsafety import Result, Scanner, find_images
from imgsafety.scan import FIRST_LOOKS, MAX_WAIT

Call = Callable[[Any], Result]


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--callers", default=64, show_default=True)
@click.option("--calls", default=512, show_default=True, help="Calls per round, over all callers.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--items", type=click.Choice(["bytes", "decoded"]), default="bytes", show_default=True, help="What each caller holds."
)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--max-wait", default=MAX_WAIT, show_default=True, help="Latency budget in seconds.")
@click.option("--cascade", is_flag=True, help="What is submitted takes the first look of a cascade; `check` never does.")
@click.option("--model", type=click.Path(), help="Model file; default: the shipped one.")
@click.option("--policy", default="default", show_default=True)
def main(
    folder: Path,
    callers: int,
    calls: int,
    rounds: int,
    items: str,
    batch_size: int,
    max_wait: float,
    cascade: bool,
    model: str | None,
    policy: str,
) -> None:
    scanner = Scanner(model, policy, batch_size=batch_size, max_wait=max_wait, cascade=cascade)
    alone = Scanner(model, policy, batch_size=batch_size, max_wait=0, cascade=cascade)
    files = (path for path in find_images([folder]) if isinstance(path, Path))  # members of archives are left out
    pictures = [load(path, items) for path, _ in zip(files, range(calls), strict=False)]
    if not pictures:
        raise click.ClickException(f"no pictures in {folder}")
    work = [pictures[index % len(pictures)] for index in range(calls)]
    ways: dict[str, tuple[int, Call]] = {
        "one by one, check": (1, scanner.check),
        "one by one, submit": (1, lambda item: alone.submit(item).result()),
        f"{callers} callers, check": (callers, scanner.check),
        f"{callers} callers, submit": (callers, lambda item: scanner.submit(item).result()),
    }
    for count, call in ways.values():  # load sessions and warm caches
        measure(call, work[: 2 * batch_size], count)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (count, call) in ways.items():
            found[name].append(measure(call, work, count))
    taken = batch_size * (FIRST_LOOKS if cascade else 1)  # by one core at a time
    show(found, one_batch(scanner, work[:taken]), max_wait)
    scanner.close()
    alone.close()


def load(path: Path, items: str) -> Any:
    return path.read_bytes() if items == "bytes" else Image.open(path).convert("RGB")


def measure(call: Call, work: list[Any], callers: int) -> tuple[float, float, float]:
    """Return pictures per second, and the 50th and 95th percentile of latency in seconds."""

    def timed(item: Any) -> float:
        start = time.perf_counter()
        call(item)
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        latencies = list(threads.map(timed, work))
    elapsed = time.perf_counter() - start
    return len(work) / elapsed, float(np.percentile(latencies, 50)), float(np.percentile(latencies, 95))


def one_batch(scanner: Scanner, batch: list[Any]) -> float:
    """Seconds that a full batch takes when every core has one, as it is under load."""
    start = time.perf_counter()
    for _ in scanner.scan(batch * scanner.workers):
        pass
    return time.perf_counter() - start


def show(found: dict[str, list[tuple[float, float, float]]], batch: float, max_wait: float) -> None:
    table = Table("way", "pictures/s", "p50", "p95", "against one by one")
    rates = {name: statistics.median(rate for rate, _, _ in rounds) for name, rounds in found.items()}
    alone = max(rate for name, rate in rates.items() if name.startswith("one by one"))
    for name, rounds in found.items():
        p50, p95 = (statistics.median(entry[index] for entry in rounds) for index in (1, 2))
        table.add_row(name, f"{rates[name]:,.0f}", f"{1000 * p50:.0f} ms", f"{1000 * p95:.0f} ms", f"{rates[name] / alone:.2f} x")
    Console().print(table)
    Console().print(f"budget {1000 * max_wait:g} ms, one batch on every core {1000 * batch:.0f} ms")


if __name__ == "__main__":
    main()
