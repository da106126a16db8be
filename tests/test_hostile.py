"""Every hostile file ends in an acceptable verdict, within a time and a memory that are stated here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgsafety.source import find_images

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")

TIMEOUT = 4.0  # seconds that the scanner is given for one file; it looks at the clock between pieces of work
SECONDS = 25.0  # for one file, on a slow machine that also does other things
MEGABYTES = 1600  # above what the process had before


@pytest.fixture(scope="module")
def judged(toy_path, toy_policy_path, tmp_path_factory):
    """What a process of its own, with limited memory, says of each file."""
    words = [sys.executable, "-m", "tests.hostile", toy_path, toy_policy_path, str(TIMEOUT), tmp_path_factory.mktemp("hostile")]
    root = Path(__file__).parents[1]
    done = subprocess.run(words, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_file_has_an_acceptable_verdict(judged):
    assert len({line["name"] for line in judged}) == len(judged) > 600
    assert [line for line in judged if line["verdict"] not in line["acceptable"]] == []


def test_what_has_no_verdict_says_why(judged):
    assert [line for line in judged if (line["verdict"] == "undecided") != bool(line["error"])] == []


def test_every_file_ends_in_time(judged):
    assert [line for line in judged if line["seconds"] > SECONDS] == []


def test_every_file_fits_into_memory(judged):
    assert [line for line in judged if line["megabytes"] > MEGABYTES] == []


def test_a_picture_that_is_renamed_is_found(tmp_path, draw):
    draw("minimal").save(tmp_path / "letter.png")
    (tmp_path / "letter.png").rename(tmp_path / "letter.docx")
    assert [path.name for path in find_images([tmp_path])] == ["letter.docx"]
