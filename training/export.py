"""Write a trained network as one ONNX file with its spec inside: `python -m training.export --network A --output B`.

Batch norms are folded, weights stored in half precision, and the file is compared with the network on random pixels; beyond 1e-4
nothing is written. It has no temperatures yet: `training.temperature` fits them on the file itself.
"""

import logging
import warnings
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from imgsafety.session import MAP_SUFFIX, PEOPLE_MAP
from imgsafety.spec import METADATA_KEY, ModelSpec, to_json
from training.heads import HEADS
from training.model import FINDER_HEAD, Network, load_network
from training.onnx_file import HALVED_SIZE, halve_weights, join_looks, split_looks, write_model
from training.settings import FILE, load_settings

OPSET = 18
PARITY = 1e-4


class Answering(nn.Module):
    """`Network.answer` as a forward pass. people: with a map of people in any case, on which nobody is where there is no finder."""

    def __init__(self, network: Network, people: bool) -> None:
        super().__init__()
        self.network, self.people = network, people

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See `Network.answer`."""
        answers = self.network.answer(pixels)
        if self.people and self.network.finder is None:
            answers.append(torch.zeros_like(answers[-1][:, 0]))
        return tuple(answers)


@click.command(help=__doc__)
@click.option("--network", type=FILE, required=True, help="network.safetensors of training.train.")
@click.option("--first", type=FILE, help="That of the first look of a cascade; without it the same network takes it.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The .onnx file to write, with .sha256 beside it.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(network: Path, first: Path | None, output: Path, settings_path: Path) -> None:
    settings = load_settings(settings_path)
    spec = ModelSpec(settings.name, settings.version, settings.size, HEADS, settings.first_size)
    difference = export(load_network(network), spec, output, load_network(first) if first else None)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, differs from the network by {difference:.1e} at most")


def export(network: Network, spec: ModelSpec, output: Path, first: Network | None = None) -> float:
    """Export, check parity, write; return the largest difference. Raises `ValueError` beyond `PARITY`.

    first: the network that takes pictures of `first_size`. Both come out with batch norms folded, weights rounded.
    """
    networks = [network, first or network]
    for one in set(networks):
        fold(one)
    # Both looks of a file answer alike: a first look finds nobody, if the whole finds somebody.
    answering = [Answering(one, people=network.finder is not None).eval() for one in networks]
    pixels = [torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8) for side in (spec.size, spec.first_size)]
    model = join_looks(*(_to_onnx(one, pixels[0], spec) for one in (answering if first else answering[:1])))
    looks = zip(answering, split_looks(model) if first else [model, model], pixels, strict=True)
    difference = max(_difference(*look) for look in looks)
    if not difference < PARITY:  # NaN fails this too
        raise ValueError(f"the exported model differs from the network by {difference}")
    write_model(model, output)
    return difference


@torch.no_grad()
def fold(network: Network) -> None:
    """Fold batch norms into the weights before them, and round the weights to the half precision that they are stored in.

    A mean and a deviation that all channels share become one number: the runtime would take a sixth of its time to apply three.
    """
    network.eval().to(memory_format=torch.contiguous_format)
    for name in ("mean", "deviation"):
        value = getattr(network, name)
        if (value == value[:, :1]).all():
            setattr(network, name, value[:, :1].clone())
    cut = network.finder_layer - len(network.layers)
    network.layers = nn.Sequential(fuse(network.layers))
    for name, tower in network.towers.items():
        assert isinstance(tower, nn.Sequential)
        parts = (tower[:cut], tower[cut:]) if network.finder and name == FINDER_HEAD else (tower,)
        network.towers[name] = nn.Sequential(*(fuse(part) for part in parts))
    for name in network.classes:
        network.classes_of(name).fold()
    if network.finder:
        network.finder.fold()
        network.finder.layer = len(network.layers) + 1  # what is folded is one layer, up to where it reads
    for weight in network.parameters():
        if weight.numel() >= HALVED_SIZE:
            weight.copy_(weight.half().float())


@torch.no_grad()
def _difference(network: Answering, model: onnx.ModelProto, pixels: Tensor) -> float:
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = runtime.run(None, {"pixels": pixels.numpy()})
    return max(float(np.abs(wanted.numpy() - found).max()) for wanted, found in zip(network(pixels), answers, strict=True))


def _to_onnx(network: Answering, pixels: Tensor, spec: ModelSpec) -> onnx.ModelProto:
    heads = [head.name for head in HEADS]
    names = [*heads, *(name + MAP_SUFFIX for name in heads), *([PEOPLE_MAP] if network.people else [])]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            network,
            (pixels,),
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes={"pixels": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    halve_weights(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: to_json(spec)})
    return model


if __name__ == "__main__":
    main()
