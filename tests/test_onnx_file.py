"""A model file may hold another network for the first look of a cascade, and its weights in half precision."""

import base64

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from imgsafety import ModelError, Scanner
from imgsafety.policy import parse_policy
from imgsafety.session import Session
from imgsafety.spec import FIRST_KEY
from tests.test_cascade import CASCADE
from tests.toy import POLICY, SIZE, toy_model
from training.onnx_file import halve_weights, join_looks, split_looks, write_model
from training.quantize import settled

WHOLE, HALF = (np.full((2, side, side, 3), (200, 30, 30), dtype=np.uint8) for side in (SIZE, SIZE // 2))


def answers(model, path, pixels):
    write_model(model, path)
    return Session(path).run(pixels, maps=True)


def raw(model, pixels):
    outputs = InferenceSession(model.SerializeToString()).run(None, {"pixels": pixels})
    return [output.tolist() for output in outputs]


def test_each_side_is_answered_by_the_network_for_it(tmp_path):
    whole, first = toy_model(), toy_model(factor=0.5)
    joined = join_looks(whole, first)
    for pixels, alone, other in ((WHOLE, whole, first), (HALF, first, whole)):
        found = answers(joined, tmp_path / "joined.onnx", pixels)
        assert found == answers(alone, tmp_path / "alone.onnx", pixels)
        assert found != answers(other, tmp_path / "other.onnx", pixels)


def test_two_looks_come_apart_as_they_were_joined(tmp_path):
    looks = [toy_model(), toy_model(factor=0.5)]
    for pixels, alone, apart in zip((WHOLE, HALF), looks, split_looks(join_looks(*looks)), strict=True):
        assert apart.metadata_props == alone.metadata_props
        assert raw(apart, pixels) == raw(alone, pixels)
    assert split_looks(looks[0]) == [looks[0]] and join_looks(looks[0]) is looks[0]


def test_a_settled_file_answers_as_before():
    once = settled(toy_model())
    assert settled(once).SerializeToString() == once.SerializeToString()
    assert {node.domain for node in once.graph.node} == {""}  # operators that every provider knows
    assert once.metadata_props == toy_model().metadata_props
    for pixels in (WHOLE, HALF):
        assert raw(once, pixels) == raw(toy_model(), pixels)


@pytest.mark.parametrize(
    ("first", "error"),
    [
        ("no base64!", "first looks cannot be read"),
        (base64.b64encode(b"no model").decode(), "not a model that onnxruntime can load"),
        (base64.b64encode(toy_model(sides=(SIZE, SIZE)).SerializeToString()).decode(), r"not uint8 \(batch, 16, 16, 3\)"),
    ],
)
def test_a_damaged_model_for_first_looks_fails_where_it_is_needed_and_nowhere_else(tmp_path, first, error):
    model, path = toy_model(), tmp_path / "damaged.onnx"
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | {FIRST_KEY: first})
    assert answers(model, path, WHOLE) == answers(toy_model(), tmp_path / "alone.onnx", WHOLE)
    with pytest.raises(ModelError, match=error):
        answers(model, path, HALF)
    policy = parse_policy(POLICY + CASCADE)
    Scanner(path, policy)
    with pytest.raises(ModelError, match=error):
        Scanner(path, policy, cascade=True)


def test_weights_in_half_precision_answer_what_the_rounded_ones_did(tmp_path):
    weight = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    rounded = weight.astype(np.float16).astype(np.float32)
    assert not np.array_equal(weight, rounded)
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[1, 3, 16, 16] x) => (float[1, 4, 1, 1] y) { y = Conv(x, w) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    before = len(model.SerializeToString())
    halve_weights(model)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (found,) = InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert len(model.SerializeToString()) < 0.6 * before
    assert found.ravel() == pytest.approx((rounded * x).sum(axis=(1, 2, 3)), abs=1e-4)
