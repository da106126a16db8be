"""A labelled folder of drawn blocks: what the training programs read, without a single photograph.

Each label has its own tint. Nobody could learn anything about people from it; it shows that the programs work.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40
COLUMNS = "path source medium framing attire age_min age_max gender ethnicity group how".split()
# source, framing, attire, age_min, age_max, tint
LABELS = (
    ("drawn_figures", "figure", "minimal", 18, 99, (200, 40, 40)),
    ("drawn_figures", "figure", "revealing", 18, 99, (200, 160, 40)),
    ("drawn_figures", "figure", "clothed", 18, 99, (40, 200, 40)),
    ("drawn_scenes", "scene", "clothed", 0, 17, (40, 200, 160)),
    ("drawn_scenes", "scene", "no_person", "", "", (120, 120, 120)),
    ("drawn_faces", "face", "", 9, 9, (40, 40, 200)),
    ("drawn_faces", "face", "", 40, 40, (40, 120, 200)),
)


def draw_blocks(tint: tuple[int, int, int], random: np.random.Generator) -> Image.Image:
    """Blocks of random brightness under a tint; no two look alike."""
    blocks = random.uniform(0.2, 1, (8, 8, 1)) * np.array(tint)
    return Image.fromarray(blocks.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def write_labelled(folder: Path, per_label: int = 12) -> Path:
    """Write `per_label` pictures of each label and their manifest.csv; return the folder."""
    random = np.random.default_rng(0)
    rows = []
    for number, (source, framing, attire, low, high, tint) in enumerate(LABELS):
        for index in range(per_label):
            path = f"{source}/{number}_{index}.png"
            (folder / source).mkdir(parents=True, exist_ok=True)
            draw_blocks(tint, random).save(folder / path)
            rows.append([path, source, "drawn", framing, attire, low, high, "", "", "", "tests"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder
