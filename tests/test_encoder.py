"""What a large encoder sees, by one of a few bytes: the mean colour of the picture, and its pixels as tokens."""

import click
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

pytest.importorskip("torch", reason="training needs torch")

from training.encoder import DEVIATION, MEAN, embed
from training.manifest import Row

SIDE = 8
COLOURS = {"red.png": (255, 0, 0), "grey.png": (128, 128, 128), "sea.png": (0, 64, 255)}


def write_encoder(path, shape=("batch", 3, SIDE, SIDE), scale=1.0):
    """An ONNX encoder: embeddings `(batch, 3)`, and tokens `(batch, 1 + 64, 3)` whose first is far from all others.

    scale: multiplies the tokens.
    """
    constants = {"shape": [0, 3, SIDE * SIDE], "axes": [2, 3], "start": [0], "end": [1], "axis": [1]}
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["plain"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["plain", "scale"], ["places"]),
        helper.make_node("Slice", ["places", "start", "end", "axis"], ["place"]),
        helper.make_node("Add", ["place", "far"], ["odd"]),
        helper.make_node("Concat", ["odd", "places"], ["tokens"], axis=1),
    ]
    initializers = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("embedding", "tokens")],
        [*initializers, numpy_helper.from_array(np.float32(1000), "far"), numpy_helper.from_array(np.float32(scale), "scale")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def encoder(tmp_path):
    return write_encoder(tmp_path / "encoder.onnx")


@pytest.fixture
def rows(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 12), colour).save(tmp_path / name)
    return [Row(name, "drawn", "CC0") for name in COLOURS]


def test_a_picture_is_seen_whole_and_the_first_token_is_no_place(encoder, rows, tmp_path):
    seen = embed(encoder, rows, tmp_path, tmp_path / "kept", threads=1)
    expected = (np.array(list(COLOURS.values())) / 255 - MEAN) / DEVIATION
    assert seen == pytest.approx(np.hstack([expected, expected]), abs=1e-4)


def test_what_was_seen_before_is_not_looked_at_again(encoder, rows, tmp_path):
    first = embed(encoder, rows[:2], tmp_path, tmp_path, threads=1)
    (tmp_path / rows[0].path).unlink()
    assert np.array_equal(embed(encoder, [rows[2], rows[0]], tmp_path, tmp_path, threads=1)[1], first[0])


def test_another_encoder_looks_for_itself(encoder, rows, tmp_path):
    first = embed(encoder, rows, tmp_path, tmp_path, threads=1)
    other = embed(write_encoder(tmp_path / "other.onnx", scale=2.0), rows, tmp_path, tmp_path, threads=1)
    assert other[:, 3:] == pytest.approx(2 * first[:, 3:], abs=1e-4)


@pytest.mark.parametrize("shape", [["batch", 3, "height", "width"], ["batch", 3, 8, 4]])
def test_a_file_that_takes_no_squares_of_one_size_is_refused(rows, tmp_path, shape):
    with pytest.raises(click.ClickException, match=r"must take \(batch, 3, side, side\)"):
        embed(write_encoder(tmp_path / "odd.onnx", shape), rows, tmp_path, tmp_path, threads=1)
