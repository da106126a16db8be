"""Fit the temperature of each head on the calibration fold and write it into the model file.

`python -m training.temperature --data DIR --split split.csv --model MODEL` changes the `.onnx` file: its
scores become probabilities that match how often labels are right (Guo et al. 2017), at each look for itself. Needs no torch.
"""

from pathlib import Path

import click
import numpy as np
import onnx
from scipy.optimize import minimize_scalar

from training.heads import AGE, ATTIRE, age_target, attire_target
from training.manifest import Row
from training.measure import Values
from training.onnx_file import join_looks, scale_temperatures, split_looks, write_model
from training.predict import Answers, first_answers, open_scanner, predict
from training.settings import load_settings
from training.split import read_fold

BOUNDS = (0.2, 5.0)
SMALLEST = 1e-12


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", type=click.Path(path_type=Path), required=True, help="split.csv that training.train wrote.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True, help="The .onnx file to change.")
@click.option("--leave-out", multiple=True, help="Fit without this source, for a model that was trained without it.")
@click.option("--settings", "settings_path", type=click.Path(path_type=Path), default=Path(__file__).with_name("settings.toml"))
def main(data: Path, split: Path, model: Path, leave_out: tuple[str, ...], settings_path: Path) -> None:
    settings = load_settings(settings_path)
    rows = read_fold(data, split, "calibration", settings.licences, leave_out)
    scanner, looks = open_scanner(model), split_looks(onnx.load(model))
    for number, look in enumerate(looks):
        answers = first_answers(scanner, rows, data) if number else predict(scanner, rows, data)
        fitted = scale_temperatures(look, fit(rows, answers))
        print(f"temperatures, look {number + 1}:", ", ".join(f"{name} {value:.3f}" for name, value in fitted.items()))
    write_model(join_looks(*looks), model)


def fit(rows: list[Row], answers: Answers) -> dict[str, float]:
    """Return, for each head, the factor on its temperature under which the labels of `rows` are likeliest."""
    with_attire = np.array([bool(row.attire) for row in rows])
    with_age = np.array([row.age is not None and not row.exposed for row in rows])
    attire = np.array([attire_target(row.attire) for row in rows if row.attire])
    age = np.array([age_target(*row.age) for row in rows if row.age is not None and not row.exposed])
    return {
        ATTIRE.name: _likeliest(answers.take(with_attire).heads[ATTIRE.name], attire),
        AGE.name: _likeliest(answers.take(with_age).heads[AGE.name], age),
    }


def _likeliest(probabilities: Values, allowed: Values) -> float:
    logs = np.log(np.maximum(probabilities, SMALLEST))

    def loss(factor: float) -> float:
        scaled = np.exp((logs - logs.max(axis=1, keepdims=True)) / factor)
        inside = (scaled * allowed).sum(axis=1) / scaled.sum(axis=1)
        return float(-np.log(np.maximum(inside, SMALLEST)).mean())

    return float(minimize_scalar(loss, bounds=BOUNDS, method="bounded").x)


if __name__ == "__main__":
    main()
