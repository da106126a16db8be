"""Temperatures and biases: what they do to a file's answers, and that fitted ones make scores as frequent as they say."""

import csv

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from scipy.special import softmax

from imgsafety.session import Session
from tests.drawn import write_labelled
from tests.test_manifest import SETTINGS
from tests.toy import AGE, ATTIRE, SIZE, toy_model
from training import heads
from training.manifest import Row
from training.onnx_file import Scaling, scale_logits, write_model
from training.predict import Answers
from training.temperature import BOUNDS, FEWEST, FEWEST_OF_AGES, at_bounds, fit, main, too_few

PIXELS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def answers(model, path):
    write_model(model, path)
    return [np.array(list(scores.heads[AGE.name].values())) for scores in Session(path).run(PIXELS)]


def scaled(probabilities, factor, bias):
    return softmax(np.log(probabilities) / factor + bias, axis=-1)


def test_logits_are_divided_and_then_biased_and_the_last_scaling_comes_last(tmp_path):
    model, bias, factors = toy_model(), np.array([1.0, -0.5, 0.25, 0.0]), (2.0, 0.8)
    before = answers(model, tmp_path / "before.onnx")
    found = [scale_logits(model, {AGE.name: Scaling(factor, bias)}) for factor in factors]
    after = answers(model, tmp_path / "after.onnx")
    assert [temperature[AGE.name] for temperature in found] == pytest.approx([2.0, 1.6])
    for one, other in zip(before, after, strict=True):
        assert other == pytest.approx(scaled(scaled(one, factors[0], bias), factors[1], bias), abs=1e-5)
    onnx.checker.check_model(onnx.load(tmp_path / "after.onnx"))


def test_a_head_that_is_not_named_stays_as_it_is(tmp_path):
    model = toy_model()
    before = answers(model, tmp_path / "before.onnx")
    scale_logits(model, {ATTIRE.name: Scaling(3.0, np.zeros(len(ATTIRE.labels)))})
    assert np.array_equal(before, answers(model, tmp_path / "after.onnx"))


def test_fitted_ages_are_as_frequent_as_they_say_and_attire_only_gets_a_temperature():
    random, count, edges = np.random.default_rng(0), 4000, np.array(heads.AGE_EDGES)
    logits = random.normal(0, 2, (count, len(heads.AGE.labels)))
    true = softmax(logits, axis=1)
    bins = np.array([random.choice(len(row), p=row) for row in true])
    rows = [Row("x", "x", "x", attire="clothed", age=(float(edges[at]), float(edges[at]))) for at in bins]
    # Too sure of itself, and that people are older.
    leaning = softmax(logits * 2 + np.where(edges[:-1] < 25, -1.0, 1.0), axis=1)
    attire = softmax(random.normal(0, 1, (count, len(heads.ATTIRE.labels))), axis=1)
    fitted = fit(rows, Answers({heads.ATTIRE.name: attire, heads.AGE.name: leaning}))
    assert not fitted[heads.ATTIRE.name].bias.any()
    age = fitted[heads.AGE.name]
    assert age.factor == pytest.approx(2.0, rel=0.1)
    mended = scaled(leaning, age.factor, age.bias)
    young = edges[:-1] < 25
    errors = [probabilities[:, young].sum(axis=1).mean() - young[bins].mean() for probabilities in (leaning, mended)]
    assert abs(errors[0]) > 0.1
    assert errors[1] == pytest.approx(0, abs=0.02)


def aged(count, age, attire="clothed"):
    return [Row("x", "x", "x", attire=attire, age=(age, age))] * count


def fitted_heads(rows):
    random = np.random.default_rng(0)
    heads_of = {head.name: softmax(random.normal(0, 1, (len(rows), len(head.labels))), axis=1) for head in heads.HEADS}
    return set(fit(rows, Answers(heads_of)))


def test_a_head_of_which_few_labels_say_something_stays_as_it_is():
    few, enough = aged(FEWEST - 1, 9), aged(FEWEST - FEWEST_OF_AGES, 9) + aged(FEWEST_OF_AGES, 40)
    assert fitted_heads(enough) == {heads.ATTIRE.name, heads.AGE.name} and not too_few(enough)
    assert fitted_heads(few) == set() and f"{FEWEST - 1} pictures" in too_few(few)[heads.ATTIRE.name]
    # Exposed pictures say nothing of ages.
    assert fitted_heads(few + aged(50, 40, attire="minimal")) == {heads.ATTIRE.name}


@pytest.mark.parametrize(("minors", "adults"), [(FEWEST_OF_AGES - 1, FEWEST), (FEWEST, FEWEST_OF_AGES - 1), (FEWEST, 0)])
def test_ages_of_one_side_of_18_alone_are_not_fitted(minors, adults):
    rows = aged(minors, 9) + aged(adults, 40)
    assert fitted_heads(rows) == {heads.ATTIRE.name}
    assert f"{minors} pictures show somebody under 18, {adults} only adults" in too_few(rows)[heads.AGE.name]


def test_a_temperature_at_its_bound_is_named():
    factors = {"a": BOUNDS[0], "b": 1.0, "c": BOUNDS[1] * (1 - 1e-9)}
    assert at_bounds({name: Scaling(factor, np.zeros(1)) for name, factor in factors.items()}) == ["a", "c"]


def test_an_empty_fold_and_a_file_that_is_no_model_are_refused(tmp_path, toy_path):
    data = write_labelled(tmp_path / "data", per_label=2)
    with (data / "manifest.csv").open(newline="") as file:
        paths = [line["path"] for line in csv.DictReader(file)]
    words = ["--data", data, "--split", tmp_path / "split.csv", "--settings", SETTINGS.with_name("smoke.toml"), "--model"]
    refused = ("train", toy_path, "no picture to the calibration fold"), ("calibration", __file__, "not a model")
    for fold, model, problem in refused:
        (tmp_path / "split.csv").write_text("".join(f"{path},{fold}\n" for path in paths))
        ran = CliRunner().invoke(main, [*map(str, words), str(model)])
        assert ran.exit_code == 1 and problem in ran.output
