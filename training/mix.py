"""Average two networks, weight by weight: `python -m training.mix --before A --after B --share 0.85 --output C`.

For a network B that was trained on from A on part of the data. On the straight line between the two lie networks
that keep most of what B learned and forget less of what A knew (Wortsman et al. 2022, robust fine-tuning).
"""

from pathlib import Path

import click
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(help=__doc__)
@click.option("--before", type=FILE, required=True, help="network.safetensors that training started from.")
@click.option("--after", type=FILE, required=True, help="network.safetensors that it ended with.")
@click.option("--share", type=click.FloatRange(0, 1), required=True, help="Of the second in the mix.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The network.safetensors to write.")
def main(before: Path, after: Path, share: float, output: Path) -> None:
    first, second = load_file(before), load_file(after)
    if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in second.items()}:
        raise click.ClickException(f"{before} and {after} are not weights of the same network")
    with safe_open(after, framework="pt") as file:
        about = file.metadata()
    mixed = {name: first[name].float().lerp(value.float(), share).to(value.dtype) for name, value in second.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(mixed, output, about)


if __name__ == "__main__":
    main()
