"""Add pictures of Debian packages to a manifest: `python -m training.packages --data DIR --debs DEBS --output BOTH`.

DEBS is a folder of `.deb` files (`apt-get download`), of the packages in `packages.toml`. BOTH gets small copies of their pictures,
links to what is in DIR, and a manifest of all. They are screenshots, icons, clip art, textures, maps, the night sky: what lies in
people's folders beside photographs, and what the other sources lack. What a reader would get wrong: nobody looked at these
pictures one by one. They are known not to be exposed, no more (`not_minimal`), and stand in the `train` fold alone. The settings
that train on them name their licences.
"""

import csv
import hashlib
import re
import subprocess
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from training.heads import NOT_MINIMAL
from training.settings import FILE

PACKAGES = Path(__file__).with_name("packages.toml")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
FOLDER = "packages"  # of the copies
SIDE = 240  # of the longer side of a copy, as of the other sources
LEAST_SIDE, LEAST_COPY, MOST_PIXELS, THINNEST = 64, 40, 30_000_000, 6
QUALITY = 80
SEED = 1


@dataclass(frozen=True, slots=True)
class Package:
    """Which pictures of a package to take: at most so many whose path matches `only` and not `never` (regular expressions)."""

    name: str
    most: int
    only: str = ""
    never: str = "(?!)"  # matches nothing

    @property
    def source(self) -> str:
        """The name of the source in the manifest."""
        return f"debian_{self.name.replace('-', '_')}"

    def wants(self, path: str) -> bool:
        """True when the path, below the package's root, is of a picture to take."""
        return path.lower().endswith(ENDINGS) and bool(re.search(self.only, path)) and not re.search(self.never, path)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with manifest.csv.")
@click.option("--debs", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with the .deb files.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for all of it; outside the repo.")
@click.option("--packages", "table", type=FILE, default=PACKAGES, help="Another packages.toml.")
def main(data: Path, debs: Path, output: Path, table: Path) -> None:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is not decoded
    packages = [Package(name, **entry) for name, entry in tomllib.loads(table.read_text(encoding="utf-8")).items()]
    archives = {package.name: _archive(debs, package.name) for package in packages}
    with (data / "manifest.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = {Path(row["path"]).parts[0] for row in rows}
    if FOLDER in names:
        raise click.UsageError(f"{data} has a folder {FOLDER!r} of its own: its pictures would be hidden by those of the packages")
    output.mkdir(parents=True, exist_ok=True)
    for package in packages:
        with tempfile.TemporaryDirectory() as root:
            _unpack(archives[package.name], Path(root))
            taken = [_row(package, path) for path in _copies(package, Path(root), output)]
        print(f"{package.name}: {len(taken)} pictures", flush=True)
        rows += taken
    for name in names:
        if not (output / name).exists():
            (output / name).symlink_to((data / name).resolve())
    with (output / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(field for row in rows for field in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def _archive(debs: Path, name: str) -> Path:
    found = sorted(debs.glob(f"{name}_*.deb"))
    if not found:
        raise click.UsageError(f"{debs} has no {name}_*.deb; fetch it there: apt-get download {name}")
    return found[-1]


def _unpack(archive: Path, root: Path) -> None:
    try:
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)  # noqa: S603, S607  # Debian's own tool, and no shell
    except (OSError, subprocess.CalledProcessError) as problem:
        raise click.ClickException(f"{archive} cannot be unpacked by dpkg-deb: {problem}") from problem


def _copies(package: Package, root: Path, output: Path) -> Iterator[str]:
    """Write a small copy of each picture that is taken; yield their paths below the output."""
    named = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    chosen = sorted(place for place in named if package.wants(place))
    np.random.default_rng(SEED).shuffle(chosen)
    count = 0
    for place in chosen:
        copy = _copy(named[place], place)
        if copy is None:
            continue
        path = f"{FOLDER}/{package.name}/{count:05d}.jpg"
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        copy.save(output / path, quality=QUALITY)
        yield path
        count += 1
        if count == package.most:
            return


def _copy(path: Path, place: str) -> Image.Image | None:
    """The picture as RGB, small, on a white or black ground where it is transparent; none for one that is damaged, tiny or thin."""
    try:
        with Image.open(path) as image:
            least, most = sorted(image.size)
            if least < LEAST_SIDE or least * most > MOST_PIXELS or most > THINNEST * least:
                return None
            rgba = image.convert("RGBA")
    except Exception:  # noqa: BLE001  # Pillow raises nearly every class on what it cannot read
        return None
    rgba.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if min(rgba.size) < LEAST_COPY:
        return None
    ground = Image.new("RGBA", rgba.size, "white" if hashlib.sha256(place.encode()).digest()[-1] % 3 else "black")
    ground.alpha_composite(rgba)
    return ground.convert("RGB")


def _row(package: Package, path: str) -> dict[str, str]:
    about = {"medium": "drawn", "framing": "object", "attire": NOT_MINIMAL, "how": "package", "fold": "train"}
    return {"path": path, "source": package.source, **about}


if __name__ == "__main__":
    main()
