"""Make the INT8 file of an exported model: `python -m training.quantize --data DIR --split split.csv --model A --output B`.

Static quantisation (QDQ, weights per channel) calibrated on pictures of the training fold. Weights keep 7 bits: on
processors without VNNI the 8-bit product sums overflow, and the same file would answer differently there.
Temperatures are fitted again afterwards, with training.temperature. Needs no torch.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from imgsafety.preprocess import to_pixels
from training.manifest import Row
from training.onnx_file import join_looks, read_spec, split_looks, write_model
from training.predict import read_image
from training.settings import load_settings
from training.split import read_fold

PICTURES = 400
BATCH = 8


class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds batches of `uint8 (BATCH, size, size, 3)` to the calibrator."""

    def __init__(self, rows: list[Row], folder: Path, size: int, name: str) -> None:
        self._batches = self._read(rows, folder, size, name)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """The next batch, none at the end: the interface of the calibrator."""
        return next(self._batches, None)

    @staticmethod
    def _read(rows: list[Row], folder: Path, size: int, name: str) -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield {name: np.stack([to_pixels(read_image(row, folder), size) for row in rows[start : start + BATCH]])}


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", type=click.Path(path_type=Path), required=True, help="split.csv that training.train wrote.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True, help="The exported float .onnx file.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The INT8 .onnx file to write.")
@click.option("--settings", "settings_path", type=click.Path(path_type=Path), default=Path(__file__).with_name("settings.toml"))
def main(data: Path, split: Path, model: Path, output: Path, settings_path: Path) -> None:
    settings = load_settings(settings_path)
    rows = read_fold(data, split, "train", settings.licences)
    chosen = np.random.default_rng(settings.seed).choice(len(rows), PICTURES, replace=False)
    quantize(model, output, [rows[index] for index in chosen], data)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def quantize(model: Path, output: Path, rows: list[Row], folder: Path) -> None:
    """Write the INT8 file. Convolutions and additions are quantised; heads, what follows and a first look stay float."""
    whole, *first = split_looks(onnx.load(model))
    spec = read_spec(whole)
    heads = {head.name for head in spec.heads}
    with tempfile.TemporaryDirectory() as scratch:
        plain, prepared, raw = (Path(scratch) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        onnx.save(whole, plain)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        kept = [node.name for node in graph.node if any(f"evidence.{head}" in name for head in heads for name in node.input)]
        quantize_static(
            str(prepared),
            str(raw),
            Pictures(rows, folder, spec.size, graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Add"],
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
        )
        write_model(join_looks(onnx.load(raw), *first), output)


if __name__ == "__main__":
    main()
