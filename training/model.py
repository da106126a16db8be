"""The network: a torchvision backbone, evidence per place, and one softmax over labels and places together.

The first layers of the backbone are shared; of the last, each head has its own (a tower), because the heads want
opposite things: attire is known from few pictures of few origins, and carries over to others as long as the features stay what
ImageNet made them; years around 18 need features that ImageNet does not make.

Each head is a 1x1 convolution over the last feature map. Its softmax runs over all labels *and* all places
of the map at once; a label's probability is the sum over places. So every place competes with its
evidence (which is attention and log-sum-exp pooling in one), a small person with strong evidence decides,
and the same numbers, unsummed, are the map of where.

A `Finder` tells beside them where people are, also those too small for a head to judge: what a zoom goes by.

In: `uint8 (batch, size, size, 3)` RGB. Out: for each head probabilities `(batch, labels)`, for each head
a map `(batch, labels, rows, columns)` that sums to them, then that of people. Casting, mean and deviation are layers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision import models

from training.heads import ATTIRE, BORROWED, CLASSES, HEAD_NAMES, HEADS
from training.settings import SettingsError

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The Keras weights of a given file were trained on RGB in [-1, 1].
KERAS_MEAN, KERAS_DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
KERAS_CLASSES = 1001
FINDER_HEAD = ATTIRE.name  # whose tower a finder reads: it stays near what ImageNet made, and its maps are what zooms are for
FINDER_CHANNELS = 64
SHAPE = ("own_layers", "last_layers", "sharpness", "borrowed", "finder_layer")  # what else a network is built from
NONE_NAMED: Mapping[str, Any] = MappingProxyType({})  # a default that nobody can change


class Network(nn.Module):
    """All heads on one backbone. `forward` gives pooled log-evidence for training, `answer` probabilities.

    padding: `torch` or `keras`; how the backbone's stride-2 convolutions are padded, which also tells what
    range of pixels it was trained on. own_layers: how many of the last layers each head has for itself.
    last_layers: the layer that a head reads, where that is not the last. sharpness: by how much a head's evidence is multiplied
    after pooling; the larger, the smaller is the evidence itself, and the more the pooling is an average (1: log-sum-exp).
    borrowed: the heads that borrow evidence from classes of ImageNet, and the factor that it is multiplied by, see `Classes`.
    finder_layer: the layer of attire's path that a `Finder` reads besides the last; 0: there is none.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        layers: nn.Sequential,
        padding: str,
        dropout: float,
        own_layers: int = 0,
        last_layers: Mapping[str, int] = NONE_NAMED,
        sharpness: Mapping[str, float] = NONE_NAMED,
        borrowed: Mapping[str, float] = NONE_NAMED,
        finder_layer: int = 0,
    ) -> None:
        super().__init__()
        if padding == "keras":
            _pad_like_keras(layers)
        mean, deviation = (KERAS_MEAN, KERAS_DEVIATION) if padding == "keras" else (IMAGENET_MEAN, IMAGENET_DEVIATION)
        self.padding, self.own_layers = padding, own_layers
        self.sharpness = {head.name: sharpness.get(head.name, 1.0) for head in HEADS}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1) * 255)
        self.dropout = nn.Dropout(dropout)
        shared = len(layers) - own_layers
        if any(not shared <= last <= len(layers) for last in last_layers.values()):
            raise SettingsError(f"last_layers must be from {shared}, which all heads share, to {len(layers)}: {dict(last_layers)}")
        ends = {head.name: last_layers.get(head.name, len(layers)) for head in HEADS}
        self.layers = layers[:shared]
        self.towers = nn.ModuleDict({name: deepcopy(layers[shared:end]) for name, end in ends.items()})
        evidence = {head.name: nn.Conv2d(_channels(layers[: ends[head.name]]), len(head.labels), 1) for head in HEADS}
        for layer in evidence.values():
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.get_parameter("bias"))
        self.evidence = nn.ModuleDict(evidence)
        self.borrowed = dict(borrowed)
        self.classes = nn.ModuleDict({name: Classes(name, factor, layers, ends[name]) for name, factor in borrowed.items()})
        self.finder: Finder | None = None
        if finder_layer:
            self.add_finder(finder_layer)

    def add_finder(self, layer: int) -> None:
        """Give it a new `Finder`. Raises `SettingsError` where its head has not that layer for itself, or nothing after it."""
        path = path_of(self, FINDER_HEAD)
        if not len(self.layers) < layer < len(path):
            raise SettingsError(f"finder_layer is {layer}, not one between {len(self.layers)} and {len(path)}")
        self.finder = Finder(layer, _channels(path[:layer]), _channels(path))

    @property
    def finder_layer(self) -> int:
        """The layer that a finder reads besides the last; 0: there is none."""
        return self.finder.layer if self.finder else 0

    @property
    def last_layers(self) -> dict[str, int]:
        """The number of the layer that each head reads."""
        return {name: len(path_of(self, name)) for name in self.towers}

    def features(self, pixels: Tensor, heads: Sequence[str] = HEAD_NAMES) -> dict[str, Tensor]:
        """The feature map `(batch, channels, rows, columns)` that each of these heads reads, by its name."""
        shared = self._shared(pixels)
        return {name: self.towers[name](shared) for name in heads}

    def features_and_people(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """`features` of all heads, and if there is a finder the logits `(batch, rows, columns)` of people at each place."""
        shared = self._shared(pixels)
        others = {name: tower(shared) for name, tower in self.towers.items() if self.finder is None or name != FINDER_HEAD}
        if self.finder is None:
            return others, None
        near, far = self._near_and_far(shared, self.finder.layer)
        return {**others, FINDER_HEAD: far}, self.finder(near, far)

    def read_by_finder(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The features `(batch, channels, rows, columns)` that the finder reads: at its layer, and at the end of attire's path."""
        return self._near_and_far(self._shared(pixels), self.finder_layer)

    def _near_and_far(self, shared: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        path, start = path_of(self, FINDER_HEAD), len(self.layers)
        near = path[start:layer](shared)
        return near, path[layer:](near)

    def _shared(self, pixels: Tensor) -> Tensor:
        scaled = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        shared: Tensor = self.layers(scaled)
        return shared

    def places(self, features: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, float]]:
        """The name, the evidence `(batch, labels, rows * columns)` and the sharpness of each head that has features here."""
        for name in (head.name for head in HEADS if head.name in features):
            evidence = self.evidence[name](self.dropout(features[name]))
            if name in self.classes:
                evidence = evidence + self.classes_of(name).lend(features[name])
            yield name, evidence.flatten(2), self.sharpness[name]

    def classes_of(self, head: str) -> "Classes":
        """What tells the classes of ImageNet from the features of a head that borrows from them."""
        classes = self.classes[head]
        assert isinstance(classes, Classes)
        return classes

    def pool(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits `(batch, labels)` of each head that has features here: log-sum-exp over places, sharpened."""
        return {name: sharpness * evidence.logsumexp(dim=2) for name, evidence, sharpness in self.places(features)}

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Logits `(batch, labels)` of each head."""
        return list(self.pool(self.features(pixels)).values())

    def answer(self, pixels: Tensor) -> list[Tensor]:
        """Probabilities of every head, then maps of every head, then that of people if there is a finder."""
        features, people = self.features_and_people(pixels)
        probabilities, maps = [], []
        for name, evidence, sharpness in self.places(features):
            probability = torch.softmax(sharpness * evidence.logsumexp(dim=2), dim=1)
            place = torch.softmax(sharpness * evidence, dim=2).unflatten(2, features[name].shape[2:])
            probabilities.append(probability)
            maps.append(place * probability[:, :, None, None])
        return probabilities + maps + ([] if people is None else [torch.sigmoid(people)])


class Classes(nn.Module):
    """The rest of a network for ImageNet, behind the features that a head reads, and what the head borrows of it.

    Networks have learned some classes (`training.heads.BORROWED`) from thousands of pictures of many origins. Their evidence is
    added to the head's own, at each place, so that it carries over to origins that the head's labels do not cover.
    """

    share: Tensor

    def __init__(self, head: str, factor: float, layers: nn.Sequential, end: int) -> None:
        super().__init__()
        self.layers = deepcopy(layers[end:])
        self.tell = nn.Conv2d(_channels(layers), CLASSES, 1)
        labels = next(one.labels for one in HEADS if one.name == head)
        share = torch.zeros(len(labels), CLASSES)
        for label, classes in BORROWED[head].items():
            share[labels.index(label), list(classes)] = factor / len(classes)
        self.register_buffer("share", share, persistent=False)

    @torch.no_grad()
    def start_from(self, classifier: nn.Module) -> None:
        """Take over the last layer of a classifier. Keras has one more class in front: nothing of these."""
        last = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)][-1]
        self.tell.weight.copy_(last.weight[-CLASSES:, :, None, None])
        self.tell.get_parameter("bias").copy_(last.bias[-CLASSES:])

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, 1000)`, the mean over places."""
        found: Tensor = self.tell(self.layers(features).mean(dim=(2, 3), keepdim=True))
        return found.flatten(1)

    def lend(self, features: Tensor) -> Tensor:
        """Evidence `(batch, labels, rows, columns)` of the head's labels."""
        return nn.functional.conv2d(self.layers(features), *self.lent())

    def lent(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of that evidence: the classes of a label are averaged before they meet a picture, not after."""
        weight = self.share @ self.tell.weight.flatten(1)
        return weight[:, :, None, None], self.share @ self.tell.get_parameter("bias")

    @torch.no_grad()
    def fold(self) -> None:
        """Fold batch norms, and keep of the classes only what is lent."""
        self.layers = nn.Sequential(fuse(self.layers))
        weight, bias = self.lent()
        self.tell = nn.Conv2d(weight.shape[1], len(weight), 1)
        self.tell.weight.copy_(weight)
        self.tell.get_parameter("bias").copy_(bias)
        self.share = torch.eye(len(weight))


class Finder(nn.Module):
    """The chance that somebody is at a place, of a map of twice as many places a side as the heads have.

    It reads the features of a head where there are as many places (`near`) and those at its end (`far`), and changes neither.
    """

    def __init__(self, layer: int, near: int, far: int) -> None:
        super().__init__()
        self.layer = layer
        self.near, self.far = (
            nn.Sequential(nn.Conv2d(channels, FINDER_CHANNELS, 1, bias=False), nn.BatchNorm2d(FINDER_CHANNELS))
            for channels in (near, far)
        )
        self.tell = nn.Conv2d(FINDER_CHANNELS, 1, 3, padding=1)

    def forward(self, near: Tensor, far: Tensor) -> Tensor:
        """Logits `(batch, rows, columns)`, as many places as `near` has."""
        seen = self.near(near)
        coarse = nn.functional.interpolate(self.far(far), size=seen.shape[2:], mode="bilinear")
        logits: Tensor = self.tell(torch.relu(seen + coarse))[:, 0]
        return logits

    def fold(self) -> None:
        """Fold batch norms."""
        self.near, self.far = (nn.Sequential(fuse(part)) for part in (self.near, self.far))


def build(
    backbone: str,
    weights: Path | None,
    dropout: float,
    pretrained: bool = True,
    own_layers: int = 0,
    last_layers: Mapping[str, int] = NONE_NAMED,
    sharpness: Mapping[str, float] = NONE_NAMED,
    borrowed: Mapping[str, float] = NONE_NAMED,
    finder_layer: int = 0,
) -> Network:
    """Build a network on any torchvision classifier.

    weights: a safetensors file of Keras MobileNetV2 weights; none takes torchvision's own (a download).
    """
    classifier, padding = _read_classifier(backbone, weights, pretrained)
    network = Network(_feature_layers(classifier), padding, dropout, own_layers, last_layers, sharpness, borrowed, finder_layer)
    for head in borrowed:
        network.classes_of(head).start_from(classifier)
    return network


def _read_classifier(backbone: str, weights: Path | None, pretrained: bool = True) -> tuple[nn.Module, str]:
    """Any torchvision classifier, or MobileNetV2 with Keras weights from a file; and how it is padded, see `Network`."""
    if weights is None:
        return models.get_model(backbone, weights="DEFAULT" if pretrained else None), "torch"
    if backbone != "mobilenet_v2":
        raise SettingsError(f"the weights file holds mobilenet_v2, the settings ask for {backbone}")
    classifier = models.mobilenet_v2(num_classes=KERAS_CLASSES)
    classifier.load_state_dict(load_file(weights))
    return classifier, "keras"


def save_weights(weights: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """Write weights in half precision as safetensors, with what `load_network` needs to build the network in the metadata."""
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().cpu() for name, value in halves.items()}, path, {"network": json.dumps(about)})


def read_about(path: Path) -> dict[str, Any]:
    """Return what a file of `save_weights` says of its network. Raises `ClickException` for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["network"])
    except (SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise click.ClickException(f"{path} is not a whole network.safetensors of training.train: {problem}") from problem
    return about


def seen_by(*paths: Path | None) -> list[str] | None:
    """The sources whose pictures taught any of these files of `save_weights`; none where one does not say."""
    seen: set[str] = set()
    for path in paths:
        sources = read_about(path).get("sources") if path is not None else ()
        if sources is None:
            return None
        seen.update(sources)
    return sorted(seen)


def load_network(path: Path) -> Network:
    """Build the network that `training.train` saved as `network.safetensors`."""
    about = read_about(path)
    classifier = models.get_model(about["backbone"], weights=None)
    layers = _feature_layers(classifier)
    shape = {name: about[name] for name in SHAPE if name in about}
    network = Network(layers, about["padding"], float(about["dropout"]), **shape)
    network.load_state_dict(load_file(path))
    return network


def path_of(network: Network, head: str) -> nn.Sequential:
    """Every layer from the picture to the features of one head."""
    tower = network.towers[head]
    assert isinstance(tower, nn.Sequential)
    return nn.Sequential(*network.layers, *tower)


def graft(network: Network, other: Network, head: str) -> None:
    """Give a head of `network` the layers and the evidence that it has in `other`, whatever part of them is shared there."""
    network.towers[head] = deepcopy(path_of(other, head)[len(network.layers) :])
    network.evidence[head] = deepcopy(other.evidence[head])
    network.sharpness[head] = other.sharpness[head]
    if head in other.classes:
        network.borrowed[head] = other.borrowed[head]
        network.classes[head] = deepcopy(other.classes[head])
    if head == FINDER_HEAD and other.finder:
        network.finder = deepcopy(other.finder)


def on_path_of(network: Network, head: str, own_layers: int, last_layers: Mapping[str, int]) -> Network:
    """A network in which all heads share the first layers that one head has in `network`.

    That head reads and says what it did; the others start from its layers. Nobody is found any more. own_layers, last_layers: as in
    `Network`.
    """
    rest = network.classes_of(head).layers if head in network.classes else ()  # of the backbone, whose end `own_layers` counts from
    layers = deepcopy(nn.Sequential(*path_of(network, head), *rest))
    other = Network(layers, network.padding, network.dropout.p, own_layers, last_layers, network.sharpness)
    graft(other, network, head)
    other.finder = None  # a first look does not zoom
    return other


def _feature_layers(classifier: nn.Module) -> nn.Sequential:
    """Everything up to the last feature map: `.features` where there is one, else all but pool and classifier."""
    found = getattr(classifier, "features", None)
    return found if isinstance(found, nn.Sequential) else nn.Sequential(*list(classifier.children())[:-2])


@torch.no_grad()
def _channels(layers: nn.Sequential) -> int:
    return int(deepcopy(layers).eval()(torch.zeros(1, 3, 64, 64)).shape[1])  # a copy: these may be part of a network in use


def _pad_like_keras(layers: nn.Module) -> None:
    """Change stride-2 convolutions in place: TensorFlow pads them at right and bottom only; torchvision on every side."""
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2) and child.kernel_size == (3, 3) and child.padding != (0, 0):
                child.padding = (0, 0)
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), child))


def has_folded_norms(layers: nn.Module) -> bool:
    """True when every batch norm is the identity plus a bias, as in a file made from a compiled model.

    The norms of an untrained network are the identity too, but have no bias.
    """
    norms = [layer for layer in layers.modules() if isinstance(layer, nn.BatchNorm2d)]
    untouched = all(norm.running_mean is not None and not norm.running_mean.any() for norm in norms)
    return untouched and any(bool(norm.bias.any()) for norm in norms)


@torch.no_grad()
def restore_norms(network: Network, pixels: Tensor) -> None:
    """Give folded batch norms the statistics of real images `uint8 (n, size, size, 3)`.

    The function of the network stays the same; train mode would otherwise change it. One pass is
    enough: the inputs of later norms do not move when earlier ones are restored.
    """
    statistics: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        statistics[norm] = (mean, variance)

    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    network.eval()(pixels)
    for hook in hooks:
        hook.remove()
    for norm, (mean, variance) in statistics.items():
        norm.running_mean = mean.clone()
        norm.running_var = variance.clone()
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.bias.add_(mean)
