"""Fixtures: the toy model, a policy for it, a scanner of both, drawn pictures."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from imgsafety import Policy, Scanner
from imgsafety.policy import parse_policy
from tests.toy import POLICY, write_toy_model

COLOURS = {"minimal": (255, 0, 0), "clothed": (0, 255, 0), "nobody": (0, 0, 0), "child": (0, 0, 255)}


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the toy model; its checksum stands beside it."""
    return write_toy_model(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture(scope="session")
def toy_policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a policy TOML that fits the toy model."""
    path = tmp_path_factory.mktemp("policy") / "toy.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="session")
def toy_policy() -> Policy:
    """A policy that fits the toy model."""
    return parse_policy(POLICY)


@pytest.fixture(scope="session")
def scanner(toy_path: Path, toy_policy: Policy) -> Scanner:
    """A scanner on the toy model with two workers and small batches."""
    return Scanner(toy_path, toy_policy, workers=2, batch_size=4)


@pytest.fixture
def draw() -> Callable[..., Image.Image]:
    """Draw a plain picture that the toy model reads as `minimal`, `clothed`, `nobody` or `child`."""

    def drawn(kind: str, size: tuple[int, int] = (64, 48)) -> Image.Image:
        return Image.new("RGB", size, COLOURS[kind])

    return drawn


@pytest.fixture
def folder(tmp_path: Path, draw: Callable[..., Image.Image]) -> Path:
    """A folder tree with two harmless pictures, one flagged one, and a text file."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    draw("clothed").save(tmp_path / "a.png")
    draw("nobody").save(tmp_path / "deep" / "b.jpg")
    draw("minimal").save(tmp_path / "deep" / "er" / "c.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


@pytest.fixture
def forbid() -> Iterator[Callable[[Path], None]]:
    """Take all permissions from a path until the test ends; skips where that changes nothing, as for root."""
    forbidden: list[tuple[Path, int]] = []

    def take(path: Path) -> None:
        forbidden.append((path, path.stat().st_mode))
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")

    yield take
    for path, mode in forbidden:
        path.chmod(mode)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real labelled pictures; skips where there is none."""
    folder = Path(os.environ.get("IMGSAFETY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "manifest.csv").is_file():
        pytest.skip("no labelled pictures; set IMGSAFETY_DATA to their folder")
    return folder
