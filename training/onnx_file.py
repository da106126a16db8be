"""Changes to an exported model file that need no torch: its temperatures and biases, its spec, its checksum, its two looks.

A file may hold two networks: its graph judges pictures of the whole side; the one for the first look of a cascade is a model of
its own among the metadata. So there is one file and one checksum, and whoever asks for no cascade does not wait for it.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnx.numpy_helper import from_array, to_array

from imgsafety.spec import FIRST_KEY, METADATA_KEY, ModelSpec, from_json, to_json

TEMPERATURE_SUFFIX, BIAS_SUFFIX = "_temperature", "_bias"
HALVED_SIZE = 1024  # numbers in a weight from which on it is stored in half precision; the small ones are biases


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is done to the logits of a head before their softmax: they are divided by a factor, and a bias `(labels,)` is added."""

    factor: float
    bias: npt.NDArray[np.float64]


def write_model(model: onnx.ModelProto, output: Path) -> None:
    """Write the model and the SHA-256 that `Session` holds it against."""
    data = model.SerializeToString()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(data)
    output.with_name(output.name + ".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {output.name}\n")


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model file of `training.export` or what was made of it. Raises `ClickException` for any other file."""
    try:
        model = onnx.load(path)
    except Exception as problem:  # onnx raises classes of protobuf's
        raise click.ClickException(f"{path} cannot be read: {type(problem).__name__}: {problem}") from problem
    if METADATA_KEY not in _properties(model):
        raise click.ClickException(f"{path} has no imgsafety spec inside; export it with training.export")
    return model


def read_spec(model: onnx.ModelProto) -> ModelSpec:
    """Return the spec inside the model. Raises `StopIteration` when there is none."""
    return from_json(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY))


def scale_logits(model: onnx.ModelProto, scalings: Mapping[str, Scaling]) -> dict[str, float]:
    """Scale the logits of heads of a model of one look, after what was done to them before; return the temperatures.

    They are in the graph and, for the record, in the spec. A model that has none yet, as exported, gets them.
    """
    there = {initializer.name for initializer in model.graph.initializer}
    for head, scaling in scalings.items():
        none = {TEMPERATURE_SUFFIX: ("Div", np.ones(1)), BIAS_SUFFIX: ("Add", np.zeros_like(scaling.bias))}
        for suffix, (operator, neutral) in none.items():
            if head + suffix not in there:
                _insert(model.graph, head, operator, from_array(neutral.astype(np.float32), head + suffix))
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    found = {}
    for head, scaling in scalings.items():
        temperature, bias = constants[head + TEMPERATURE_SUFFIX], constants[head + BIAS_SUFFIX]
        found[head] = float(_write(temperature, to_array(temperature) * scaling.factor)[0])
        _write(bias, to_array(bias) / scaling.factor + scaling.bias)
    spec = read_spec(model)
    heads = tuple(replace(head, temperature=found.get(head.name, head.temperature)) for head in spec.heads)
    onnx.helper.set_model_props(model, {METADATA_KEY: to_json(replace(spec, heads=heads))})
    return found


def _insert(graph: onnx.GraphProto, head: str, operator: str, constant: onnx.TensorProto) -> None:
    """Let the softmax of a head see what an operator makes of its logits and a constant."""
    index, softmax = next((i, node) for i, node in enumerate(graph.node) if head in node.output)
    graph.initializer.append(constant)
    made = f"{constant.name}_applied"
    graph.node.insert(index, onnx.helper.make_node(operator, [softmax.input[0], constant.name], [made]))
    softmax.input[0] = made


def _write(constant: onnx.TensorProto, value: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    written = value.astype(np.float32)
    constant.CopyFrom(from_array(written, constant.name))
    return written


def join_looks(whole: onnx.ModelProto, first: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """Return a file that answers with `first` where the pictures are as small as the first look in the spec of `whole` says.

    Both give the same outputs, each for its side alone from then on. Without a first one, `whole` is returned.
    """
    if first is None:
        return whole
    spec = read_spec(whole)
    joined = _of_side(whole, spec.size)
    data = _of_side(first, spec.first_size).SerializeToString()
    onnx.helper.set_model_props(joined, {**_properties(whole), FIRST_KEY: base64.b64encode(data).decode()})
    return joined


def split_looks(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """Return the models that `join_looks` made one of, the whole first; a model that was not joined is alone."""
    properties = _properties(model)
    if FIRST_KEY not in properties:
        return [model]
    first, whole = onnx.load_from_string(base64.b64decode(properties.pop(FIRST_KEY))), onnx.ModelProto()
    whole.CopyFrom(model)
    onnx.helper.set_model_props(whole, properties)
    return [whole, first]


def halve_weights(model: onnx.ModelProto) -> None:
    """Store large weights in half precision; the runtime makes them whole again once, when it loads the file."""
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        value = to_array(weight)
        if value.dtype == np.float32 and value.size >= HALVED_SIZE:
            casts.append(onnx.helper.make_node("Cast", [f"{weight.name}_half"], [weight.name], to=onnx.TensorProto.FLOAT))
            weight.CopyFrom(from_array(value.astype(np.float16), f"{weight.name}_half"))
    for cast in reversed(casts):
        graph.node.insert(0, cast)


def _of_side(model: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """A copy that takes pictures of one side, for which the runtime gets ready sooner than for any."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for dimension in other.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dimension.dim_value = side
    return other


def _properties(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
