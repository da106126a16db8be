"""Teach a network where people are: `python -m training.finder --data DIR --start NETWORK --output DIR`.

What it finds tells a scan where to look more closely (`imgsafety.where`). It reads what the tower of attire sees and changes
nothing else, so it comes last, and anew whenever that tower has moved. Pictures are composed, so that their places are known:
figures cut out, faces and parts of pictures, pasted at all sizes. Of a scene it is only known that somebody is in it: some of its
places have to say so. What a reader would get wrong: things are pasted just as people are, so that edges of what is pasted tell
nothing. Writes `network.safetensors`. It takes eight minutes of two cores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from imgsafety.preprocess import to_pixels
from training import augment
from training.data import NOBODY, Example, join, read_example
from training.heads import attire_target
from training.manifest import Row
from training.model import Network, load_network, seen_by
from training.settings import FILE, Settings, load_settings
from training.split import read_fold
from training.train import rate_at, save_network, total_steps, unless_left_out

EMPTY, SOMEBODY, UNKNOWN = 0, 1, -1  # what is known of a place
SIDE = 448  # of a canvas in pixels: what is pasted is reduced with it, as a small person in a picture is
CORE = (0.7, 0.9)  # of the width and height of a figure that is not cut out: there somebody is for sure
TOUCHED, COVERED = 0.05, 0.5  # of a place, from where on it is not known any more, or belongs to what was pasted
SURE = 8  # of the places of a scene, the one in so many that most shows people has to


@dataclass(frozen=True, slots=True)
class Part:
    """What is pasted: a picture, RGBA if it is cut out, and what is known of its places."""

    example: Example
    image: Image.Image
    shows: int


@dataclass(slots=True)
class Canvas:
    """A picture in the making. places: what is known of each; groups: the scene that a place is of, 0 for none."""

    joint: Example
    places: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]

    def lay(self, part: Part, box: tuple[int, int, int, int]) -> None:
        """Paste a part at (left, top, width, height). Raises `ValueError` beside whom it may not be, see `training.data.join`."""
        left, top, width, height = box
        image = part.image.resize((max(4, width), max(4, height)), Image.Resampling.BILINEAR)
        mask = Image.new("L", (SIDE, SIDE))
        mask.paste(image.getchannel("A") if image.mode == "RGBA" else 255, (left, top, left + image.width, top + image.height))
        self.joint = join(self.joint, part.example, self.joint.image)
        self.joint.image.paste(image, (left, top), image if image.mode == "RGBA" else None)
        covered = self._share(mask)
        if part.shows == EMPTY:
            self.places[covered > COVERED] = EMPTY
            self.groups[covered > COVERED] = 0
            return
        self.places[covered > TOUCHED] = UNKNOWN
        self.groups[covered > TOUCHED] = 0
        if part.shows == SOMEBODY:
            core = covered if image.mode == "RGBA" else self._share(_core(box))
            self.places[core >= min(COVERED, 0.9 * core.max())] = SOMEBODY
        else:
            self.groups[covered > COVERED] = self.groups.max() + 1

    def _share(self, mask: Image.Image) -> npt.NDArray[np.float64]:
        """The share of each place that a mask covers."""
        return np.asarray(mask.resize(self.places.shape, Image.Resampling.BOX), dtype=np.float64) / 255


class Canvases(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Composed pictures: pixels `uint8 (size, size, 3)`, what is known of each place, and its scene, `int64 (places, places)`.

    Item `i` is the same for the same seed, whoever asks. An exposed row shares a canvas with things only.
    """

    def __init__(self, rows: Sequence[Row], folder: Path, size: int, places: int, count: int, seed: int) -> None:
        self.folder, self.size, self.places, self.count, self.seed = folder, size, places, count, seed
        people = [row for row in rows if row.framing == "face" or row.attire in ("clothed", "revealing", "minimal")]
        self.alone = _by_origin([row for row in people if row.framing in ("face", "figure")])
        self.scenes = [row for row in people if row.framing == "scene"]
        self.things = [row for row in rows if row.attire == "no_person"]
        if not (self.alone and self.scenes and any(row.framing != "figure" for row in self.things)):
            raise click.UsageError("to find people takes figures or faces, scenes with people, and pictures of nobody")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng((self.seed, index))
        roll = random.random()
        canvas = self._pasted(random) if roll < 0.5 else self._grid(random) if roll < 0.7 else self._whole(random)
        image = canvas.joint.image
        if random.random() < 0.5:
            image = augment.recolour(image, random)
        if random.random() < 0.1:
            image = augment.stylise(image.reduce(2), random)  # at a quarter of the price
        if random.random() < 0.3:
            image = augment.degrade(image, 100, random)
        pixels = torch.from_numpy(to_pixels(image, self.size).copy())
        return pixels, torch.from_numpy(canvas.places), torch.from_numpy(canvas.groups)

    def _pasted(self, random: augment.Random) -> Canvas:
        canvas = self._canvas(augment.plain_ground(random))
        if random.random() < 0.8:
            canvas.lay(_grounded(self._thing(random, canvas.joint), random), (0, 0, SIDE, SIDE))
        for _ in range(int(random.choice([0, 1, 1, 1, 2, 3]))):
            part = self._somebody(random, canvas.joint) if random.random() < 0.65 else self._thing(random, canvas.joint)
            scale = SIDE * math.exp(random.uniform(math.log(0.14), math.log(0.7))) / max(part.image.size)
            stretch = math.exp(random.uniform(-0.25, 0.25))
            size = (min(SIDE - 1, int(part.image.width * scale * stretch)), min(SIDE - 1, int(part.image.height * scale / stretch)))
            left, top = (int(random.integers(0, SIDE - side)) for side in size)
            canvas.lay(_flipped(part, random), (left, top, *size))
        return canvas

    def _grid(self, random: augment.Random) -> Canvas:
        rows = int(random.integers(2, 5))
        cell = SIDE // rows
        canvas = self._canvas(augment.plain_ground(random))
        for place in range(rows * rows):
            part = self._somebody(random, canvas.joint) if random.random() < 0.35 else self._thing(random, canvas.joint)
            canvas.lay(_grounded(part, random), (place % rows * cell, place // rows * cell, cell, cell))
        return canvas

    def _whole(self, random: augment.Random) -> Canvas:
        canvas = self._canvas(augment.plain_ground(random))
        part = self._somebody(random, canvas.joint) if random.random() < 0.6 else self._thing(random, canvas.joint)
        canvas.lay(_flipped(_grounded(part, random), random), (0, 0, SIDE, SIDE))
        return canvas

    def _canvas(self, ground: Image.Image) -> Canvas:
        image = ground.resize((SIDE, SIDE), Image.Resampling.BILINEAR)  # always another one: it is painted over
        places = np.full((self.places, self.places), EMPTY)
        return Canvas(Example(image, attire_target("no_person"), NOBODY), places, np.zeros_like(places))

    def _somebody(self, random: augment.Random, joint: Example) -> Part:
        """Somebody who may be in the picture, else a thing: nobody exposed where somebody is already, nobody else beside them."""
        if joint.exposed:
            return self._thing(random, joint)
        if random.random() < 0.4:
            rows = self.scenes
        else:
            weights = np.sqrt([len(members) for members in self.alone])
            rows = self.alone[random.choice(len(self.alone), p=weights / weights.sum())]
        row = rows[random.integers(len(rows))]
        if row.exposed and joint.age != NOBODY:
            return self._thing(random, joint)
        example = read_example(row, self.folder, self.size)
        if row.framing == "scene":
            return Part(example, _cropped(example.image, 0.7, 0.3, random), UNKNOWN)
        roll = random.random()
        if roll < 0.6 and (figure := augment.cut_out(example.image)) is not None:
            return Part(example, figure, SOMEBODY)
        if row.framing == "face" and roll < 0.8:
            return Part(example, augment.soft_window(example.image, random), SOMEBODY)
        return Part(example, _cropped(example.image, 0.6, 0.5, random), SOMEBODY)

    def _thing(self, random: augment.Random, joint: Example) -> Part:
        """Nobody. A catalogue's garments, underwear among them, count as exposed: they lie beside things only."""
        row = self.things[random.integers(len(self.things))]
        while row.framing == "figure" and joint.age != NOBODY:
            row = self.things[random.integers(len(self.things))]
        example = replace(read_example(row, self.folder, self.size), exposed=row.framing == "figure")
        if random.random() < 0.5 and (cut := augment.cut_out(example.image)) is not None:
            return Part(example, cut, EMPTY)
        return Part(example, _cropped(example.image, 0.5, 0.5, random), EMPTY)


def _by_origin(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by source and attire: each is drawn by the root of its size, or one catalogue would be most of what is seen."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.source, row.attire), []).append(row)
    return list(found.values())


def _core(box: tuple[int, int, int, int]) -> Image.Image:
    left, top, width, height = box
    inner = [left + width * (1 - CORE[0]) / 2, top + height * (1 - CORE[1]) / 2]
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle([*inner, inner[0] + width * CORE[0], inner[1] + height * CORE[1]], fill=255)
    return mask


def _cropped(image: Image.Image, least: float, chance: float, random: augment.Random) -> Image.Image:
    """The picture, by chance only a window of at least so much of its area."""
    return augment.crop(image, least, random) if random.random() < chance else image


def _grounded(part: Part, random: augment.Random) -> Part:
    """The same on a plain ground, where it was cut out."""
    if part.image.mode != "RGBA":
        return part
    ground = augment.plain_ground(random).resize(part.image.size)
    ground.paste(part.image, (0, 0), part.image)
    return Part(part.example, ground, part.shows)


def _flipped(part: Part, random: augment.Random) -> Part:
    image = part.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part.image
    return Part(part.example, image, part.shows)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--start", type=FILE, required=True, help="network.safetensors of training.train.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for split.csv and the network.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("finder.toml"))
@click.option("--leave-out", multiple=True, help="Train without this source, as the network to start from was.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option(
    "--bfloat16", is_flag=True, help="Features in bfloat16, as always on CUDA; faster with AMX or AVX-512 BF16, far slower without."
)
def main(
    data: Path, start: Path, output: Path, settings_path: Path, leave_out: tuple[str, ...], device: str, bfloat16: bool
) -> None:
    settings = load_settings(settings_path)
    rows = read_fold(data, output / "split.csv", "train", settings.licences, leave_out)
    seen = unless_left_out(leave_out, seen_by(start))
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = load_network(start)
    network.add_finder(settings.finder_layer)
    teach(network, rows, data, settings, device, bfloat16)
    sources = None if seen is None else sorted({*(row.source for row in rows), *seen})
    save_network(network, output / "network.safetensors", settings, sources)


def teach(network: Network, rows: Sequence[Row], data: Path, settings: Settings, device: str, bfloat16: bool = False) -> None:
    """Run every stage. Only the finder learns; the rest of the network stays as it is, its batch statistics too."""
    network.to(device).to(memory_format=torch.channels_last).eval()
    finder = network.finder
    assert finder is not None
    finder.train()
    optimizer = torch.optim.AdamW(finder.parameters(), weight_decay=settings.weight_decay)
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16 or device.startswith("cuda"))
    step = 0
    for number, stage in enumerate(settings.stages):
        canvases = Canvases(rows, data, stage.size, _places(network, stage.size, device), stage.examples, settings.seed + number)
        for pixels, places, groups in DataLoader(canvases, settings.batch_size, num_workers=settings.workers, drop_last=True):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_at(settings, step)
            with torch.no_grad(), half:
                near, far = network.read_by_finder(pixels.to(device))
            loss = people_loss(finder(near.float(), far.float()), places.to(device), groups.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % settings.save_every == 0:
                print(f"step {step}/{total_steps(settings)}  loss {loss.item():.3f}", flush=True)
    network.eval()


def people_loss(logits: Tensor, places: Tensor, groups: Tensor) -> Tensor:
    """Cross-entropy of places that are known, those with and without somebody weighing the same, and of scenes.

    A scene has somebody where it most seems to: the mean logit of one in `SURE` of its places is asked (multiple instance
    learning, Dietterich et al. 1997). logits, places, groups: `(batch, rows, columns)`.
    """
    losses = [
        nn.functional.softplus(sign * logits[places == known]).sum() / (places == known).sum().clamp(min=1)
        for known, sign in ((SOMEBODY, -1), (EMPTY, 1))
    ]
    scenes = [
        logits[index][groups[index] == scene]
        for index in range(len(logits))
        for scene in range(1, int(groups[index].max()) + 1)
        if (groups[index] == scene).sum() > 1
    ]
    if scenes:
        most = torch.stack([scene.topk(max(1, len(scene) // SURE)).values.mean() for scene in scenes])
        losses.append(nn.functional.softplus(-most).mean())
    return torch.stack(losses).sum()


@torch.no_grad()
def _places(network: Network, size: int, device: str) -> int:
    near, _ = network.read_by_finder(torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device))
    return near.shape[2]


if __name__ == "__main__":
    main()
