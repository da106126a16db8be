"""Decoding in worker processes: the same pixels, and a worker that dies takes one picture with it."""

import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from imgsafety import ImageError, Scanner, SetupError
from imgsafety.decode import Limits, prepare
from imgsafety.isolate import Workers
from imgsafety.preprocess import reduced
from tests.hostile import animation, encoded, picture, png, slow_jpeg, zeros

SIZE = 32
RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture(scope="module")
def isolated(toy_path, toy_policy):
    scanner = Scanner(toy_path, toy_policy, workers=1, batch_size=1, isolate=True, timeout=20)
    yield scanner
    scanner.close()


@pytest.fixture(scope="module")
def slow():
    return slow_jpeg()


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(), "PNG"),
        encoded(noise().resize((300, 500)), "PNG"),
        animation("GIF", [RED, GREEN, RED]),
        encoded(noise().convert("LA"), "PNG"),
    ],
)
@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("detailed", [False, True])
def test_a_worker_prepares_the_same_frames(isolated, data, thorough, detailed):
    here = prepare(data, Limits(), SIZE, thorough, detailed)
    there = isolated.isolated.prepare(data, Limits(), SIZE, thorough, detailed)
    assert [frame.frame for frame in here] == [frame.frame for frame in there]
    assert all(np.array_equal(one.rgb, other.rgb) for one, other in zip(here, there, strict=True))
    details = [(one.detail, other.detail) for one, other in zip(here, there, strict=True)]
    assert any(one for one, _ in details) == detailed
    for one, other in details:
        assert (one is None) == (other is None)
        if one is not None:
            one = reduced(one)  # before pixels are sent
            assert np.array_equal(one.image, other.image) and (one.height, one.width) == (other.height, other.width)


def test_verdicts_are_those_of_a_plain_scanner(isolated, scanner, folder):
    items = [*sorted(folder.rglob("*.*")), b"", b"text", encoded(noise(), "PNG")[:900], noise(), np.asarray(noise())]
    assert list(isolated.scan(items)) == list(scanner.scan(items))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_is_killed_costs_one_picture(isolated, slow, number):
    """The slow picture is at work when its decoder really receives the signal; its neighbours keep their verdicts."""
    good = encoded(picture(), "PNG")

    def items():
        yield from [good] * 3
        yield slow
        threading.Timer(1.5, kill, (isolated.isolated.pids, number)).start()
        yield from [good] * 3

    results = list(isolated.scan(items()))
    assert [result.verdict for result in results] == ["review"] * 3 + ["undecided"] + ["review"] * 3
    assert "its decoder" in results[3].error and (number == signal.SIGKILL or number.name in results[3].error)


def kill(pids, number):
    for pid in pids:
        os.kill(pid, number)


def test_a_worker_that_died_while_idle_costs_nothing(isolated):
    isolated.check(picture())
    kill(isolated.isolated.pids, signal.SIGSEGV)
    time.sleep(0.2)
    assert isolated.check(encoded(picture(), "PNG")).verdict == "review"


def test_a_decoder_that_never_ends_is_undecided(toy_path, toy_policy, slow):
    with_short_time = Scanner(toy_path, toy_policy, workers=1, isolate=True, timeout=1)
    started = time.monotonic()
    result = with_short_time.check(slow)
    assert result.verdict == "undecided" and "longer than 1 seconds" in result.error and time.monotonic() - started < 5
    assert with_short_time.check(encoded(picture(), "PNG")).verdict == "review"
    with_short_time.close()


def test_a_worker_that_does_not_move_is_replaced(isolated):
    isolated.check(encoded(picture(), "PNG"))
    kill(isolated.isolated.pids, signal.SIGSTOP)
    with pytest.raises(ImageError, match="longer than"):
        isolated.isolated.prepare(encoded(picture(), "PNG"), Limits(timeout=0.5), SIZE, thorough=False)
    assert isolated.check(encoded(picture(), "PNG")).verdict == "review"


def test_a_picture_that_needs_more_memory_than_there_is_is_undecided():
    workers = Workers(1, memory=700 * 1024**2)
    with pytest.raises(ImageError, match=r"emory"):
        workers.prepare(png(8944, 8944, zeros(8944 * 35777), colour=6), Limits(), SIZE, thorough=False)
    assert workers.prepare(encoded(picture(), "PNG"), Limits(), SIZE, thorough=False)
    workers.close()


def test_a_worker_that_cannot_work_is_a_wrong_set_up():
    with pytest.raises(SetupError, match="process of their own"):
        Workers(1, memory=1024**2)


def test_many_threads_share_few_workers(isolated):
    data = [encoded(picture(colour=colour), "PNG") for colour in (RED, GREEN)] * 20
    results = [None] * len(data)

    def judge(numbers):
        for number in numbers:
            results[number] = isolated.check(data[number]).verdict

    threads = [threading.Thread(target=judge, args=(range(start, 40, 4),)) for start in range(4)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    assert results == ["review", "allow"] * 20


def test_workers_end_with_the_scanner(toy_path, toy_policy):
    scanner = Scanner(toy_path, toy_policy, workers=2, isolate=True)
    list(scanner.scan(itertools.repeat(encoded(picture(), "PNG"), 40)))
    pids = scanner.isolated.pids
    del scanner
    gc.collect()  # a scanner is part of a cycle
    assert pids and not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_ctrl_c_is_not_for_workers(isolated):
    isolated.check(encoded(picture(), "PNG"))
    # A terminal sends it to the group of the command.
    assert isolated.isolated.pids and all(os.getpgid(pid) != os.getpgrp() for pid in isolated.isolated.pids)


def test_a_file_object_is_decoded_in_a_worker_too(isolated):
    assert isolated.check(io.BytesIO(encoded(picture(), "PNG"))).verdict == "review"


def test_closing_while_a_picture_is_decoded_makes_it_undecided_and_so_are_all_after_it(toy_path, toy_policy, slow):
    scanner = Scanner(toy_path, toy_policy, workers=1, isolate=True, timeout=20)
    found = []
    thread = threading.Thread(target=lambda: found.append(scanner.check(slow)))
    thread.start()
    time.sleep(0.3)
    scanner.close()
    thread.join(20)
    assert [result.verdict for result in [*found, scanner.check(encoded(picture(), "PNG"))]] == ["undecided"] * 2
    assert not scanner.isolated.pids


NO_ERROR = '{"error": null, "frames": '


@pytest.mark.parametrize("answer", [NO_ERROR + "[]}", NO_ERROR + "[Infinity]}", "[" * 100_000, '"no"'])
def test_a_worker_that_answers_nonsense_is_replaced(isolated, monkeypatch, answer):
    workers = Workers(1)
    nonsense = f"import sys; sys.stdin.buffer.readline(); print({answer!r}, flush=True); sys.stdin.read()"
    monkeypatch.setattr("imgsafety.isolate.WORKER", (sys.executable, "-c", nonsense))
    kill(workers.pids, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(ImageError):
        workers.prepare(encoded(picture(), "PNG"), Limits(timeout=20), SIZE, thorough=False)
    monkeypatch.undo()
    assert workers.prepare(encoded(picture(), "PNG"), Limits(), SIZE, thorough=False)
    workers.close()


def test_an_interrupt_leaves_no_answer_for_the_next_picture(isolated, slow):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            isolated.check(slow)
    finally:
        signal.signal(signal.SIGALRM, before)
    for _ in range(2):
        assert isolated.check(encoded(picture((8, 8), RED), "PNG")).verdict == "review"
        assert isolated.check(b"not a picture").verdict == "undecided"


def test_workers_keep_within_lower_limits_of_the_system(toy_path):
    code = (
        "import resource; from imgsafety.isolate import Workers; from imgsafety.decode import Limits\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (600, 600)); resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "Workers(1).close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
