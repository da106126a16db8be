"""Fit the temperature of each head, and biases of ages, on the calibration fold and write them into the model file.

`python -m training.temperature --data DIR --split split.csv --model MODEL` changes the `.onnx` file: its scores become
probabilities that match how often labels are right, at each look for itself (temperatures: Guo et al. 2017; with a bias for each
label: Alexandari, Kundaje and Shrikumar 2020). Needs no torch.
"""

from pathlib import Path

import click
import numpy as np
import onnx
from scipy.optimize import minimize
from scipy.special import softmax

from training.heads import AGE, ATTIRE, age_target, attire_target
from training.manifest import Row
from training.measure import Values
from training.onnx_file import Scaling, join_looks, scale_logits, split_looks, write_model
from training.predict import Answers, first_answers, open_scanner, predict
from training.settings import FILE, load_settings
from training.split import read_fold

BOUNDS = (0.2, 5.0)
SMALLEST = 1e-12
RIDGE = 1e-3  # on biases, in squares: of an age that hardly occurs little is known


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", type=FILE, required=True, help="split.csv that training.train wrote.")
@click.option("--model", type=FILE, required=True, help="The .onnx file to change.")
@click.option("--leave-out", multiple=True, help="Fit without this source, for a model that was trained without it.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(data: Path, split: Path, model: Path, leave_out: tuple[str, ...], settings_path: Path) -> None:
    settings = load_settings(settings_path)
    rows = read_fold(data, split, "calibration", settings.licences, leave_out)
    scanner, looks = open_scanner(model), split_looks(onnx.load(model))
    for number, look in enumerate(looks):
        answers = first_answers(scanner, rows, data) if number else predict(scanner, rows, data)
        fitted = scale_logits(look, fit(rows, answers))
        print(f"temperatures, look {number + 1}:", ", ".join(f"{name} {value:.3f}" for name, value in fitted.items()))
    write_model(join_looks(*looks), model)


def fit(rows: list[Row], answers: Answers) -> dict[str, Scaling]:
    """Return, for each head, what to do to its logits so that the labels of `rows` are likeliest.

    Ages have biases as well: how often an age occurs where the network learned is not how often it does here. Attire has none: its
    labels are of few origins, each with labels of its own.
    """
    with_attire = np.array([bool(row.attire) for row in rows])
    with_age = np.array([row.age is not None and not row.exposed for row in rows])
    attire = np.array([attire_target(row.attire) for row in rows if row.attire])
    age = np.array([age_target(*row.age) for row in rows if row.age is not None and not row.exposed])
    return {
        ATTIRE.name: _likeliest(answers.take(with_attire).heads[ATTIRE.name], attire, with_bias=False),
        AGE.name: _likeliest(answers.take(with_age).heads[AGE.name], age, with_bias=True),
    }


def _likeliest(probabilities: Values, allowed: Values, with_bias: bool) -> Scaling:
    """Minimise the negative logarithmic likelihood of the allowed labels, and a little of the biases' squares."""
    logs = np.log(np.maximum(probabilities, SMALLEST))

    def loss(at: Values) -> tuple[float, Values]:
        scaled = logs / np.exp(at[0])
        found = softmax(scaled + at[1:], axis=1)
        right = found * allowed
        inside = np.maximum(right.sum(axis=1, keepdims=True), SMALLEST)
        gaps = (found - right / inside) / len(logs)  # the loss by each logit
        value = -np.log(inside).mean() + RIDGE * (at[1:] ** 2).sum()
        return float(value), np.append(-(gaps * scaled).sum(), gaps.sum(axis=0) + 2 * RIDGE * at[1:])

    labels = logs.shape[1]
    bounds = [np.log(BOUNDS), *[(None, None) if with_bias else (0, 0)] * labels]
    found = minimize(loss, np.zeros(1 + labels), jac=True, bounds=bounds).x
    return Scaling(float(np.exp(found[0])), found[1:])


if __name__ == "__main__":
    main()
