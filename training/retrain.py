"""From labelled pictures to a model of your own and its policy: `python -m training.retrain --data DIR --output RUN`.

DIR holds a manifest.csv (columns: `training/manifest.py`). The shipped network goes on learning from the train fold, is rounded to
INT8, gets its temperatures and thresholds on the calibration fold, and is measured on the test fold. Every step is a program of its
own, printed as the command that it is; a stopped run goes on with the same command. What comes out are RUN/model.onnx and
RUN/policy.toml.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import torch

from imgsafety.spec import shipped_file
from training import calibrate, evaluate, export, quantize, temperature, train
from training.settings import FILE, load_settings
from training.split import groups_of, read_fold

START = "imgsafety-v1.safetensors"
OWN = Path(__file__).with_name("own.toml")


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for all that comes out; outside the repo.")
@click.option("--settings", type=FILE, default=OWN, help="Default: own.toml beside this program.")
@click.option("--first", type=FILE, help="Settings of a small network for first looks; without it the whole one takes them.")
@click.option("--start", type=FILE, help="network.safetensors to go on from; default: the shipped one.")
@click.option("--recipe", type=click.Choice(["default", "strict"]), default="default", show_default=True, help="Of the policy.")
@click.option("--target-miss", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="See training.calibrate.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(
    data: Path,
    output: Path,
    settings: Path,
    first: Path | None,
    start: Path | None,
    recipe: str,
    target_miss: float | None,
    device: str,
) -> None:
    start = start or shipped_file(START)
    if start is None:
        raise click.UsageError(f"{START} is not beside the package: name a network with --start")
    # What the last two steps would refuse is refused before the first, which takes longest.
    folds = ("calibration", "test")
    rows, _ = (read_fold(data, output / "split.csv", fold, load_settings(settings).licences) for fold in folds)
    groups = np.array(groups_of(rows, data))
    calibrate.require_cases(rows, groups, calibrate.load_recipe(recipe), target_miss, calibrate.CONFIDENCE, cascade=True)
    promise = {"recipe": recipe, **({"target-miss": target_miss} if target_miss else {})}
    for program, options in _steps(data, output, settings, first, start, promise, device):
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += ["--quick"] if program is evaluate else []
        click.echo(f"\n$ python -m {program.__name__} {shlex.join(words)}")
        program.main.main(words, standalone_mode=False)
    use = ["imgsafety", "scan", "--model", str(output / "model.onnx"), "--policy", str(output / "policy.toml")]
    click.echo(f"\nUse it: {shlex.join(use)} PATH")


def _steps(
    data: Path, output: Path, settings: Path, first: Path | None, start: Path, promise: Mapping[str, object], device: str
) -> Iterator[tuple[ModuleType, Mapping[str, object]]]:
    """The programs and their options, in order."""
    network, plain, model, policy = (output / name for name in ("network.safetensors", "float.onnx", "model.onnx", "policy.toml"))
    own, small = {"data": data, "settings": settings}, {}
    held_out = {**own, "split": output / "split.csv", "model": model}
    yield train, {**own, "output": output, "start": start, "device": device}
    if first is not None:
        folder = output / "first"
        small = {"first": folder / network.name}
        yield train, {"data": data, "settings": first, "output": folder, "start": network, "teacher": network, "device": device}
    yield export, {"settings": settings, "network": network, **small, "output": plain}
    yield quantize, {**held_out, "model": plain, "output": model}
    yield temperature, held_out
    yield calibrate, {**held_out, **promise, "output": policy}
    yield evaluate, {**held_out, "policy": policy}


if __name__ == "__main__":
    main()
