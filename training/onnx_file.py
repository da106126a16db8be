"""Changes to an exported model file that need no torch: its temperatures, its spec, its checksum, its two looks.

A file may hold two networks: one branch of the graph for pictures of the whole side, one for the first look of a cascade.
Each branch has its weights inside, so the runtime makes as much of it as of a graph of its own.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from imgsafety.spec import METADATA_KEY, ModelSpec, from_json, to_json

TEMPERATURE_SUFFIX = "_temperature"
BRANCHES = {"else_branch": "whole_", "then_branch": "first_"}  # of the `If`, and what the names in each begin with
HALVED_SIZE = 1024  # numbers in a weight from which on it is stored in half precision; the small ones are biases


def write_model(model: onnx.ModelProto, output: Path) -> None:
    """Write the model and the SHA-256 that `Session` holds it against."""
    data = model.SerializeToString()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(data)
    output.with_name(output.name + ".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {output.name}\n")


def read_spec(model: onnx.ModelProto) -> ModelSpec:
    """Return the spec inside the model. Raises `StopIteration` when there is none."""
    return from_json(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY))


def _insert_temperature(model: onnx.ModelProto, head: str) -> None:
    """Divide the logits of a head by a temperature of 1 before its softmax."""
    graph = model.graph
    index, softmax = next((i, node) for i, node in enumerate(graph.node) if head in node.output)
    temperature = onnx.numpy_helper.from_array(np.ones(1, dtype=np.float32), head + TEMPERATURE_SUFFIX)
    graph.initializer.append(temperature)
    scaled = f"{head}_scaled"
    graph.node.insert(index, onnx.helper.make_node("Div", [softmax.input[0], temperature.name], [scaled]))
    softmax.input[0] = scaled


def scale_temperatures(model: onnx.ModelProto, factors: dict[str, float]) -> dict[str, float]:
    """Multiply the temperature of each head of a model of one look, in the graph and, for the record, in the spec; return them.

    A model that has none yet, as exported, gets them.
    """
    there = {initializer.name for initializer in model.graph.initializer}
    for head in factors:
        if head + TEMPERATURE_SUFFIX not in there:
            _insert_temperature(model, head)
    found = {}
    for initializer in model.graph.initializer:
        head = initializer.name.removesuffix(TEMPERATURE_SUFFIX)
        if head in factors and head != initializer.name:
            value = onnx.numpy_helper.to_array(initializer) * np.float32(factors[head])
            initializer.CopyFrom(onnx.numpy_helper.from_array(value, initializer.name))
            found[head] = float(value[0])
    spec = read_spec(model)
    heads = tuple(replace(head, temperature=found.get(head.name, head.temperature)) for head in spec.heads)
    onnx.helper.set_model_props(model, {METADATA_KEY: to_json(replace(spec, heads=heads))})
    return found


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
    side = onnx.numpy_helper.from_array(np.array(read_spec(whole).size, dtype=np.int64), "whole_side")
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
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype == np.float32 and value.size >= HALVED_SIZE:
            casts.append(onnx.helper.make_node("Cast", [f"{weight.name}_half"], [weight.name], to=onnx.TensorProto.FLOAT))
            weight.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float16), f"{weight.name}_half"))
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
