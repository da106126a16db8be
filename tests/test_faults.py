"""Something fails at each stage, by real means: nothing is allowed because of it, and nothing is missing from the counts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image, JpegImagePlugin

from imgsafety import ModelError, PolicyError, Scanner, SetupError, find_images
from imgsafety.policy import parse_policy
from tests.hostile import encoded, picture
from tests.toy import POLICY, toy_model, write_toy_model

GREEN = (0, 255, 0)
ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture
def pictures(tmp_path):
    """Twelve harmless pictures, four of each of three formats."""
    for number in range(12):
        format_ = ("PNG", "JPEG", "WEBP")[number % 3]
        (tmp_path / f"{number:02}.{format_.lower()}").write_bytes(encoded(picture(colour=GREEN), format_))
    return sorted(tmp_path.iterdir())


AS_NOBODY = """
import os, sys
from itertools import islice
from pathlib import Path
from imgsafety import Scanner, find_images
from imgsafety.sink import to_jsonl
from imgsafety.watch import watch
model, policy, folder, way, count = sys.argv[1:]
scanner = Scanner(model, policy, workers=1)
list(scanner.scan(find_images([folder])))  # loads all that an unprivileged user might not be able to load
if way == "watch":
    next(watch(scanner, folder, existing=True))
for parent in [Path(folder), *Path(folder).parents]:
    if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
        parent.chmod(0o755)
os.setegid(65534)
os.seteuid(65534)
results = watch(scanner, folder, existing=True) if way == "watch" else scanner.scan(find_images([folder]))
sys.stdout.writelines(map(to_jsonl, islice(results, int(count))))
"""


def counts(results):
    return Counter(result.verdict for result in results)


# --- list and open ---


def test_files_that_vanish_after_listing_are_counted(scanner, pictures):
    def vanishing():
        for number, path in enumerate(pictures):
            if number % 2:
                path.unlink()
            yield path

    assert counts(scanner.scan(vanishing())) == {"allow": 6, "undecided": 6}


def test_links_to_nowhere_and_to_themselves_are_counted(scanner, pictures):
    folder = pictures[0].parent
    (folder / "nowhere.png").symlink_to(folder / "not there")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    assert counts(scanner.scan(find_images([folder]))) == {"allow": 12, "undecided": 2}


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
@pytest.mark.parametrize("way", ["scan", "watch"])
def test_unreadable_files_and_folders_are_counted(pictures, toy_path, toy_policy_path, way):
    if way == "watch":
        pytest.importorskip("watchfiles", reason="needs the extra `watch`")
    folder = pictures[0].parent
    pictures[0].chmod(0)
    (folder / "closed").mkdir(mode=0)
    (folder / "closed" / "inside.png").write_bytes(pictures[3].read_bytes())
    (folder / "listed").mkdir()
    (folder / "listed" / "named.png").write_bytes(pictures[3].read_bytes())
    (folder / "listed").chmod(0o744)  # its names may be read, and nothing else
    command = [sys.executable, "-c", AS_NOBODY, toy_path, toy_policy_path, folder, way, "14"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    verdicts = {Path(line["path"]).name: line["verdict"] for line in map(json.loads, done.stdout.splitlines())}
    assert len(verdicts) == 14, done.stderr
    assert {name for name, verdict in verdicts.items() if verdict != "allow"} == {pictures[0].name, "closed", "named.png"}


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
@pytest.mark.parametrize("way", ["scan", "watch"])
def test_a_file_of_which_nothing_can_be_read_may_be_a_picture(pictures, toy_path, toy_policy_path, way):
    if way == "watch":
        pytest.importorskip("watchfiles", reason="needs the extra `watch`")
    folder = pictures[0].parent
    for number, name in enumerate(("img", "img2.dat")):
        pictures[number].rename(folder / name)
        (folder / name).chmod(0)
    command = [sys.executable, "-c", AS_NOBODY, toy_path, toy_policy_path, folder, way, "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    verdicts = {Path(line["path"]).name: line["verdict"] for line in map(json.loads, done.stdout.splitlines())}
    assert len(verdicts) == 12, done.stderr
    assert {name for name, verdict in verdicts.items() if verdict != "allow"} == {"img", "img2.dat"}


OPENED_LATER = """
import os, sys, threading
from pathlib import Path
from imgsafety import Scanner
from imgsafety.watch import watch
model, policy, folder, name = sys.argv[1:]
scanner = Scanner(model, policy, workers=1)
next(watch(scanner, folder, existing=True))  # loads all that an unprivileged user might not be able to load
closed = Path(folder, name)
closed.chmod(0)
for parent in [Path(folder), *Path(folder).parents]:
    if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
        parent.chmod(0o755)
os.chown(closed, 65534, 65534)
os.setegid(65534)
os.seteuid(65534)
stop = threading.Event()
for result in watch(scanner, folder, stop.is_set, existing=True):
    if result.path == str(closed):
        print(result.verdict, flush=True)
        stop.set() if result.verdict == "allow" else closed.chmod(0o644)
"""


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_a_watched_file_that_can_be_read_at_last_is_judged(pictures, toy_path, toy_policy_path):
    pytest.importorskip("watchfiles", reason="needs the extra `watch`")
    pictures[0].rename(pictures[0].with_name("img"))
    command = [sys.executable, "-c", OPENED_LATER, toy_path, toy_policy_path, pictures[0].parent, "img"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["undecided", "allow"], done.stderr


# --- decode and preprocess ---


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("broken"), ValueError(), RecursionError(), OverflowError(), SystemError(), KeyError("x")]
)
def test_whatever_a_decoder_raises_is_undecided(scanner, pictures, monkeypatch, error):
    def broken(self):
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", broken)
    assert counts(scanner.scan(pictures)) == {"allow": 8, "undecided": 4}


@pytest.mark.parametrize("error", [MemoryError(), ValueError("broken"), SystemError()])
def test_whatever_the_resize_raises_is_never_allowed(scanner, pictures, monkeypatch, error):
    def broken(self, size, resample):
        raise error

    monkeypatch.setattr(Image.Image, "resize", broken)
    assert counts(scanner.scan(pictures)) == {"undecided": 12}


@linux
def test_a_scan_that_runs_out_of_memory_counts_every_picture(pictures, toy_path, toy_policy_path):
    large = encoded(Image.new("RGB", (8900, 8900)), "PNG", compress_level=1)
    pictures[5].write_bytes(large)
    code = (
        "import resource, sys; from imgsafety.cli import main; import onnxruntime;"
        "resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2);"
        "sys.exit(main(sys.argv[2:]))"
    )
    words = [str(1200 * 1024**2), "scan", pictures[0].parent, "--workers", "1", "--format", "jsonl", "--model", toy_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--policy", toy_policy_path], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 12, done.stderr
    assert counts_of(lines)["allow"] <= 12 and all(line["verdict"] in ("allow", "undecided") for line in lines)


def counts_of(lines):
    return Counter(line["verdict"] for line in lines)


@linux
def test_workers_that_are_killed_all_the_time_lose_no_picture(pictures, toy_path, toy_policy):
    scanner = Scanner(toy_path, toy_policy, workers=2, batch_size=2, isolate=True)
    ended = threading.Event()

    def kill():
        while not ended.wait(0.02):
            for pid in scanner.isolated.pids:
                with contextlib.suppress(ProcessLookupError):  # it was quicker
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = list(scanner.scan(pictures))
    ended.set()
    killer.join()
    scanner.close()
    assert [result.path for result in results] == [str(path) for path in pictures]
    assert all(result.verdict == ("undecided" if result.error else "allow") for result in results)


# --- session and policy ---


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, about the weights of this model
@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
def test_a_model_that_does_not_answer_numbers_allows_nothing(pictures, tmp_path_factory, toy_policy, factor):
    damaged = write_toy_model(tmp_path_factory.mktemp("damaged") / "toy.onnx", factor=factor)
    assert counts(Scanner(damaged, toy_policy).scan(pictures)) == {"undecided": 12}


def test_a_model_that_answers_for_more_pictures_than_it_got_allows_nothing(pictures, tmp_path, toy_policy):
    model = toy_model()
    node = next(node for node in model.graph.node if list(node.output) == ["attire"])
    node.output[0] = "once"
    model.graph.node.append(onnx.helper.make_node("Concat", ["once", "once"], ["attire"], axis=0))
    onnx.save(model, tmp_path / "twice.onnx")
    assert counts(Scanner(tmp_path / "twice.onnx", toy_policy).scan(pictures)) == {"undecided": 12}


def test_a_model_whose_bytes_changed_is_not_loaded(tmp_path, toy_policy):
    path = write_toy_model(tmp_path / "toy.onnx")
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), max(1, len(data) // 50)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ModelError, match="altered"):
            Scanner(path, toy_policy)


def test_a_model_that_changes_under_way_is_not_noticed_by_the_scan(pictures, tmp_path_factory, toy_policy):
    path = write_toy_model(tmp_path_factory.mktemp("model") / "toy.onnx")
    scanner = Scanner(path, toy_policy, workers=1)
    path.write_bytes(b"something else")
    assert counts(scanner.scan(pictures)) == {"allow": 12}


def test_a_policy_that_changes_under_way_counts_from_the_next_start(tmp_path, toy_path, draw):
    path = tmp_path / "toy.toml"
    path.write_text(POLICY)
    scanner = Scanner(toy_path, path)
    path.write_text(POLICY.replace("0.5", "1.0"))
    assert scanner.check(draw("minimal")).verdict == "review"
    assert scanner.policy.sha256 != Scanner(toy_path, path).policy.sha256
    path.write_text("name = ")
    with pytest.raises(PolicyError):
        Scanner(toy_path, path)


def test_thresholds_that_are_not_numbers_are_refused():
    for value in ("nan", "inf", "-1", "true", '"0.5"'):
        with pytest.raises(PolicyError):
            parse_policy(POLICY.replace("0.5", value))


# --- sink ---


@linux
@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_a_full_disk_is_a_failed_command(pictures, toy_path, toy_policy_path, format_):
    words = [
        "scan",
        pictures[0].parent,
        "--format",
        format_,
        "--output",
        "/dev/full",
        "--model",
        toy_path,
        "--policy",
        toy_policy_path,
    ]
    done = subprocess.run([sys.executable, "-m", "imgsafety", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "cannot write the results" in done.stderr


def test_a_wrong_set_up_is_raised_and_never_a_result(toy_path, toy_policy):
    for settings in ({"timeout": 0}, {"timeout": float("nan")}, {"workers": 0}, {"max_pixels": 0}):
        with pytest.raises(SetupError):
            Scanner(toy_path, toy_policy, **settings)
