"""Changes to an exported model file that need no torch: its temperatures and biases, its spec, its checksum, its two looks.

A file may hold two networks: one branch of the graph for pictures of the whole side, one for the first look of a cascade.
Each branch has its weights inside, so the runtime makes as much of it as of a graph of its own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.numpy_helper import from_array, to_array

from imgsafety.spec import METADATA_KEY, ModelSpec, from_json, to_json

TEMPERATURE_SUFFIX, BIAS_SUFFIX = "_temperature", "_bias"
BRANCHES = {"else_branch": "whole_", "then_branch": "first_"}  # of the `If`, and what the names in each begin with
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
    """Return a model that answers with `first` where the pictures are smaller than the spec of `whole` says.

    Both take any side and give the same outputs. Without a first one, `whole` is returned.
    """
    if first is None:
        return whole
    pixels, names = whole.graph.input[0].name, [output.name for output in whole.graph.output]
    looks = zip(BRANCHES.items(), (whole, first), strict=True)
    branches = {branch: _renamed(model.graph, "", prefix, pixels) for (branch, prefix), model in looks}
    for branch in branches.values():
        del branch.input[:]  # it sees the pictures of the graph around it
    nodes = [
        onnx.helper.make_node("Shape", [pixels], ["sides"], start=1, end=2),
        onnx.helper.make_node("Squeeze", ["sides"], ["side"]),
        onnx.helper.make_node("Less", ["side", "whole_side"], ["is_first"]),
        onnx.helper.make_node("If", ["is_first"], names, "looks", **branches),
    ]
    side = from_array(np.array(read_spec(whole).size, dtype=np.int64), "whole_side")
    return _like(whole, onnx.helper.make_graph(nodes, "looks", whole.graph.input, whole.graph.output, [side]))


def split_looks(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """Return the models that `join_looks` made one of, the whole first; a model that was not joined is alone."""
    branches = {attribute.name: attribute.g for node in model.graph.node if node.op_type == "If" for attribute in node.attribute}
    if set(branches) != set(BRANCHES):
        return [model]
    looks = [_renamed(branches[branch], prefix, "", model.graph.input[0].name) for branch, prefix in BRANCHES.items()]
    for look in looks:
        look.input.extend(model.graph.input)
    return [_like(model, look) for look in looks]


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


def _renamed(graph: onnx.GraphProto, before: str, after: str, kept: str) -> onnx.GraphProto:
    """A copy in which every name begins with `after` instead of `before`, but for `kept`."""

    def rename(name: str) -> str:
        return after + name.removeprefix(before) if name not in ("", kept) else name  # none is an input that is left out

    other = onnx.GraphProto()
    other.CopyFrom(graph)
    del other.value_info[:]
    for node in other.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    for value in (*other.initializer, *other.output):
        value.name = rename(value.name)
    return other


def _like(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    other = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.helper.set_model_props(other, {entry.key: entry.value for entry in model.metadata_props})
    return other
