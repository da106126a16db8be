"""How well a search finds small changes that take a score under its threshold.

`python -m training.evasion --data DIR --split split.csv` attacks held-out pictures that score above it as they are. The search
knows nothing but the score that it wants to lower: each query changes one random square by the most that is allowed and is
kept when the score fell (Square Attack in the maximum norm, Andriushchenko et al. 2020). Prints one table. Needs no torch.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from imgsafety import Scanner, load_policy
from imgsafety.scan import together
from training.manifest import Row
from training.measure import Values, rate
from training.predict import open_scanner, read_image
from training.settings import FILE, load_settings
from training.split import read_fold
from training.tables import Table, some_rows, threshold

Picture = npt.NDArray[np.uint8]
LEVELS = (4, 8, 16)  # of 255, by which a channel may change
FIRST_SHARE = 0.1  # of the picture's area that the first squares take; they shrink as the search goes on


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--split", type=FILE, required=True, help="split.csv that training.train wrote.")
@click.option("--model", type=FILE, help="Model file; default: the shipped one.")
@click.option("--queries", default=200, show_default=True, help="Scores that the search may ask for, for each picture.")
@click.option("--most", default=100, show_default=True, help="Pictures of each kind, at most.")
@click.option("--settings", "settings_path", type=FILE, default=Path(__file__).with_name("settings.toml"))
def main(data: Path, split: Path, model: Path | None, queries: int, most: int, settings_path: Path) -> None:
    rows = read_fold(data, split, "test", load_settings(settings_path).licences)
    policy = load_policy("default")
    scanner = open_scanner(model, zoom=bool(policy.zoom))
    random = np.random.default_rng(0)
    minimal = some_rows(rows, np.array([row.attire == "minimal" for row in rows]), random, most)
    minors = some_rows(rows, np.array([row.minor and row.framing == "face" for row in rows]), random, most)
    lines = []
    for levels in LEVELS:
        cells = [f"{levels} of 255"]
        for some, score, rule in ((minimal, "minimal_attire", "minimal-attire"), (minors, "minor", "minor-exposed")):
            limit = threshold(policy, rule, score)
            closer = threshold(policy.for_look("zoom"), rule, score) if score == "minimal_attire" else math.inf
            lowest = search(scanner, read_pictures(some, data), score, limit, levels, queries, closer)
            cells.append(str(rate(lowest < limit)))
        lines.append(tuple(cells))
    about = f"At most {most} pictures that score above the default policy's threshold as they are; at most {queries} queries each."
    columns = ("largest change of a channel", "minimal attire: under its threshold", "faces of minors: under its threshold")
    print(Table("A black-box search", about, columns, lines).markdown())


def read_pictures(rows: Sequence[Row], data: Path) -> list[Picture]:
    """Decode pictures to uint8 (height, width, 3)."""
    return [np.asarray(read_image(row, data)) for row in rows]


def search(
    scanner: Scanner,
    pictures: Sequence[Picture],
    score: str,
    limit: float,
    levels: int,
    queries: int,
    closer: float = math.inf,
) -> Values:
    """Return the lowest score found for each picture that scores at least `limit` as it is, `(found,)` in any order.

    closer: the limit in a zoom, whose score counts in proportion; infinity where only the whole counts.
    """
    random, zoom_factor = np.random.default_rng(0), limit / closer
    start = _scores(scanner, pictures, score, zoom_factor)
    originals = [picture for picture, value in zip(pictures, start, strict=True) if value >= limit]
    best = [_stripes(picture, levels, random) for picture in originals]
    lowest = np.minimum(start[start >= limit], found := _scores(scanner, best, score, zoom_factor))
    best = [tried if value <= low else picture for tried, picture, value, low in zip(best, originals, found, lowest, strict=True)]
    for query in range(2, queries + 1):
        open_ = np.flatnonzero(lowest >= limit)
        if not len(open_):
            break
        tried = [_square(best[index], originals[index], levels, query / queries, random) for index in open_]
        for index, picture, value in zip(open_, tried, _scores(scanner, tried, score, zoom_factor), strict=True):
            if value < lowest[index]:
                lowest[index], best[index] = value, picture
    return lowest


def _scores(scanner: Scanner, pictures: Sequence[Picture], score: str, zoom_factor: float) -> Values:
    factors = {"whole": 1.0, "half": 0.0, "zoom": zoom_factor}  # a half counts in the whole's score alone
    looks = (zip(one.looks, one.scores, strict=True) for one in map(together, scanner.score(pictures)))
    return np.array([max(factors[look] * scores.named[score] for look, scores in one) for one in looks])


def _stripes(picture: Picture, levels: int, random: np.random.Generator) -> Picture:
    """Where the search begins: every column and channel up or down by all that is allowed."""
    signs = random.choice((-levels, levels), size=(1, picture.shape[1], 3))
    changed: Picture = np.clip(picture.astype(int) + signs, 0, 255).astype(np.uint8)
    return changed


def _square(best: Picture, original: Picture, levels: int, progress: float, random: np.random.Generator) -> Picture:
    """Set one random square, in each channel, to the original plus or minus all that is allowed."""
    height, width = original.shape[:2]
    # The schedule of the paper, for 10,000 queries there, pressed into the queries that we have.
    share = FIRST_SHARE / 2 ** sum(progress > edge for edge in (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
    side = max(1, min(height, width, round(math.sqrt(share * height * width))))
    top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
    place = (slice(top, top + side), slice(left, left + side))
    changed = best.copy()
    changed[place] = np.clip(original[place].astype(int) + random.choice((-levels, levels), size=(1, 1, 3)), 0, 255)
    return changed


if __name__ == "__main__":
    main()
