"""Train a network on a manifest: `python -m training.train --data DIR --output DIR`.

Reads `manifest.csv` in the data folder, refuses it before any pixel when it breaks the rules, splits it, and
trains on the `train` fold alone. Writes `checkpoint.pt` (a stopped run goes on from it) and, at the end,
`network.safetensors`, the moving average of the weights, for `training.export`.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, Subset

from imgsafety.preprocess import halve
from training.data import Examples, draw_rows
from training.heads import AGE
from training.manifest import ADULT, Row
from training.model import Network, build, graft, has_folded_norms, load_network, restore_norms, save_weights
from training.settings import Settings, load_settings
from training.split import read_fold

WARM_UP_STEPS = 200
BACKBONE_RATE = 1 / 2  # the backbone learns slower than the fresh heads
NORM_IMAGES = 256  # real pictures from which folded batch norms get their statistics
AGE_MIDDLES = torch.tensor(AGE.middles)
UNDER_18 = torch.tensor([edge <= ADULT for edge in AGE.edges[1:]], dtype=torch.float32)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints; outside the repo.")
@click.option("--settings", "settings_path", type=click.Path(path_type=Path), default=Path(__file__).with_name("settings.toml"))
@click.option("--imagenet", type=click.Path(path_type=Path), help="Keras MobileNetV2 safetensors; default: torchvision's.")
@click.option("--start", type=click.Path(path_type=Path), help="network.safetensors to go on from, e.g. the shipped one.")
@click.option("--teacher", type=click.Path(path_type=Path), help="network.safetensors whose answers are learned too.")
@click.option("--no-pretraining", is_flag=True, help="Start from random weights (smoke runs).")
@click.option("--leave-out", multiple=True, help="Train without this source, to measure on it: `training.evaluate --left-out`.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(
    data: Path,
    output: Path,
    settings_path: Path,
    imagenet: Path | None,
    start: Path | None,
    teacher: Path | None,
    no_pretraining: bool,
    leave_out: tuple[str, ...],
    device: str,
) -> None:
    settings = load_settings(settings_path)
    rows = read_fold(data, output / "split.csv", "train", settings.licences)
    if unknown := set(leave_out) - {row.source for row in rows}:
        raise click.UsageError(f"the manifest has no source {', '.join(sorted(unknown))} to leave out")
    if leave_out and start is not None:
        raise click.UsageError("--leave-out needs a network that saw nothing of the source; --start may have")
    rows = [row for row in rows if row.source not in leave_out]
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    if start is not None:
        network = load_network(start)
    if start is None or settings.grafted:
        fresh = build(settings.backbone, imagenet, settings.dropout, not no_pretraining, settings.own_layers, settings.depth)
        if has_folded_norms(fresh):
            restore_norms(fresh, _plain_pixels(rows, data, settings))
        for head in settings.grafted if start is not None else ():
            graft(fresh, network, head)
        network = fresh
    train(network, rows, data, output, settings, device, load_network(teacher) if teacher else None)


def train(
    network: Network, rows: list[Row], data: Path, output: Path, settings: Settings, device: str, teacher: Network | None = None
) -> None:
    """Run every stage, from the checkpoint in `output` if there is one; write `network.safetensors`."""
    network.to(device).to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher.eval().to(device).to(memory_format=torch.channels_last)
    freeze(network, settings)
    average = AveragedModel(network, avg_fn=get_ema_avg_fn(settings.average), use_buffers=True)
    optimizer = _optimizer(network, settings)
    sources = sorted({row.source for row in rows})
    done = _restore(output / "checkpoint.pt", network, average, optimizer, sources, device)
    started = time.monotonic()
    for step, (pixels, attire, age, trust) in _batches(rows, data, settings, done):
        _set_rate(optimizer, settings, step)
        taught = _ask(teacher, pixels.to(device)) if teacher is not None else []
        if settings.halve_every and step % settings.halve_every == 0:
            pixels = torch.from_numpy(halve(pixels.numpy()))
        logits = network(pixels.to(device))
        losses = [head_loss(logits[0], attire.to(device), trust.to(device)), head_loss(logits[1], age.to(device), trust.to(device))]
        losses.append(settings.age_error_weight * expected_age_loss(logits[1], age.to(device)))
        losses.append(settings.minor_weight * minor_loss(logits[1], age.to(device)))
        for mine, theirs, target in zip(logits, taught, (attire, age), strict=False):
            losses.append(settings.teacher_weight * taught_loss(mine, theirs, target.to(device)))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        average.update_parameters(network)
        if step % settings.save_every == 0:
            _save(output / "checkpoint.pt", network, average, optimizer, sources, step)
            rate = (step - done) * settings.batch_size / (time.monotonic() - started)
            shown = " ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"step {step}/{_total_steps(settings)}  loss {shown}  {rate:.0f} images/s", flush=True)
    save_network(average.module, output / "network.safetensors", settings)


def head_loss(logits: Tensor, weights: Tensor, trust: Tensor) -> Tensor:
    """Mean negative log-likelihood of targets `(batch, labels)`, see `training.heads`.

    Weights that sum to 1 are a distribution: cross-entropy. More 1s are a set: minus the log of its
    probability, mixed with the chance `1 - trust` that the label is wrong (forward correction, Patrini
    et al. 2017). A set of all labels is no information and costs nothing.
    """
    logs = torch.log_softmax(logits, dim=1)
    is_distribution = weights.sum(dim=1) < 1.5
    cross_entropy = -(weights * logs).sum(dim=1)
    inside = (weights * logs.exp()).sum(dim=1).clamp(1e-6, 1)
    in_set = -torch.log(trust * inside + (1 - trust) * (1 - inside)).float()
    informative = (weights.amin(dim=1) < 1).float()
    losses = torch.where(is_distribution, cross_entropy, in_set) * informative
    return losses.sum() / informative.sum().clamp(min=1)


def expected_age_loss(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean error in decades of the expected age, over rows whose age is exact."""
    middles = AGE_MIDDLES.to(logits.device)
    exact = (weights.sum(dim=1) < 1.5).float()
    error = (torch.softmax(logits, dim=1) @ middles - weights @ middles).abs() / 10
    return (error * exact).sum() / exact.sum().clamp(min=1)


def minor_loss(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean negative log-likelihood of being under 18 or not, over rows whose age is exact.

    The distributions of neighbouring years overlap, so their cross-entropy alone leaves 17 and 18 half mixed.
    """
    below = UNDER_18.to(logits.device)
    exact = (weights.sum(dim=1) < 1.5).float()
    minor = (torch.softmax(logits, dim=1) @ below).clamp(1e-6, 1 - 1e-6)
    losses = nn.functional.binary_cross_entropy(minor, (weights @ below > 0.5).float(), reduction="none")
    return (losses * exact).sum() / exact.sum().clamp(min=1)


def taught_loss(logits: Tensor, taught: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy with a teacher's probabilities `(batch, labels)` (Hinton et al. 2015), over rows with a label.

    The others stay out because some of them must: an exposed picture teaches no age.
    """
    informative = (weights.amin(dim=1) < 1).float()
    losses = -(taught * torch.log_softmax(logits, dim=1)).sum(dim=1) * informative
    return losses.sum() / informative.sum().clamp(min=1)


@torch.no_grad()
def _ask(teacher: Network, pixels: Tensor) -> list[Tensor]:
    return [torch.softmax(logits, dim=1) for logits in teacher(pixels)]


def freeze(network: Network, settings: Settings) -> None:
    """Keep the first layers of the backbone and the towers of `frozen_heads` as they are, also their batch statistics."""
    if settings.frozen_heads and not network.own_layers:
        raise ValueError(f"frozen_heads names {settings.frozen_heads[0]!r}, which has no layers for itself: own_layers is 0")
    network.train()
    kept = [*network.layers[: settings.frozen_layers], *(network.towers[head] for head in settings.frozen_heads)]
    for layer in kept:
        layer.requires_grad_(False)
        layer.train(False)


def save_network(network: nn.Module, path: Path, settings: Settings) -> None:
    """Write the weights of a network that these settings describe."""
    assert isinstance(network, Network)
    about = {"backbone": settings.backbone, "padding": network.padding, "dropout": str(settings.dropout)}
    save_weights(network.state_dict(), {**about, "own_layers": network.own_layers, "depth": settings.depth}, path)


def _batches(rows: list[Row], data: Path, settings: Settings, done: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield (number of the step, batch) over all stages, leaving out the first `done` steps."""
    step = 0
    for number, stage in enumerate(settings.stages):
        draws = draw_rows(rows, settings.shares | stage.shares, stage.examples, settings.seed + number)
        plain = (settings.plain_faces, settings.plain_scenes)
        examples = Examples(rows, draws, data, stage.size, settings.seed + number, settings.trust, *plain)
        steps = stage.examples // settings.batch_size
        skipped = min(max(done - step, 0), steps)
        rest = Subset(examples, range(skipped * settings.batch_size, steps * settings.batch_size))
        step += skipped
        for batch in DataLoader(rest, settings.batch_size, num_workers=settings.workers) if skipped < steps else ():
            step += 1
            yield step, batch


def _total_steps(settings: Settings) -> int:
    return sum(stage.examples // settings.batch_size for stage in settings.stages)


def _optimizer(network: Network, settings: Settings) -> torch.optim.Optimizer:
    backbone = [*network.layers.parameters(), *network.towers.parameters()]
    groups = [
        {"params": [one for one in backbone if one.requires_grad], "scale": BACKBONE_RATE},
        {"params": list(network.evidence.parameters()), "scale": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _set_rate(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    progress = step / max(1, _total_steps(settings))
    rate = min(1.0, step / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * group["scale"] * max(rate, 0.01)


def _save(
    path: Path, network: Network, average: AveragedModel, optimizer: torch.optim.Optimizer, sources: list[str], step: int
) -> None:
    state = {"network": network.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, "sources": sources, "step": step}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)  # a run killed while saving keeps the checkpoint before


def _restore(
    path: Path, network: Network, average: AveragedModel, optimizer: torch.optim.Optimizer, sources: list[str], device: str
) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    if state["sources"] != sources:
        raise click.ClickException(f"{path} was trained on other sources: {', '.join(state['sources'])}; name another --output")
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _plain_pixels(rows: list[Row], data: Path, settings: Settings) -> Tensor:
    draws = draw_rows(rows, settings.shares, NORM_IMAGES, settings.seed)
    examples = Examples(rows, draws, data, settings.stages[0].size, settings.seed, {})
    return torch.from_numpy(np.stack([examples[index][0].numpy() for index in range(NORM_IMAGES)]))


if __name__ == "__main__":
    main()
