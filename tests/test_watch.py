"""Pictures are judged as they appear: soon, whole, and every one."""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from imgsafety import SetupError
from imgsafety.watch import LOOK_AGAIN, watch

pytest.importorskip("watchfiles", reason="needs the extra `watch`")
PATIENCE = 30


@contextmanager
def watching(scanner, folder):
    """Watch in a thread; yields a function that waits for the next result."""
    results, stop = queue.Queue(), threading.Event()
    thread = threading.Thread(target=lambda: [results.put(one) for one in watch(scanner, folder, stop.is_set, existing=True)])
    thread.start()
    try:
        yield lambda patience=PATIENCE: results.get(timeout=patience)
    finally:
        stop.set()
        thread.join()


def encoded(draw, kind):
    file = io.BytesIO()
    draw(kind, (400, 300)).save(file, "BMP")
    return file.getvalue()


def test_a_picture_is_judged_soon_after_it_appears(scanner, tmp_path, draw):
    with watching(scanner, tmp_path) as following:
        draw("nobody").save(tmp_path / "first.png")
        following()
        began = time.monotonic()
        draw("minimal").save(tmp_path / "second.png")
        result = following()
    assert (result.path, result.verdict) == (str(tmp_path / "second.png"), "review")
    assert time.monotonic() - began < 5  # well under one second on a machine that is not busy with other tests


def test_a_file_that_is_still_being_written_is_waited_for(scanner, tmp_path, draw):
    data = encoded(draw, "minimal")
    with watching(scanner, tmp_path) as following:
        with (tmp_path / "slow.bmp").open("wb") as file:
            for start in range(0, len(data), len(data) // 10):
                file.write(data[start : start + len(data) // 10])
                file.flush()
                time.sleep(0.05)
        assert following().verdict == "review"
        with pytest.raises(queue.Empty):
            following(1)


def test_a_file_that_goes_on_after_a_rest_is_judged_again(scanner, tmp_path, draw):
    data = encoded(draw, "minimal")
    with watching(scanner, tmp_path) as following:
        (tmp_path / "a.bmp").write_bytes(data[:1000])
        assert following().verdict == "undecided"
        (tmp_path / "a.bmp").write_bytes(data)
        assert following().verdict == "review"


def test_a_burst_loses_nothing(scanner, tmp_path, draw):
    draw("clothed").save(tmp_path / "0.png")
    data = (tmp_path / "0.png").read_bytes()
    with watching(scanner, tmp_path) as following:
        for index in range(1, 1000):
            (tmp_path / f"{index}.png").write_bytes(data)
        found = [following().path for _ in range(1000)]
    assert sorted(found) == sorted(str(tmp_path / f"{index}.png") for index in range(1000))


def test_folders_that_come_and_names_that_change_are_followed(scanner, tmp_path, draw):
    (tmp_path / "in").mkdir()
    with watching(scanner, tmp_path / "in") as following:
        (tmp_path / "out" / "deep").mkdir(parents=True)
        draw("clothed").save(tmp_path / "out" / "deep" / "a.png")
        (tmp_path / "out").rename(tmp_path / "in" / "new")
        assert following().path == str(tmp_path / "in" / "new" / "deep" / "a.png")
        draw("clothed", (32, 32)).save(tmp_path / "in" / "b.tmp", "PNG")
        (tmp_path / "in" / "b.tmp").rename(tmp_path / "in" / "b.png")
        assert following().path == str(tmp_path / "in" / "b.png")


def test_a_folder_named_from_here_gives_each_picture_once(scanner, tmp_path, draw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with watching(scanner, ".") as following:
        draw("nobody").save(tmp_path / "first.png")
        assert following().path == str(tmp_path / "first.png")
        with pytest.raises(queue.Empty):
            following(LOOK_AGAIN + 2)


def test_a_missing_folder_is_said(scanner, tmp_path):
    with pytest.raises(SetupError, match="not a folder"):
        next(watch(scanner, tmp_path / "nowhere"))


def test_the_command_writes_a_line_for_what_is_new_alone(toy_path, toy_policy_path, folder, draw):
    words = [sys.executable, "-m", "imgsafety", "watch", folder, "--model", toy_path, "--policy", toy_policy_path]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True) as process:
        done = threading.Event()

        def keep_writing():
            for index in range(1000):  # until the command has started and taken its first look
                (folder / "new.tmp").write_bytes(os.urandom(10 + index))
                draw("minimal", (40 + index, 40)).save(folder / "new.png")
                if done.wait(1):
                    return

        writer = threading.Thread(target=keep_writing)
        writer.start()
        line = json.loads(process.stdout.readline())
        done.set()
        writer.join()
        process.send_signal(signal.SIGTERM)
    assert (line["path"], line["verdict"]) == (str(folder / "new.png"), "review") and process.wait() == 1


def test_another_file_by_the_name_of_one_that_is_gone_is_judged(scanner, tmp_path, draw):
    path, waiting = tmp_path / "a.bmp", tmp_path / "waiting"
    with watching(scanner, tmp_path) as following:
        for kind, verdict in (("nobody", "allow"), ("minimal", "review")):
            waiting.write_bytes(encoded(draw, kind))
            os.utime(waiting, (1_700_000_000, 1_700_000_000))
            time.sleep(0.5)
            following() if waiting.exists() else None
            waiting.rename(path)
            result = following()
            assert (result.path, result.verdict) == (str(path), verdict)
            path.unlink()
            time.sleep(0.5)


def test_what_was_written_just_before_the_stop_is_judged(scanner, tmp_path, draw):
    written = threading.Event()
    draw("nobody").save(tmp_path / "known.png")

    def write():
        draw("minimal").save(tmp_path / "last.png")
        (tmp_path / "cut.bmp").write_bytes(encoded(draw, "clothed")[:1000])
        written.set()

    results = watch(scanner, tmp_path, written.is_set, ready=write)
    assert {result.path: result.verdict for result in results} == {
        str(tmp_path / "last.png"): "review",
        str(tmp_path / "cut.bmp"): "undecided",
    }


def test_a_file_that_takes_the_place_of_one_of_its_size_and_date_is_judged(scanner, tmp_path, draw):
    path, other = tmp_path / "a.bmp", tmp_path / "other"
    path.write_bytes(encoded(draw, "nobody"))
    other.write_bytes(encoded(draw, "minimal"))
    for file in (path, other):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    with watching(scanner, tmp_path) as following:
        assert {following().path, following().path} == {str(path), str(other)}
        other.rename(path)
        result = following()
    assert (result.path, result.verdict) == (str(path), "review")


def test_the_same_bytes_with_the_date_set_back_are_judged(scanner, tmp_path, draw):
    path = tmp_path / "a.bmp"
    path.write_bytes(encoded(draw, "nobody"))
    status = path.stat()
    with watching(scanner, tmp_path) as following:
        assert following().verdict == "allow"
        with path.open("r+b") as file:
            file.write(encoded(draw, "minimal"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert following().verdict == "review"


def test_the_command_says_when_it_watches_and_stops_with_nothing_left(toy_path, toy_policy_path, folder, draw):
    words = [sys.executable, "-m", "imgsafety", "watch", folder, "--model", toy_path, "--policy", toy_policy_path]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == f"imgsafety: watching {folder}\n"
        draw("minimal").save(folder / "last.png")
        process.send_signal(signal.SIGTERM)
        (line,) = map(json.loads, process.stdout)
    assert (line["path"], line["verdict"]) == (str(folder / "last.png"), "review") and process.wait() == 1
