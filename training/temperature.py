"""Fit the temperature of each head, and biases of ages, on the calibration fold and write them into the model file.

`python -m training.temperature --data DIR --split split.csv --model MODEL` changes the `.onnx` file: its scores become
probabilities that match how often labels are right, at each look for itself (temperatures: Guo et al. 2017; with a bias for each
label: Alexandari, Kundaje and Shrikumar 2020). A head with few labels there stays as it is: a temperature of a handful of pictures
is noise. Needs no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import softmax

from training.heads import AGE, ATTIRE, age_target, attire_target
from training.manifest import ADULT, Row
from training.measure import Values
from training.onnx_file import Scaling, join_looks, read_model, scale_logits, split_looks, write_model
from training.predict import Answers, first_answers, open_scanner, predict
from training.settings import FILE, load_settings
from training.split import read_fold

FEWEST = 100  # rows whose labels say something of a head, to fit it on
FEWEST_OF_AGES = 20  # of them under 18, and as many from there on: else a bias of ages is one of what was photographed
BOUNDS = (0.2, 5.0)
AT_BOUND = 1e-3  # of a temperature, as a share: nearer it would have gone on
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
    for head, lacking in too_few(rows).items():
        print(f"{head} stays as it is: {lacking}")
    scanner, looks = open_scanner(model), split_looks(read_model(model))
    for number, look in enumerate(looks):
        answers = first_answers(scanner, rows, data) if number else predict(scanner, rows, data)
        scalings = fit(rows, answers)
        for head in at_bounds(scalings):
            print(f"{head}, look {number + 1}: its temperature stops at a bound, {scalings[head].factor:g}; its scores are not as")
            print("  frequent as they say. Was the model trained on pictures like these?")
        fitted = scale_logits(look, scalings)
        print(f"temperatures, look {number + 1}:", ", ".join(f"{name} {value:.3f}" for name, value in fitted.items()) or "none")
    write_model(join_looks(*looks), model)


def fit(rows: list[Row], answers: Answers) -> dict[str, Scaling]:
    """Return, for each head that has labels enough, what to do to its logits so that the labels of `rows` are likeliest.

    Ages have biases as well: how often an age occurs where the network learned is not how often it does here. Attire has none: its
    labels are of few origins, each with labels of its own.
    """
    lacking, fitted = too_few(rows), {}
    for head, labelled in _labelled(rows).items():
        if head not in lacking:
            chosen = [row for row, known in zip(rows, labelled, strict=True) if known]
            probabilities = answers.take(labelled).heads[head]
            fitted[head] = _likeliest(probabilities, _targets(head, chosen), with_bias=head == AGE.name)
    return fitted


def _labelled(rows: Sequence[Row]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which rows say something of a head: an exposed one nothing of its age."""
    return {
        ATTIRE.name: np.array([bool(row.attire) for row in rows], dtype=bool),
        AGE.name: np.array([row.age is not None and not row.exposed for row in rows], dtype=bool),
    }


def _targets(head: str, rows: Sequence[Row]) -> Values:
    if head == ATTIRE.name:
        return np.array([attire_target(row.attire) for row in rows])
    return np.array([age_target(*row.age) for row in rows if row.age is not None])


def too_few(rows: Sequence[Row]) -> dict[str, str]:
    """What is lacking, by head that cannot be fitted on these rows."""
    lacking = {}
    for head, labelled in _labelled(rows).items():
        if labelled.sum() < FEWEST:
            lacking[head] = f"{labelled.sum()} pictures say something of it, {FEWEST} are needed"
    young, old = sum(row.minor for row in rows), sum(row.adult and not row.exposed for row in rows)
    if AGE.name not in lacking and min(young, old) < FEWEST_OF_AGES:
        lacking[AGE.name] = f"{young} pictures show somebody under {ADULT}, {old} only adults, {FEWEST_OF_AGES} of each are needed"
    return lacking


def at_bounds(scalings: Mapping[str, Scaling]) -> list[str]:
    """The heads whose temperature would have gone beyond the bounds."""
    return [head for head, scaling in scalings.items() if any(abs(scaling.factor / bound - 1) < AT_BOUND for bound in BOUNDS)]


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
