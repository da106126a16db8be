"""Average two networks, weight by weight: `python -m training.mix --before A --after B --share 0.85 --output C`.

For a network B that was trained on from A, or both from the same, on other data or in other ways. On the straight line between
the two lie networks that keep most of what B learned and forget less of what A knew (Wortsman et al. 2022, robust fine-tuning).
With `--head` only that head's own layers are mixed, and everything else is A's; `--own-layers` says how many these are to be.
What finds people goes where the path that it reads is mixed: `training.finder` teaches it anew.
"""

from copy import deepcopy
from pathlib import Path

import click
from torch import Tensor

from training.heads import HEADS
from training.model import FINDER_HEAD, Network, graft, load_network, path_of, read_about, save_weights, seen_by
from training.settings import FILE


@click.command(help=__doc__)
@click.option("--before", type=FILE, required=True, help="network.safetensors that training started from.")
@click.option("--after", type=FILE, required=True, help="network.safetensors that it ended with.")
@click.option("--share", type=click.FloatRange(0, 1), required=True, help="Of the second in the mix.")
@click.option("--head", type=click.Choice([head.name for head in HEADS]), help="Mix only the path of this head.")
@click.option("--own-layers", type=click.IntRange(0), help="Layers of its own that each head gets; default: as in A.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The network.safetensors to write.")
def main(before: Path, after: Path, share: float, head: str | None, own_layers: int | None, output: Path) -> None:
    about = read_about(before if head else after)
    about["sources"] = seen_by(before, after)
    if own_layers is not None and not head:
        raise click.UsageError("--own-layers goes with --head")
    network, other = load_network(before), load_network(after)
    if head:
        own_layers = network.own_layers if own_layers is None else own_layers
        if own_layers < network.own_layers:
            raise click.UsageError(f"each head of {before} has {network.own_layers} layers; with fewer, the other would change")
        network = mix_head(network, other, head, share, own_layers)
    else:
        network.finder = other.finder = None
        first, second = network.state_dict(), other.state_dict()
        if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in second.items()}:
            raise click.ClickException(f"{before} and {after} are not weights of the same network")
        network.load_state_dict(between(first, second, share))
    about.update(own_layers=network.own_layers, finder_layer=network.finder_layer)
    save_weights(network.state_dict(), about, output)


def mix_head(first: Network, second: Network, head: str, share: float, own_layers: int) -> Network:
    """Return `first` with the last `own_layers` layers of one head mixed with those of `second`."""
    longest = max((path_of(first, one.name) for one in HEADS), key=len)
    network = Network(longest, first.padding, first.dropout.p, own_layers)
    for one in HEADS:
        graft(network, first, one.name)
    theirs = deepcopy(network)
    graft(theirs, second, head)
    if (head in first.classes) != (head in second.classes):
        raise click.ClickException(f"only one of the two networks borrows for {head} from the classes of ImageNet")
    parts = [(network.towers, theirs.towers), (network.evidence, theirs.evidence), (network.classes, theirs.classes)]
    for ours, other in parts if head in first.classes else parts[:2]:
        ours[head].load_state_dict(between(ours[head].state_dict(), other[head].state_dict(), share))
    if head == FINDER_HEAD:
        network.finder = None
    return network


def between(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weights at `share` of the way from the first to the second."""
    return {name: first[name].float().lerp(value.float(), share).to(value.dtype) for name, value in second.items()}


if __name__ == "__main__":
    main()
