"""Train a network on a manifest: `python -m training.train --data DIR --output DIR`.

Reads `manifest.csv` in the data folder, refuses it before any pixel when it breaks the rules, splits it, and
trains on the `train` fold alone. Writes `checkpoint.pt` (a stopped run goes on from it) and, at the end,
`network.safetensors`, the moving average of the weights, for `training.export`.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, Subset

from imgsafety.preprocess import shrink
from training.data import Examples, draw_rows
from training.encoder import embed
from training.heads import AGE, ATTIRE, HEADS
from training.manifest import ADULT, Row
from training.mix import between
from training.model import (
    FINDER_HEAD,
    SHAPE,
    Network,
    build,
    graft,
    has_folded_norms,
    load_network,
    on_path_of,
    path_of,
    restore_norms,
    save_weights,
    seen_by,
)
from training.settings import FILE, Settings, SettingsError, load_settings
from training.split import read_fold, some_of

BACKBONE_RATE = 1 / 2  # the backbone learns slower than the fresh heads
NORM_IMAGES = 256  # real pictures from which folded batch norms get their statistics
AGE_MIDDLES = torch.tensor(AGE.middles)
UNDER_18 = torch.tensor([edge <= ADULT for edge in AGE.edges[1:]], dtype=torch.float32)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints; outside the repo.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
@click.option("--imagenet", type=FILE, help="Keras MobileNetV2 safetensors; default: torchvision's.")
@click.option("--start", type=FILE, help="network.safetensors to go on from, e.g. the shipped one.")
@click.option("--teacher", type=FILE, help="network.safetensors whose answers are learned too.")
@click.option("--encoder", type=FILE, help="ONNX image tower of CLIP, to see what it sees.")
@click.option("--no-pretraining", is_flag=True, help="Start from random weights (smoke runs).")
@click.option("--leave-out", multiple=True, help="Train without this source, to measure on it: `training.evaluate --left-out`.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Train on this share of the pictures only.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option(
    "--bfloat16", is_flag=True, help="Features in bfloat16, as always on CUDA; faster with AMX or AVX-512 BF16, far slower without."
)
def main(
    data: Path,
    output: Path,
    settings_path: Path,
    imagenet: Path | None,
    start: Path | None,
    teacher: Path | None,
    encoder: Path | None,
    no_pretraining: bool,
    leave_out: tuple[str, ...],
    share: float,
    device: str,
    bfloat16: bool,
) -> None:
    settings = load_settings(settings_path)
    rows = some_of(read_fold(data, output / "split.csv", "train", settings.licences, leave_out), share, "share of ")
    if not rows:
        raise click.UsageError("no picture is left to train on")
    seen = unless_left_out(leave_out, seen_by(start, teacher))
    if settings.trunk and start is None:
        raise click.UsageError("the settings name a trunk, which is a head of the network to go on from: --start")
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    if start is not None:
        network = load_network(start)
        if settings.trunk:
            network = on_path_of(network, settings.trunk, settings.own_layers, settings.last_layers)
    if start is None or settings.grafted:
        fresh = build(
            settings.backbone,
            imagenet,
            settings.dropout,
            not no_pretraining,
            settings.own_layers,
            settings.last_layers,
            settings.sharpness,
            settings.borrowed,
        )
        if has_folded_norms(fresh):
            restore_norms(fresh, _plain_pixels(rows, data, settings))
        for head in settings.grafted if start is not None else ():
            graft(fresh, network, head)
        network = fresh
    embedded = embed(encoder, rows, data, output, settings.threads) if encoder else None
    made_from = [_sha256(path) for path in (imagenet, start, teacher, encoder)]
    taught_by = load_network(teacher) if teacher else None
    train(network, rows, data, output, settings, device, taught_by, seen, bfloat16, embedded, made_from)


def _sha256(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""


def train(
    network: Network,
    rows: list[Row],
    data: Path,
    output: Path,
    settings: Settings,
    device: str,
    teacher: Network | None = None,
    seen: Sequence[str] | None = (),
    bfloat16: bool = False,
    embedded: npt.NDArray[np.float32] | None = None,
    made_from: Sequence[str] = (),
) -> None:
    """Run every stage, from the checkpoint in `output` if there is one; write `network.safetensors`.

    seen: sources that the network was trained on before, none if nobody knows, for the record in that file.
    embedded: what a larger encoder sees in each row's picture, `(rows, numbers)`, if the trained heads shall see it too.
    made_from: the SHA-256 of each file that it starts from or is taught by. A checkpoint of another run is refused.
    """
    network.to(device).to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher.eval().to(device).to(memory_format=torch.channels_last)
    freeze(network, settings)
    untaught = deepcopy(network).eval() if settings.steady_heads else None
    average = AveragedModel(network, avg_fn=get_ema_avg_fn(settings.average), use_buffers=True)
    wishes = torch.from_numpy(_standardised(embedded) if embedded is not None else np.empty((0, 0), np.float32)).to(device)
    readers = _readers(network, settings.heads, wishes.shape[1]).to(device)
    optimizer = _optimizer(network, readers, settings)
    sources = sorted({row.source for row in rows})
    trained = {"network": network, "average": average, "readers": readers, "optimizer": optimizer}
    run = {"sources": sources, "digest": _digest(rows, settings, [*made_from, str(bfloat16)])}
    done = _restore(output / "checkpoint.pt", trained, run, device)
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16 or device.startswith("cuda"))
    started = time.monotonic()
    for step, (pixels, before, attire, age, trust, row) in _batches(rows, data, settings, done):
        _set_rate(optimizer, settings, step)
        taught = _ask(teacher, pixels.to(device), settings.heads, half) if teacher is not None else {}
        if settings.first_every and step % settings.first_every == 0:
            pixels = torch.from_numpy(shrink(pixels.numpy(), pixels.shape[1] * settings.first_size // settings.size))
        wanted = _look(untaught, before.to(device), settings.steady_heads, half) if untaught is not None else {}
        features = _features(network, pixels.to(device), settings.heads, half)
        losses = []
        for head, theirs in wanted.items():
            losses += [steady_loss(one, other) for one, other in zip(seen_in(network, head, features), theirs, strict=True)]
            features[head] = _with_gradient(features[head], settings.steady_labels)
        logits, targets = network.pool(features), {ATTIRE.name: attire.to(device), AGE.name: age.to(device)}
        losses += label_losses(logits, targets, trust.to(device), settings)
        for head in logits if teacher is not None else ():
            losses.append(settings.teacher_weight * taught_loss(logits[head], taught[head], targets[head]))
        for head, reader in readers.items():
            losses.append(settings.encoder_weight * encoder_loss(reader(features[head].mean(dim=(2, 3))), wishes, row.to(device)))
        losses += [decay * evidence_size(network, head) for head, decay in settings.evidence_decay.items()]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        average.update_parameters(network)
        if step % settings.save_every == 0:
            _save(output / "checkpoint.pt", trained, run, step)
            rate = (step - done) * settings.batch_size / (time.monotonic() - started)
            shown = " ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"step {step}/{total_steps(settings)}  loss {shown}  {rate:.0f} images/s", flush=True)
    if untaught is not None:
        go_back(average.module, untaught, settings)
    save_network(average.module, output / "network.safetensors", settings, None if seen is None else sorted({*sources, *seen}))


def unless_left_out(leave_out: Sequence[str], seen: list[str] | None) -> list[str] | None:
    """Return what networks to go on from have seen, see `seen_by`. Raises `UsageError` where it may be of what is left out."""
    if leave_out and (seen is None or set(leave_out) & set(seen)):
        raise click.UsageError("--leave-out: networks to go on from must be such that saw nothing of the source and say so")
    return seen


def label_losses(logits: dict[str, Tensor], targets: dict[str, Tensor], trust: Tensor, settings: Settings) -> list[Tensor]:
    """What labels of attire and age cost, weighted, for the heads that are trained."""
    losses = [head_loss(found, targets[head], trust) for head, found in logits.items()]
    if AGE.name in logits:
        ages = logits[AGE.name], targets[AGE.name]
        losses.append(settings.age_error_weight * expected_age_loss(*ages))
        losses.append(settings.minor_weight * minor_loss(*ages))
    return losses


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


def encoder_loss(read: Tensor, wishes: Tensor, row: Tensor) -> Tensor:
    """Mean squared difference of what is read from features `(batch, numbers)` and what an encoder saw in the whole picture.

    wishes: that of all rows. row: the index of each picture's row, or -1, which costs nothing.
    """
    alone = row >= 0
    return (read[alone] - wishes[row[alone]]).square().sum() / (alone.sum().clamp(min=1) * wishes.shape[1])


def steady_loss(mine: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of features `(batch, channels)`, in deviations over the batch.

    The features of a changed picture are to be those that the network as it came has for the picture before the change
    (cross quality distillation, Su and Maji 2017). It sees no label, so it learns nothing of the origins of labels.
    """
    return ((mine - theirs) / theirs.std(dim=0).clamp(min=1e-3)).square().mean()


def _with_gradient(features: Tensor, share: float) -> Tensor:
    """The same features, through which only a share of what labels ask for reaches the layers below."""
    return share * features + (1 - share) * features.detach()


def seen_in(network: Network, head: str, features: Mapping[str, Tensor]) -> list[Tensor]:
    """What a head sees, averaged over places: features and, if it borrows from them, logits of ImageNet's classes.

    Of the logits, only how pictures differ: by how much a class falls in all changed pictures, the evidence's own bias makes good.
    """
    found = [features[head].mean(dim=(2, 3))]
    if head not in network.classes:
        return found
    logits = network.classes_of(head)(features[head])
    return [*found, logits - logits.mean(dim=0)]


def go_back(network: nn.Module, untaught: Network, settings: Settings) -> None:
    """Leave the layers of the steady heads on the way from where they started to where they are (Wortsman et al. 2022).

    Half way they have most of what training gave them, and have lost little of what they knew of other origins.
    """
    after, before = network.state_dict(), untaught.state_dict()
    own = ("layers.", *(f"{part}.{head}." for head in settings.steady_heads for part in ("towers", "classes")))
    trained = {name: value for name, value in after.items() if name.startswith(own)}
    network.load_state_dict(after | between(before, trained, settings.steady_way))


def _features(network: Network, pixels: Tensor, heads: Sequence[str], half: torch.autocast) -> dict[str, Tensor]:
    with half:
        found = network.features(pixels, heads)
    return {head: features.float() for head, features in found.items()}


@torch.no_grad()
def _look(untaught: Network, pixels: Tensor, heads: Sequence[str], half: torch.autocast) -> dict[str, list[Tensor]]:
    features = _features(untaught, pixels, heads, half)
    return {head: seen_in(untaught, head, features) for head in heads}


def evidence_size(network: Network, head: str) -> Tensor:
    """Sum of the squared weights of a head's evidence: small ones rest on many features, and carry over to other origins."""
    return network.evidence[head].get_parameter("weight").square().sum()


@torch.no_grad()
def _ask(teacher: Network, pixels: Tensor, heads: Sequence[str], half: torch.autocast) -> dict[str, Tensor]:
    logits = teacher.pool(_features(teacher, pixels, heads, half))
    return {head: torch.softmax(found, dim=1) for head, found in logits.items()}


def freeze(network: Network, settings: Settings) -> None:
    """Keep as they are, also in their batch statistics: the first layers of the backbone, the towers of `frozen_heads`,
    and everything of its own that a head has which is not among `heads`. A finder goes where the path that it reads does not stay.
    """
    if settings.frozen_heads and not network.own_layers:
        raise SettingsError(f"frozen_heads names {settings.frozen_heads[0]!r}, which has no layers for itself: own_layers is 0")
    network.train()
    others = [head.name for head in HEADS if head.name not in settings.heads]
    kept = [*network.layers[: settings.frozen_layers], *(network.towers[head] for head in (*settings.frozen_heads, *others))]
    finder = [network.finder] if network.finder else []
    for layer in [*kept, *(network.evidence[head] for head in others), *finder]:
        layer.requires_grad_(False)
        layer.train(False)
    if any(weight.requires_grad for weight in path_of(network, FINDER_HEAD).parameters()):
        network.finder = None  # on another path it would send zooms anywhere: `training.finder` teaches it anew
    for head in network.classes:
        network.classes[head].requires_grad_(head in settings.heads and head not in settings.frozen_heads)
        network.classes[head].train(False)
    for head in settings.steady_heads:  # they are held against themselves as they came, which have no batch to go by
        network.layers.train(False)
        network.towers[head].train(False)


def save_network(network: nn.Module, path: Path, settings: Settings, sources: Sequence[str] | None = None) -> None:
    """Write the weights of a network that these settings describe and, where that is known, these sources taught."""
    assert isinstance(network, Network)
    about = {"backbone": settings.backbone, "padding": network.padding, "dropout": str(network.dropout.p)}
    shape = {name: getattr(network, name) for name in SHAPE}
    save_weights(network.state_dict(), {**about, **shape, "sources": sources}, path)


def _batches(rows: list[Row], data: Path, settings: Settings, done: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield (number of the step, batch) over all stages, leaving out the first `done` steps."""
    step = 0
    for number, stage in enumerate(settings.stages):
        draws = draw_rows(rows, settings.shares | stage.shares, stage.examples, settings.seed + number, settings.other_share)
        changes = (settings.plain_faces, settings.plain_scenes, settings.stylised)
        examples = Examples(rows, draws, data, stage.size, settings.seed + number, settings.trust, *changes)
        steps = stage.examples // settings.batch_size
        skipped = min(max(done - step, 0), steps)
        rest = Subset(examples, range(skipped * settings.batch_size, steps * settings.batch_size))
        step += skipped
        # With a generator of its own it draws nothing from that of the dropout, which goes on where a checkpoint left it.
        loader = DataLoader(rest, settings.batch_size, num_workers=settings.workers, generator=torch.Generator())
        for batch in loader if skipped < steps else ():
            step += 1
            yield step, batch


def total_steps(settings: Settings) -> int:
    """How many steps all stages take."""
    return sum(stage.examples // settings.batch_size for stage in settings.stages)


def _standardised(embedded: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    deviations = np.maximum(embedded.std(axis=0), 1e-6)
    return np.asarray((embedded - embedded.mean(axis=0)) / deviations, dtype=np.float32)


def _readers(network: Network, heads: Sequence[str], numbers: int) -> nn.ModuleDict:
    """For each head a layer that reads from its features what an encoder sees, if there is one; not part of the network."""
    channels = {head: network.evidence[head].get_parameter("weight").shape[1] for head in heads if numbers}
    return nn.ModuleDict({head: nn.Linear(count, numbers) for head, count in channels.items()})


def _optimizer(network: Network, readers: nn.ModuleDict, settings: Settings) -> torch.optim.Optimizer:
    backbone = [*network.layers.parameters(), *network.towers.parameters(), *network.classes.parameters()]
    groups = [
        {"params": [one for one in backbone if one.requires_grad], "scale": BACKBONE_RATE},
        {"params": [*(one for one in network.evidence.parameters() if one.requires_grad), *readers.parameters()], "scale": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def rate_at(settings: Settings, step: int) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to 0 at the last."""
    progress = step / max(1, total_steps(settings))
    return min(1.0, step / settings.warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _set_rate(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    rate = max(rate_at(settings, step), 0.01)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * group["scale"] * rate


def _digest(rows: Sequence[Row], settings: Settings, made_from: Sequence[str]) -> str:
    """What a run must have in common with the checkpoint that it goes on from: all but the machine and how fast it runs."""
    decides = {name: value for name, value in asdict(settings).items() if name not in ("threads", "workers", "save_every")}
    text = json.dumps([decides, [astuple(row) for row in rows], list(made_from)], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _save(path: Path, trained: Mapping[str, Any], run: Mapping[str, Any], step: int) -> None:
    state = {name: part.state_dict() for name, part in trained.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, **run, "random": torch.get_rng_state(), "step": step}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)  # a run killed while saving keeps the checkpoint before


def _restore(path: Path, trained: Mapping[str, Any], run: Mapping[str, Any], device: str) -> int:
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as problem:  # torch raises unrelated classes, on a file that was cut off too
        raise click.ClickException(f"{path} cannot be read, remove it to start anew: {problem}") from problem
    if state["sources"] != run["sources"]:
        raise click.ClickException(f"{path} was trained on other sources: {', '.join(state['sources'])}; name another --output")
    if state.get("digest") != run["digest"]:
        raise click.ClickException(f"{path} is of a run with other settings, pictures or starting weights; name another --output")
    for name, part in trained.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"].cpu())
    return int(state["step"])


def _plain_pixels(rows: list[Row], data: Path, settings: Settings) -> Tensor:
    draws = draw_rows(rows, settings.shares, NORM_IMAGES, settings.seed, settings.other_share)
    examples = Examples(rows, draws, data, settings.stages[0].size, settings.seed, {})
    return torch.from_numpy(np.stack([examples[index][0].numpy() for index in range(NORM_IMAGES)]))


if __name__ == "__main__":
    main()
