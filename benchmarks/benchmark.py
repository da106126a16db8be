"""How fast is imgsafety on this machine, on these files? `python benchmarks/benchmark.py FOLDER`

Throughput from files on disk to verdicts (by batch size and workers, and as a cascade), share of each stage, latency of one
picture, cold start and peak memory; with a GPU (`--provider cuda`) also of tensors in its memory, which needs torch; with `--peers`
other checks that are installed (NudeNet, OpenNSFW2), on the same files, in turns with ours. `--side 1024` first makes square JPEGs
of that side from the folder's pictures, in a temporary folder. Needs matplotlib for `--plot` (the extra `report`).
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from imgsafety import Scanner, find_images
from imgsafety.decode import Limits, decode
from imgsafety.preprocess import ZOOM, shrink, to_detail, to_pixels, zoom
from imgsafety.result import Part
from imgsafety.runs import versions
from imgsafety.scan import DEFAULT_BATCH_SIZE
from imgsafety.session import Session
from imgsafety.where import HEAD, focus

Judge = Callable[[list[str]], object]
FIRST_VERDICT = "from imgsafety import Scanner; import sys; print(Scanner().check(sys.argv[1]).verdict, flush=True)"
# Linux keeps ru_maxrss of the parent across exec; VmHWM is the new process's own.
PEAK = "print(next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
SCAN_ALL = "import sys; from imgsafety import Scanner; [None for _ in Scanner().scan(sys.argv[1:])]; "


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--side", type=int, help="Make square pictures of this side from the folder's first.")
@click.option(
    "--ending",
    type=click.Choice(["jpg", "png"]),
    default="jpg",
    show_default=True,
    help="Format of the pictures that --side makes.",
)
@click.option("--count", default=200, show_default=True, help="Pictures to use.")
@click.option("--rounds", default=5, show_default=True, help="Repetitions; the median is shown, with the range.")
@click.option("--model", type=click.Path(), help="Model file; default: the shipped one.")
@click.option("--provider", default="cpu", show_default=True)
@click.option("--peers", is_flag=True, help="Also time other checks that are installed: NudeNet, OpenNSFW2.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw throughput by batch size and workers (SVG or PNG).")
def main(
    folder: Path,
    side: int | None,
    ending: str,
    count: int,
    rounds: int,
    model: str | None,
    provider: str,
    peers: bool,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        files = list(islice((file for file in find_images([folder]) if isinstance(file, Path)), count))  # no members of archives
        if side:
            files = make_pictures(files, Path(scratch), side, ending)
        figures: dict[str, Any] = {
            "machine": machine(),
            "date": date.today().isoformat(),
            "pictures": len(files),
            "side": side,
            "ending": ending,
        }
        figures["throughput"] = throughput(files, rounds, model, provider)
        figures["stages"] = stages(files, rounds, model, provider)
        figures["latency"] = latency(files, model, provider)
        if provider != "cpu":
            figures["tensors"] = tensors(files, rounds, model, provider)
        figures["cold start"] = cold_start(files, rounds)
        if peers:
            figures["peers"] = beside_peers(files, rounds, model, provider)
    show(figures)
    if json_path:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")
    if plot:
        draw(figures["throughput"], plot)


def make_pictures(files: list[Path], folder: Path, side: int, ending: str) -> list[Path]:
    """Write square copies at `side` pixels, with a little grain so that they compress like photographs."""
    grain = np.random.default_rng(0)
    made = []
    for number, file in enumerate(files):
        with Image.open(file) as image:
            square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        values = np.asarray(square, dtype=np.int16) + grain.integers(-3, 4, (side, side, 1))
        made.append(folder / f"{number:05}.{ending}")
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(made[-1], quality=90)
    return made


def throughput(files: list[Path], rounds: int, model: str | None, provider: str) -> list[dict[str, Any]]:
    """Pictures per second from files to verdicts."""
    cores = len(os.sched_getaffinity(0))
    sizes = (1, 4, 16, 32) if provider == "cpu" else (4, 32, 128)
    settings = [(workers, batch, False) for workers in sorted({1, cores}) for batch in sizes]
    settings += [(workers, DEFAULT_BATCH_SIZE, True) for workers in sorted({1, cores})]
    found = []
    for workers, batch, cascade in settings:
        scanner = Scanner(model, provider=provider, workers=workers, batch_size=batch, cascade=cascade)
        seconds = timed(lambda scanner=scanner: sum(1 for _ in scanner.scan(files)), rounds)  # type: ignore[misc]
        rates = [len(files) / value for value in seconds]
        found.append({"workers": workers, "batch_size": batch, "cascade": cascade, "per_second": rates})
    return found


def stages(files: list[Path], rounds: int, model: str | None, provider: str) -> dict[str, list[float]]:
    """Milliseconds per picture of each stage of a default scan, the zoom included, on one core; and of a first look."""
    session = Session(model, provider, threads=1)
    size, first_size, limits = session.spec.size, session.spec.first_size, Limits()
    data = [file.read_bytes() for file in files]
    side, middle = ZOOM * size, Part(0.25, 0.25, 0.5, "half")
    images = [decode(content, limits, side)[0].image for content in data]
    pixels, details = np.stack([to_pixels(image, size) for image in images]), [to_detail(image, size) for image in images]
    steps: dict[str, Callable[[], object]] = {
        "read": lambda: [file.read_bytes() for file in files],
        "decode": lambda: [decode(content, limits, side) for content in data],
        "resize": lambda: [(to_pixels(image, size), to_detail(image, size)) for image in images],
        "cut for a zoom": lambda: [zoom(detail, middle, size) for detail in details],
        "whole": lambda: [session.run(pixels[start : start + 16], (HEAD,)) for start in range(0, len(pixels), 16)],
        "zoom": lambda: [session.run(pixels[start : start + 16]) for start in range(0, len(pixels), 16)],
        "first look": lambda: [session.run(shrink(pixels[start : start + 16], first_size)) for start in range(0, len(pixels), 16)],
    }
    return {name: [1000 * value / len(files) for value in timed(step, rounds)] for name, step in steps.items()}


def latency(files: list[Path], model: str | None, provider: str) -> dict[str, list[float]]:
    """Milliseconds of single calls, all cores: from a path, from a PIL image in memory, and the model alone; how often it looks."""
    scanner = Scanner(model, provider=provider)
    found: dict[str, list[float]] = {"path": [], "PIL image": [], "model alone": [], "PIL image / model alone": [], "looks": []}
    scanner.check(files[0])
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        pixels = to_pixels(image, scanner.session.spec.size)[np.newaxis]
        looks = 1 + (focus(scanner.session.run(pixels, (HEAD,))[0]) is not None)
        spent = [
            1000 * once(lambda file=file: scanner.check(file)),  # type: ignore[misc]
            1000 * once(lambda image=image: scanner.check(image)),  # type: ignore[misc]
            1000 * once(lambda rgb=pixels, looks=looks: [scanner.session.run(rgb, (HEAD,)) for _ in range(looks)]),  # type: ignore[misc]
        ]
        for name, value in zip(found, [*spent, spent[1] / spent[2], looks], strict=True):
            found[name].append(value)
    return found


def tensors(files: list[Path], rounds: int, model: str | None, provider: str) -> dict[str, list[float]]:
    """Pictures per second of `check_tensor`, of tensors in the memory of a GPU, by batch; the model on the CPU or on it.

    The pictures have to be of one size, as `--side` makes them.
    """
    import torch

    arrays = [np.asarray(decode(file.read_bytes(), Limits(), 0)[0].image) for file in files[:64]]
    pictures = torch.from_numpy(np.stack(arrays)).cuda().movedim(-1, 1).contiguous().half() / 255
    found = {}
    for name in ("cpu", provider):
        scanner = Scanner(model, provider=name, batch_size=64)
        for batch in [size for size in (1, 4, 16, 64) if size <= len(pictures)]:
            parts = pictures[: max(batch, 16)].split(batch)
            rates = [sum(map(len, parts)) / seconds for seconds in timed(partial(all_checked, scanner, parts), rounds)]
            found[f"tensors of {batch} in GPU memory, model on {name}, pictures/s"] = rates
    return found


def all_checked(scanner: Scanner, parts: tuple[Any, ...]) -> None:
    for part in parts:
        scanner.check_tensor(part)


def cold_start(files: list[Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of a fresh process to its first verdict, seconds of the import, MiB at the peak of a scan."""
    python = [sys.executable, "-c"]
    importing = "import time; start = time.perf_counter(); import imgsafety; print(time.perf_counter() - start)"
    return {
        "first verdict, s": [until_first_line([*python, FIRST_VERDICT, str(files[0])]) for _ in range(rounds + 1)][1:],
        "import imgsafety, s": [float(output([*python, importing])) for _ in range(rounds)],
        "peak memory of a scan, MiB": [float(output([*python, SCAN_ALL + PEAK, *map(str, files)]))],
    }


def nudenet() -> Judge:
    """NudeNet's own way for many files."""
    from nudenet import NudeDetector

    return partial(NudeDetector().detect_batch, batch_size=16)


def opennsfw2() -> Judge:
    """Yahoo's open_nsfw in Keras, whose weights are downloaded once; `KERAS_BACKEND` says what runs it."""
    from opennsfw2 import predict_images

    return partial(predict_images, batch_size=16)


PEERS = {"NudeNet detect_batch": nudenet, "OpenNSFW2 predict_images": opennsfw2}


def beside_peers(files: list[Path], rounds: int, model: str | None, provider: str) -> dict[str, Any]:
    """Milliseconds per picture of ours and of the `PEERS` that are installed, on the same files, in turns, and their ratios."""
    plain, cascade = (Scanner(model, provider=provider, cascade=kind) for kind in (False, True))
    ours: dict[str, Judge] = {
        "scan": lambda paths: sum(1 for _ in plain.scan(paths)),
        "scan, cascade": lambda paths: sum(1 for _ in cascade.scan(paths)),
    }
    paths = [str(file) for file in files]
    theirs: dict[str, Judge] = {}
    about = {}
    for name, load in PEERS.items():
        try:
            judge = load()
            judge(paths[:1])
        except ImportError as problem:
            about[name] = f"not here: pip install {load.__name__} ({problem})"
        except Exception as problem:  # noqa: BLE001  # a peer may raise anything, of a download that failed for one
            about[name] = f"does not work here: {type(problem).__name__}: {problem}"
        else:
            theirs[name] = judge
            about[f"{load.__name__} version"] = metadata.version(load.__name__)
    ways = ours | theirs
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, judge in ways.items():
            seconds = once(partial(judge, paths))
            if turn:  # the first warms up
                spent[name].append(1000 * seconds / len(paths))
    ratios = {
        f"{peer} / {name}": [other / our for other, our in zip(spent[peer], spent[name], strict=True)]
        for peer in theirs
        for name in ours
    }
    return {f"{name}, ms": values for name, values in spent.items()} | ratios | about


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, after one that is not counted."""
    work()
    return [once(work) for _ in range(rounds)]


def once(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def until_first_line(command: list[str]) -> float:
    """Seconds until a command has printed a line: the end of its process is not waited for."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101  # for the type checker
        process.stdout.readline()
        seconds = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


def output(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def machine() -> dict[str, str]:
    """Processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    known = versions()
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "VNNI": "yes" if "vnni" in flags else "no",
        **{name: known[name] for name in ("python", "imgsafety", "onnxruntime", "pillow", "imagecodecs", "numpy")},
    }


def show(figures: dict[str, Any]) -> None:
    """Print every figure as a table: median, least and greatest."""
    table = Table("figure", "median", "least", "greatest", title=", ".join(f"{k} {v}" for k, v in figures["machine"].items()))
    for row in figures["throughput"]:
        kind = ", cascade" if row["cascade"] else ""
        table.add_row(f"pictures/s, {row['workers']} workers, batches of {row['batch_size']}{kind}", *spread(row["per_second"]))
    for name, values in figures["stages"].items():
        table.add_row(f"{name}, ms per picture on one core", *spread(values))
    for name, values in figures.get("tensors", {}).items():
        table.add_row(name, *spread(values))
    for name, values in figures["latency"].items():
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        table.add_row(f"latency: {name} (p50, p95, p99)", f"{p50:.2f}", f"{p95:.2f}", f"{p99:.2f}")
    for name, values in [*figures["cold start"].items(), *figures.get("peers", {}).items()]:
        table.add_row(name, *(spread(values) if isinstance(values, list) else (str(values), "", "")))
    Console(width=140).print(table)


def spread(values: list[float]) -> tuple[str, str, str]:
    """Median, least, greatest."""
    return f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot throughput by batch size, a line per number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for workers in sorted({row["workers"] for row in rows}):
        chosen = [row for row in rows if row["workers"] == workers and not row["cascade"]]
        axes.plot(
            [row["batch_size"] for row in chosen],
            [statistics.median(row["per_second"]) for row in chosen],
            marker="o",
            label=f"{workers} workers",
        )
    axes.set(xlabel="batch size", ylabel="pictures per second", ylim=(0, None))
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
