"""Make the INT8 file of an exported model: `python -m training.quantize --data DIR --split split.csv --model A --output B`.

Static quantisation (QDQ, weights per channel) calibrated on pictures of the training fold, with biases corrected for what rounding
the weights adds on average. Dense weights keep 7 bits: on processors without VNNI the sums of 8-bit products overflow, and the same
file would answer differently there. What the runtime rewrites for any processor is rewritten here once, and not at every start.
Temperatures are fitted again afterwards, with training.temperature. Needs no torch.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from imgsafety.preprocess import shrink, to_pixels
from training.manifest import Row
from training.onnx_file import join_looks, read_model, read_spec, split_looks, write_model
from training.predict import read_image
from training.settings import FILE, load_settings
from training.split import read_fold

PICTURES = 400
BATCH = 8


class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds pictures `uint8 (count, side, side, 3)` to the calibrator, in batches."""

    def __init__(self, pixels: npt.NDArray[np.uint8], name: str) -> None:
        self._batches = iter({name: pixels[start : start + BATCH]} for start in range(0, len(pixels), BATCH))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """The next batch, none at the end: the interface of the calibrator."""
        return next(self._batches, None)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", type=FILE, required=True, help="split.csv that training.train wrote.")
@click.option("--model", type=FILE, required=True, help="The exported float .onnx file.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The INT8 .onnx file to write.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(data: Path, split: Path, model: Path, output: Path, settings_path: Path) -> None:
    settings = load_settings(settings_path)
    rows = read_fold(data, split, "train", settings.licences)
    chosen = np.random.default_rng(settings.seed).choice(len(rows), min(PICTURES, len(rows)), replace=False)
    quantize(model, output, [rows[index] for index in chosen], data)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def quantize(model: Path, output: Path, rows: list[Row], folder: Path) -> None:
    """Write the INT8 file, both of its looks. Convolutions and additions are quantised; heads and what follows stay float."""
    looks = split_looks(read_model(model))
    spec = read_spec(looks[0])
    pixels = np.stack([to_pixels(read_image(row, folder, spec.size), spec.size) for row in rows])
    seen = [pixels, shrink(pixels, spec.first_size)] if len(looks) > 1 else [pixels]
    write_model(join_looks(*(settled(_quantized(look, some)) for look, some in zip(looks, seen, strict=True))), output)


def settled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the runtime's basic rules applied: a quarter less time to load, for any processor, and the same answers."""
    with tempfile.TemporaryDirectory() as scratch:
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(scratch) / "settled.onnx")
        InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _quantized(look: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as scratch:
        plain, prepared, raw = (Path(scratch) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        onnx.save(look, plain)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        last = [*(f"evidence.{head.name}" for head in read_spec(look).heads), "finder.tell"]
        kept = [node.name for node in graph.node if any(layer in name for layer in last for name in node.input)]
        depthwise = [node.input[1] for node in _convolutions(graph) if _groups(node) > 1]
        quantize_static(
            str(prepared),
            str(raw),
            Pictures(pixels, graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # With the clips of ReLU6 among them, they vanish into the convolutions before them: 6.4 instead of 11 ms per picture.
            op_types_to_quantize=["Conv", "Clip", "Add"],
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "CalibMovingAverage": True,
                # Depthwise convolutions are summed in 16 bits or more everywhere, so they keep all 8.
                "TensorQuantOverrides": {name: [{"axis": 0, "reduce_range": False}] for name in depthwise},
            },
        )
        model = onnx.load(raw)
        correct_biases(model.graph, graph, _mean_inputs(onnx.load(prepared), pixels))
        return model


def correct_biases(quantized: onnx.GraphProto, plain: onnx.GraphProto, means: dict[str, npt.NDArray[np.float32]]) -> None:
    """Take from each bias what rounding its weights adds to the outputs on average (Nagel et al. 2019, bias correction).

    means: by the name of a convolution, the mean of each of its input channels. One that has no bias, or stays float, is left.
    """
    rounded = {node.output[0]: list(node.input) for node in quantized.node if node.op_type == "DequantizeLinear"}
    stored = {value.name: value for value in quantized.initializer}
    exact = {value.name: onnx.numpy_helper.to_array(value) for value in plain.initializer}
    weights = {node.name: exact[node.input[1]] for node in _convolutions(plain)}
    for node in _convolutions(quantized):
        if len(node.input) < 3 or node.input[1] not in rounded:
            continue
        levels, scale = (onnx.numpy_helper.to_array(stored[name]) for name in rounded[node.input[1]][:2])
        error = (levels * scale.reshape(-1, 1, 1, 1) - weights[node.name]).sum(axis=(2, 3))
        shift = error[:, 0] * means[node.name] if _groups(node) > 1 else error @ means[node.name]
        bias, unit = (stored[name] for name in rounded[node.input[2]][:2])
        moved = onnx.numpy_helper.to_array(bias) - shift / onnx.numpy_helper.to_array(unit)
        bias.CopyFrom(onnx.numpy_helper.from_array(np.rint(moved).astype(np.int32), bias.name))


def _mean_inputs(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    inputs = {node.name: node.input[0] for node in _convolutions(model.graph)}
    seen = sorted(set(inputs.values()))
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in seen)
    runtime = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    found = [[part.mean(axis=(0, 2, 3)) for part in runtime.run(seen, {model.graph.input[0].name: batch})] for batch in batches]
    means = dict(zip(seen, (np.mean(parts, axis=0) for parts in zip(*found, strict=True)), strict=True))
    return {name: means[source] for name, source in inputs.items()}


def _convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Conv"]


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


if __name__ == "__main__":
    main()
