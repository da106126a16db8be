"""A model of a few hundred bytes with the real one's interface: red is minimal attire, blue is young.

Built with onnx alone, so unit tests need neither torch nor trained weights. It looks at mean colours on a
4x4 grid: a red patch is `minimal`, a green one `clothed`, black and white are `no_person`; a blue patch appears
to be a child. Its first look takes pictures of half the side.
"""

import hashlib
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from imgsafety.session import MAP_SUFFIX, PEOPLE_MAP
from imgsafety.spec import METADATA_KEY, Head, ModelSpec, to_json

SIZE = 32
GRID = 4
ATTIRE = Head("attire", "classes", ("no_person", "clothed", "revealing", "minimal"))
AGE = Head("age", "ages", ("0-11", "12-17", "18-24", "25+"), (0, 12, 18, 25, 100))
SPEC = ModelSpec("toy", "1", SIZE, (ATTIRE, AGE), SIZE // 2)

# Evidence per label = weights @ (red, green, blue) in [0, 1] + bias.
ATTIRE_WEIGHTS = np.array([[0, 0, 0], [-30, 30, -30], [10, 10, -30], [30, -30, -30]], np.float32)
ATTIRE_BIAS = np.array([0, -15, -12, -15], np.float32)
AGE_WEIGHTS = np.array([[-30, -30, 30], [-20, -20, 20], [0, 0, 0], [0, 0, 0]], np.float32)
AGE_BIAS = np.array([-15, -12, -8, 0], np.float32)

POLICY = """
name = "toy"
model = "toy 1"

[[rules]]
name = "minor-exposed"
verdict = "block"
when = { minor = 0.3, exposed = 0.3 }

[[rules]]
name = "undressed"
verdict = "block"
when = { minimal_attire = 0.5 }
before_below = { minimal_attire = 0.3 }

[[rules]]
name = "minimal-attire"
verdict = "review"
when = { minimal_attire = 0.5 }
"""


def write_toy_model(path: Path, spec: ModelSpec = SPEC, factor: float = 1.0, people: float | None = None) -> Path:
    """Write the toy model and its checksum. factor: multiplies evidence; NaN makes a damaged model. people: see `add_people`."""
    model = toy_model(spec, factor)
    if people is not None:
        add_people(model, people)
    data = model.SerializeToString()
    path.write_bytes(data)
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    return path


def toy_model(spec: ModelSpec = SPEC, factor: float = 1.0, sides: tuple[int | str, ...] = ("height", "width")) -> ModelProto:
    """Build the graph: uint8 NHWC in, probabilities and maps out. sides: numbers make a graph that takes no others."""
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "flat": np.array([0, 0, -1], np.int64),
        "attire_weights": factor * ATTIRE_WEIGHTS[:, :, None, None],
        "attire_constant": ATTIRE_BIAS,
        "age_weights": factor * AGE_WEIGHTS[:, :, None, None],
        "age_constant": AGE_BIAS,
        "places": np.array([2], np.int64),
        "last_two": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["grid"], kernel_shape=[SIZE // GRID] * 2, strides=[SIZE // GRID] * 2),
    ]
    outputs = []
    for head in (ATTIRE, AGE):
        name = head.name
        shape = f"{name}_shape"
        nodes += [
            helper.make_node("Conv", ["grid", f"{name}_weights", f"{name}_constant"], [f"{name}_evidence"]),
            helper.make_node("Shape", [f"{name}_evidence"], [shape]),
            helper.make_node("Reshape", [f"{name}_evidence", "flat"], [f"{name}_flat"]),
            helper.make_node("ReduceLogSumExp", [f"{name}_flat", "places"], [f"{name}_logits"], keepdims=0),
            helper.make_node("Softmax", [f"{name}_logits"], [name], axis=1),
            helper.make_node("Softmax", [f"{name}_flat"], [f"{name}_place"], axis=2),
            helper.make_node("Reshape", [f"{name}_place", shape], [f"{name}_place_grid"]),
            helper.make_node("Unsqueeze", [name, "last_two"], [f"{name}_column"]),
            helper.make_node("Mul", [f"{name}_place_grid", f"{name}_column"], [name + MAP_SUFFIX]),
        ]
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(head.labels)]),
            helper.make_tensor_value_info(name + MAP_SUFFIX, TensorProto.FLOAT, ["batch", len(head.labels), "rows", "columns"]),
        ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *sides, 3])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", [pixels], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: to_json(spec)})
    return model


def add_people(model: ModelProto, factor: float = 1.0) -> None:
    """Let the toy model tell where people are: on a 16x16 grid, wherever red or green is without blue.

    factor: NaN makes a damaged one.
    """
    side = SIZE // GRID // 4
    weights = factor * np.array([20, 20, -40], np.float32)[None, :, None, None]
    model.graph.node.extend(
        [
            helper.make_node("AveragePool", ["planes"], ["fine"], kernel_shape=[side] * 2, strides=[side] * 2),
            helper.make_node("Conv", ["fine", "people_weights", "people_bias"], ["people_logits"]),
            helper.make_node("Sigmoid", ["people_logits"], ["people_plane"]),
            helper.make_node("Squeeze", ["people_plane", "one"], [PEOPLE_MAP]),
        ]
    )
    constants = {"people_weights": weights, "people_bias": np.array([-8], np.float32), "one": np.array([1], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.output.append(helper.make_tensor_value_info(PEOPLE_MAP, TensorProto.FLOAT, ["batch", "rows", "columns"]))
