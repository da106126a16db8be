"""What is fuzzed: one function per parser, from bytes to nothing. Whatever is not the parser's own error is a finding."""

import contextlib
import sqlite3
import tempfile
from functools import cache
from pathlib import Path

from imgsafety import Scanner
from imgsafety.decode import Limits, decode
from imgsafety.errors import ImageError, ModelError, PolicyError, SetupError
from imgsafety.policy import parse_policy
from imgsafety.result import SEVERITY
from imgsafety.runs import scan_run
from imgsafety.spec import from_json
from imgsafety.store import open_to_read, open_to_write
from tests.hostile import animation, drawing, encoded
from tests.toy import POLICY, write_toy_model
from training.manifest import ManifestError, load_manifest

LIMITS = Limits(max_pixels=100_000, timeout=5)
SIDE = 32


def fuzz_decode(data: bytes) -> None:
    """A picture's bytes: views in RGB, or `ImageError`."""
    with contextlib.suppress(ImageError):
        assert all(view.image.mode == "RGB" for view in decode(data, LIMITS, SIDE))


def fuzz_policy(data: bytes) -> None:
    """A policy's TOML: a policy whose thresholds lie between 0 and 1, or `PolicyError`."""
    with contextlib.suppress(PolicyError):
        policy = parse_policy(data.decode(errors="replace"))
        assert all(0 <= threshold <= 1 for rule in policy.rules for threshold in rule.when.values())


def fuzz_spec(data: bytes) -> None:
    """A spec's JSON: a spec that can work, or `ModelError`."""
    with contextlib.suppress(ModelError):
        assert from_json(data.decode(errors="replace")).heads


def fuzz_manifest(data: bytes) -> None:
    """A manifest's CSV: rows of which none joins exposed attire with an age that can be under 18, or `ManifestError`."""
    with contextlib.suppress(ManifestError):
        rows = load_manifest(_written(data, "manifest.csv"), {"drawn": "none"})
        assert all(row.adult for row in rows if row.exposed)


def fuzz_run(data: bytes) -> None:
    """A run's file: results with a verdict each, or `SetupError`."""
    with contextlib.suppress(SetupError), open_to_read(_written(data, "run.sqlite")) as store:
        store.count()
        store.pictures(0, 100)
        assert all(result.verdict in SEVERITY for result in store.results())


def _written(data: bytes, name: str) -> Path:
    path = _scratch() / name
    path.write_bytes(data)
    return path


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="imgsafety-fuzz-"))


TARGETS = {"decode": fuzz_decode, "policy": fuzz_policy, "spec": fuzz_spec, "manifest": fuzz_manifest, "run": fuzz_run}
MANIFEST = (
    b"path,source,attire,age_min,age_max,gender\n"
    b'a.jpg,drawn,minimal,18,99,\n"b, c.jpg",drawn,clothed,3,3,female\nd.jpg,drawn,no_person,,,\n'
)


@cache
def make_run() -> bytes:
    """The bytes of a small run: a still picture, an animation, a copy, a file that cannot be judged."""
    folder = _scratch() / "seed"
    folder.mkdir()
    model, policy = write_toy_model(folder / "toy.onnx"), parse_policy(POLICY)
    pictures = folder / "pictures"
    pictures.mkdir()
    for name, data in (
        ("a.png", encoded(drawing(), "PNG")),
        ("b.png", encoded(drawing(), "PNG")),
        ("c.gif", animation("GIF", [(255, 0, 0), (0, 255, 0)])),
        ("d.jpg", b"nothing"),
    ):
        (pictures / name).write_bytes(data)
    with open_to_write(folder / "run.sqlite") as store:
        list(scan_run(Scanner(model, policy, workers=1), store, [pictures]))
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite")) as database:
        # Small pages make a small file, of which a fuzzer can try more.
        database.executescript("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM")
    return (folder / "run.sqlite").read_bytes()
