"""The audit log: what it holds, and that every kind of change shows."""

import json
import os

import pytest

from imgsafety import SetupError
from imgsafety.audit_log import START, Judge, open_log, verify
from imgsafety.cli import main
from imgsafety.result import Result

JUDGE = Judge("toy 1", "a" * 64, "toy", "b" * 64)


@pytest.fixture
def log(tmp_path):
    """A log of five lines, written in two goes."""
    path = tmp_path / "audit.jsonl"
    for names in (("0", "1", "2"), ("3", "4")):
        with open_log(path, JUDGE) as opened:
            for name in names:
                opened.write(Result(f"{name}.png", "allow", sha256=name * 64))
    return path


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_every_line_names_the_line_before(log):
    entries = [json.loads(line) for line in lines(log)]
    assert [entry["previous"] for entry in entries] == [START, *(entry["hash"] for entry in entries[:-1])]
    assert [entry["number"] for entry in entries] == [1, 2, 3, 4, 5]
    assert verify(log) == verify(log, entries[-1]["hash"]) and verify(log).faults == () and verify(log).head == entries[-1]["hash"]


@pytest.mark.parametrize("at", range(5))
def test_an_altered_line_is_named(log, at):
    changed = lines(log)
    changed[at] = changed[at].replace(b'"allow"', b'"block"')
    log.write_bytes(b"".join(changed))
    assert [line for line, _ in verify(log).faults] == [at + 1]


@pytest.mark.parametrize("at", range(4))
def test_a_removed_line_is_named(log, at):
    rest = lines(log)
    del rest[at]
    log.write_bytes(b"".join(rest))
    assert verify(log).faults == ((at + 1, "1 removed before it"),)


def test_reordered_lines_are_named(log):
    first, second, *rest = lines(log)
    log.write_bytes(b"".join([second, first, *rest]))
    assert [line for line, _ in verify(log).faults] == [1, 2, 3]


def test_a_line_that_was_replaced_by_a_whole_one_shows_in_the_next(log, tmp_path):
    forged = tmp_path / "forged.jsonl"
    with open_log(forged, JUDGE) as opened:
        for name in "abc":
            opened.write(Result(f"{name}.png", "allow"))
    changed = lines(log)
    changed[2] = lines(forged)[2]
    log.write_bytes(b"".join(changed))
    assert [line for line, _ in verify(log).faults] == [3, 4]


def test_a_removed_tail_shows_against_a_noted_head(log):
    head = verify(log).head
    log.write_bytes(b"".join(lines(log)[:3]))
    assert verify(log).faults == () and [line for line, _ in verify(log, head).faults] == [3]


def test_a_head_that_was_noted_earlier_still_holds(log):
    early = json.loads(lines(log)[2])["hash"]
    assert verify(log, early).faults == ()


@pytest.mark.parametrize("write", [str.upper, "  {}\n".format])
def test_a_head_holds_however_it_was_written_down(log, write):
    assert verify(log, write(verify(log).head)).faults == ()


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "a" * 63, "a" * 65])
def test_what_is_no_head_is_refused(log, head, capsys):
    with pytest.raises(SetupError, match="is not the hash of a line"):
        verify(log, head)
    assert main(["audit", "verify", str(log), "--head", head]) == 2
    assert "is not the hash of a line" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [lambda data: data[:-20], lambda data: data.replace(b"4.png", b"x.png"), lambda data: data + b"{}\n"]
)
def test_nothing_is_appended_to_a_damaged_end(log, change):
    log.write_bytes(change(log.read_bytes()))
    with pytest.raises(SetupError, match="last line was altered or is not whole"), open_log(log, JUDGE):
        pass


def test_two_writers_are_refused(log):
    with open_log(log, JUDGE), pytest.raises(SetupError, match="another imgsafety"), open_log(log, JUDGE):
        pass


def test_a_line_longer_than_a_block_can_be_appended_to(log):
    for _ in range(2):
        with open_log(log, JUDGE) as opened:
            opened.write(Result("x" * 100_000, "allow"))
    assert verify(log).faults == () and verify(log).lines == 7


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_raised():
    with pytest.raises(OSError, match="No space left"), open_log("/dev/full", JUDGE) as opened:
        opened.write(Result("a.png", "allow"))


def scan(folder, log, toy_path, toy_policy_path, *more):
    return main(["scan", str(folder), "--audit-log", str(log), "--model", str(toy_path), "--policy", str(toy_policy_path), *more])


def test_a_scan_logs_every_picture_and_says_the_head(folder, tmp_path_factory, toy_path, toy_policy_path, capsys):
    log = tmp_path_factory.mktemp("log") / "audit.jsonl"
    assert scan(folder, log, toy_path, toy_policy_path) == 1
    entries = [json.loads(line) for line in lines(log)]
    assert [entry["verdict"] for entry in entries] == ["allow", "allow", "review"]
    assert all(entry["sha256"] and entry["model_sha256"] and entry["policy_sha256"] and entry["scores"] for entry in entries)
    assert entries[-1]["hash"] in capsys.readouterr().err
    assert main(["audit", "verify", str(log), "--head", entries[-1]["hash"]]) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_run_whose_log_failed_lacks_no_line_after_it_went_on(folder, tmp_path_factory, toy_path, toy_policy_path):
    place = tmp_path_factory.mktemp("log")
    run, log = str(place / "run.sqlite"), place / "audit.jsonl"
    assert scan(folder, "/dev/full", toy_path, toy_policy_path, "--run", run) == 2
    assert scan(folder, log, toy_path, toy_policy_path, "--run", run) == 1
    assert len(lines(log)) == 3


def test_the_command_names_what_is_wrong(log, capsys):
    log.write_bytes(b"".join(lines(log)[1:]))
    assert main(["audit", "verify", str(log)]) == 1
    assert capsys.readouterr().out == "line 1: 1 removed before it\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_scan_whose_log_is_full_fails(folder, toy_path, toy_policy_path):
    assert scan(folder, "/dev/full", toy_path, toy_policy_path) == 2
