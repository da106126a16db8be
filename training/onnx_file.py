"""Changes to an exported model file that need no torch: its temperatures, its spec, its checksum."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from imgsafety.spec import METADATA_KEY, ModelSpec, from_json, to_json

TEMPERATURE_SUFFIX = "_temperature"


def write_model(model: onnx.ModelProto, output: Path) -> None:
    """Write the model and the SHA-256 that `Session` holds it against."""
    data = model.SerializeToString()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(data)
    output.with_name(output.name + ".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {output.name}\n")


def read_spec(model: onnx.ModelProto) -> ModelSpec:
    """Return the spec inside the model. Raises `StopIteration` when there is none."""
    return from_json(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY))


def insert_temperature(model: onnx.ModelProto, head: str) -> None:
    """Divide the logits of a head by a temperature of 1 before its softmax."""
    graph = model.graph
    index, softmax = next((i, node) for i, node in enumerate(graph.node) if head in node.output)
    temperature = onnx.numpy_helper.from_array(np.ones(1, dtype=np.float32), head + TEMPERATURE_SUFFIX)
    graph.initializer.append(temperature)
    scaled = f"{head}_scaled"
    graph.node.insert(index, onnx.helper.make_node("Div", [softmax.input[0], temperature.name], [scaled]))
    softmax.input[0] = scaled


def set_temperatures(model: onnx.ModelProto, temperatures: dict[str, float]) -> None:
    """Write each head's temperature into the graph and, for the record, into the spec."""
    for initializer in model.graph.initializer:
        head = initializer.name.removesuffix(TEMPERATURE_SUFFIX)
        if head in temperatures and head != initializer.name:
            value = np.array([temperatures[head]], dtype=np.float32)
            initializer.CopyFrom(onnx.numpy_helper.from_array(value, initializer.name))
    spec = read_spec(model)
    heads = tuple(replace(head, temperature=temperatures.get(head.name, head.temperature)) for head in spec.heads)
    onnx.helper.set_model_props(model, {METADATA_KEY: to_json(replace(spec, heads=heads))})
