"""Scans that are stopped, killed and gone on with; policies applied later."""

import contextlib
import io
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from imgsafety import PolicyError, Scanner, SetupError
from imgsafety.cli import main
from imgsafety.policy import parse_policy
from imgsafety.runs import decide_run, scan_run
from imgsafety.source import Selection, find_images
from imgsafety.store import open_to_read, open_to_write
from tests.toy import POLICY, write_toy_model

KILLS = int(os.environ.get("IMGSAFETY_KILLS", "4"))  # 200 by hand: IMGSAFETY_KILLS=200 pytest tests/test_runs.py -k killed
FILES = max(300, 25 * KILLS)
SLACK = POLICY.replace("0.5 }", "0.9999999 }")


@pytest.fixture
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "run.sqlite"


def scan(scanner, run, *paths, **options):
    with open_to_write(run) as store:
        return list(scan_run(scanner, store, paths, **options))


def stored(run, view="results"):
    with open_to_read(run) as store:
        return {result.path: result for result in store.results(view)}


def fact(run, name):
    with open_to_read(run) as store:
        return store.fact(name)


@pytest.fixture
def many(tmp_path, draw):
    """Files, 300 unless more are to be killed: pictures of all kinds, copies, animations, and files that cannot be judged."""
    folder = tmp_path / "many"
    folder.mkdir()
    kinds = ("minimal", "clothed", "nobody", "child")
    for index in range(FILES - 20):
        draw(kinds[index % 4], (16 + index % 200, 24 + index // 200)).save(folder / f"{index:03}.png")
    for index in range(10):
        draw("clothed").save(folder / f"{index}.gif", save_all=True, append_images=[draw("minimal", (64 + index, 48))])
    for index in range(10):
        (folder / f"{index}.jpg").write_bytes(bytes(index))
    return folder


def command(folder, run, toy_path, toy_policy_path):
    options = ["--run", run, "--model", toy_path, "--policy", toy_policy_path, "--batch-size", "4", "--workers", "2"]
    return [sys.executable, "-m", "imgsafety", "scan", folder, *options]


def start(words):
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows(run):
    try:
        with open_to_read(run) as store:
            return next(store.query("SELECT count(*) FROM files"))[0]
    except SetupError:  # not there yet
        return 0


def wait_for_rows(process, run, count):
    while process.poll() is None and rows(run) < count:
        time.sleep(0.01)


def test_a_killed_scan_goes_on_and_counts_each_file_once(many, run, scanner, toy_path, toy_policy_path):
    words = command(many, run, toy_path, toy_policy_path)
    moments, partial = random.Random(5), 0
    for _ in range(KILLS):
        with start(words) as process:
            wait_for_rows(process, run, rows(run) + moments.randrange(1 + (FILES - 50) // KILLS))
            time.sleep(moments.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        partial += 0 < rows(run) < FILES
    with start(words) as process:
        assert f"{FILES:,} pictures" in process.stderr.read()
    whole = {result.path: result for result in scanner.scan(sorted(many.iterdir()))}
    assert stored(run) == whole and partial > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_scan_finishes_its_batch_and_says_how_to_go_on(many, run, toy_path, toy_policy_path, number):
    with start(command(many, run, toy_path, toy_policy_path)) as process:
        wait_for_rows(process, run, 20)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 128 + number and "the same command goes on from there" in said
    assert 20 <= rows(run) < FILES and fact(run, "finished") is None


def test_the_same_command_again_judges_nothing_again(scanner, folder, run):
    assert len(scan(scanner, run, folder)) == 3 and fact(run, "finished")
    assert scan(scanner, run, folder) == [] and len(stored(run)) == 3


def test_files_that_changed_or_came_are_judged(scanner, folder, run, draw):
    scan(scanner, run, folder)
    draw("minimal", (32, 32)).save(folder / "a.png")
    draw("nobody").save(folder / "new.png")
    assert [Path(result.path).name for result in scan(scanner, run, folder)] == ["a.png", "new.png"]
    assert stored(run)[str(folder / "a.png")].verdict == "review" and len(stored(run)) == 4


def test_files_that_could_not_be_read_are_tried_again(scanner, folder, run, draw):
    (folder / "later.png").symlink_to(folder / "target")
    assert "undecided" in [result.verdict for result in scan(scanner, run, folder)]
    draw("clothed").save(folder / "target", "PNG")
    scan(scanner, run, folder)
    assert stored(run)[str(folder / "later.png")].verdict == "allow"


def test_a_scan_that_is_left_in_the_middle_can_be_closed_and_gone_on_with(scanner, many, run):
    left = []
    for _ in range(10):  # workers still ask the store when it is closed
        with open_to_write(run) as store:
            left.append(scan_run(scanner, store, [many]))
            next(left[-1])
    with open_to_write(run) as store:
        list(scan_run(scanner, store, [many]))
        assert sum(store.count().values()) - store.count()["flagged"] == FILES


def test_stopping_keeps_what_was_begun(scanner, many, run):
    asked = iter([False] * 10 + [True] * 10)
    assert len(scan(scanner, run, many, stop=lambda: next(asked))) == 10 == len(stored(run))


def test_the_same_bytes_are_scored_once_and_counted_as_wished(toy_path, toy_policy, tmp_path, run, draw):
    for index in range(40):
        draw("minimal").save(tmp_path / f"{index:02}.png")
    results = scan(Scanner(toy_path, toy_policy, workers=2, batch_size=2), run, tmp_path)
    assert len(results) == len(stored(run)) == 40 and {result.verdict for result in results} == {"review"}
    assert list(stored(run, "distinct_results")) == [str(tmp_path / "00.png")]
    with open_to_read(run) as store:
        assert next(store.query("SELECT count(*) FROM pictures")) == (1,)


def test_another_policy_is_refused_with_the_command_that_applies_it(scanner, toy_path, folder, run):
    scan(scanner, run, folder)
    with pytest.raises(SetupError, match=r"imgsafety decide .*run.sqlite --policy"):
        scan(Scanner(toy_path, parse_policy(SLACK)), run, folder)


def test_another_model_setting_or_selection_is_refused(scanner, toy_policy, folder, run, tmp_path):
    scan(scanner, run, folder)
    other = write_toy_model(tmp_path / "other.onnx", factor=1.5)
    path = scanner.session.path
    with pytest.raises(SetupError, match="model sha256"):
        scan(Scanner(other, toy_policy), run, folder)
    with pytest.raises(SetupError, match="settings frames 8, not 2"):
        scan(Scanner(path, toy_policy, frames=2), run, folder)
    with pytest.raises(SetupError, match="selection sample"):
        scan(scanner, run, folder, selection=Selection(sample=1))
    with pytest.raises(SetupError, match="selection paths"):
        scan(scanner, run, folder / "deep")


def test_a_policy_applied_later_gives_what_a_new_scan_would(scanner, toy_path, many, run):
    scan(scanner, run, many)
    before = stored(run)
    other = parse_policy(SLACK)
    for picture in many.iterdir():
        picture.unlink()
    with open_to_write(run) as store:
        decide_run(store, other)
    assert fact(run, "policy")["sha256"] == other.sha256
    assert {path: result.scores for path, result in stored(run).items()} == {path: result.scores for path, result in before.items()}
    assert sum(result.verdict == "review" for result in stored(run).values()) < sum(r.verdict == "review" for r in before.values())


def test_deciding_by_the_same_policy_changes_nothing(scanner, toy_policy, many, run):
    scan(scanner, run, many)
    before = stored(run)
    with open_to_write(run) as store:
        decide_run(store, toy_policy)
    assert stored(run) == before


def test_a_policy_of_another_model_does_not_fit_a_run(scanner, folder, run):
    scan(scanner, run, folder)
    with pytest.raises(PolicyError, match="calibrated for model"), open_to_write(run) as store:
        decide_run(store, parse_policy(POLICY.replace("toy 1", "toy 2")))


def test_the_commands_scan_and_decide(toy_path, toy_policy_path, folder, run, tmp_path, capsys):
    words = ["scan", str(folder), "--run", str(run), "--model", str(toy_path), "--policy", str(toy_policy_path)]
    assert main(words) == 1 and "1 review" in capsys.readouterr().err
    (tmp_path / "slack.toml").write_text(re.sub("0.5", "1.0", POLICY))
    assert main(["decide", str(run), "--policy", str(tmp_path / "slack.toml")]) == 0
    assert main(words) == 2 and "imgsafety decide" in capsys.readouterr().err


def test_what_a_run_that_goes_on_writes_holds_all_of_it(toy_path, toy_policy_path, folder, run, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    words = ["scan", str(folder), "--model", str(toy_path), "--policy", str(toy_policy_path), "--run", str(run)]
    main([*words, "--format", "jsonl", "--output", str(output)])
    first = sorted(output.read_text().splitlines())
    assert main([*words, "--format", "jsonl", "--output", str(output)]) == 1
    assert sorted(output.read_text().splitlines()) == first and len(first) == 3
    capsys.readouterr()
    assert main(words) == 1 and "c.webp" in capsys.readouterr().out


def test_a_run_goes_on_whatever_of_what_was_named_is_there(toy_path, toy_policy_path, folder, run, tmp_path_factory, draw):
    late = tmp_path_factory.mktemp("late") / "late.png"
    words = ["scan", str(folder), str(late), "--model", str(toy_path), "--policy", str(toy_policy_path), "--run", str(run)]
    assert main(words) == 2 and len(stored(run)) == 3  # it is not there yet
    draw("minimal").save(late)
    assert main(words) == 1 and stored(run)[str(late)].verdict == "review"
    late.unlink()
    assert main(words) == 2 and len(stored(run)) == 4


@pytest.mark.parametrize("damage", ["half", "tail"])
def test_what_stood_for_a_damaged_archive_is_gone_once_it_is_whole(scanner, tmp_path, run, draw, damage):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a.png", "b.png"):
            picture = io.BytesIO()
            draw("clothed", (40 + ord(name[0]), 40)).save(picture, "PNG")
            info = tarfile.TarInfo(name)
            info.size = picture.tell()
            archive.addfile(info, io.BytesIO(picture.getvalue()))
    path, whole = tmp_path / "all.tar", file.getvalue()
    path.write_bytes(whole[:100] if damage == "half" else whole.rstrip(b"\0")[:-200])
    scan(scanner, run, tmp_path)
    assert "undecided" in {result.verdict for result in stored(run).values()}
    path.write_bytes(whole)
    scan(scanner, run, tmp_path)
    verdicts = {name: result.verdict for name, result in stored(run).items()}
    assert verdicts == {f"{path}/a.png": "allow", f"{path}/b.png": "allow"}


def test_what_cannot_be_judged_stays_beside_what_lies_in_or_under_it(scanner, folder, tmp_path, run, draw):
    picture = io.BytesIO()
    draw("clothed", (44, 44)).save(picture, "PNG")
    for name, tail in (("cut.tar", b"no tar" * 200), ("whole.tar", b"")):
        with (folder / name).open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            info = tarfile.TarInfo("a.png")
            info.size = picture.tell()
            archive.addfile(info, io.BytesIO(picture.getvalue()))
        data = (folder / name).read_bytes().rstrip(b"\0")
        (folder / name).write_bytes(data + bytes(-len(data) % 512) + tail)
    with zipfile.ZipFile(folder / "two.zip", "w") as archive:
        archive.writestr("x.jpg", b"no picture")
        archive.writestr("x.jpg/y.png", picture.getvalue())
    data = bytearray((folder / "two.zip").read_bytes())
    data[data.index(b"no picture")] ^= 1  # its checksum is wrong now: no bytes, no SHA-256
    (folder / "two.zip").write_bytes(data)
    plain = {result.path: result.verdict for result in scanner.scan(find_images([folder]))}
    assert sum(verdict == "undecided" for verdict in plain.values()) >= 2
    for _ in range(2):
        scan(scanner, run, folder)
        assert {name: result.verdict for name, result in stored(run).items()} == plain


def test_a_run_that_lacks_a_path_is_not_finished_and_no_sample(toy_path, toy_policy_path, folder, run, tmp_path, capsys):
    words = ["scan", str(folder), str(tmp_path / "absent"), "--model", str(toy_path), "--policy", str(toy_policy_path), "--run"]
    assert main([*words, str(run), "--sample", "2"]) == 2 and "drawn of all paths" in capsys.readouterr().err
    assert main([*words, str(run.with_name("other"))]) == 2
    assert main(["report", str(run.with_name("other"))]) == 0 and "not finished" in capsys.readouterr().out


def test_a_refused_run_leaves_earlier_results_alone(toy_path, toy_policy_path, folder, run, tmp_path):
    output = tmp_path / "results.txt"
    output.write_text("earlier")
    words = ["scan", str(folder), "--model", str(toy_path), "--policy", str(toy_policy_path), "--run", str(run)]
    assert main(words) == 1
    assert main([*words, "--max-files", "1", "--output", str(output)]) == 2 and output.read_text() == "earlier"


def test_a_file_with_a_date_that_sqlite_cannot_count_is_scanned(scanner, tmp_path, draw):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw("clothed").save(folder / "a.png")
    os.utime(folder / "a.png", ns=(2**63, 2**63))
    with open_to_write(tmp_path / "run.sqlite") as store:
        assert [result.verdict for result in scan_run(scanner, store, [folder])] == ["allow"]
        assert list(scan_run(scanner, store, [folder])) == []


def test_a_scan_after_one_that_was_given_up_loses_nothing(scanner, many, run):
    with open_to_write(run) as store:
        given_up = scan_run(scanner, store, [many])
        next(given_up)
        given_up.close()
        list(scan_run(scanner, store, [many]))
    assert len(stored(run)) == len([path for path in many.rglob("*") if path.is_file()]) and fact(run, "finished")


@pytest.mark.parametrize("name", ["model", "policy", "settings", "selection"])
@pytest.mark.parametrize("damage", ["DELETE FROM facts WHERE name = ?", "UPDATE facts SET value = '[]' WHERE name = ?"])
def test_a_run_with_damaged_facts_is_said_to_be_damaged(scanner, toy_path, toy_policy_path, folder, run, capsys, name, damage):
    scan(scanner, run, folder)
    with contextlib.closing(sqlite3.connect(run)) as connection, connection:
        connection.execute(damage, (name,))
    model = ["--model", str(toy_path), "--policy", str(toy_policy_path)]
    for words in (["scan", str(folder), "--run", str(run), *model], ["decide", str(run), *model[2:]], ["report", str(run)]):
        assert main(words) == 2 and "is damaged" in capsys.readouterr().err
