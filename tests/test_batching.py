"""Concurrent callers are judged together, and none of them notices the others."""

import asyncio
import gc
import os
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from imgsafety import Scanner, SetupError
from imgsafety.batching import MicroBatcher
from imgsafety.result import Result

CALLERS = 64
PATIENCE = 20  # seconds; only a hang reaches it


class Ledger:
    """A judge that notes the size of every batch; an item that is an exception is raised."""

    def __init__(self):
        self.sizes = []

    def judge(self, items):
        """Answer each item with a result that bears its name."""
        self.sizes.append(len(items))
        for item in items:
            if isinstance(item, Exception):
                raise item
        return [Result(item, "allow") for item in items]


class Poison:
    """An object that raises what no picture raises, as soon as anything is read from it."""

    def __getattr__(self, name):
        raise ZeroDivisionError(name)


@pytest.fixture
def kinds(draw):
    return [draw(("minimal", "clothed", "nobody", "child")[index % 4]) for index in range(CALLERS)]


def test_each_of_many_threads_gets_the_answer_for_its_own_picture(scanner, kinds):
    alone = [scanner.check(picture) for picture in kinds]
    with ThreadPoolExecutor(CALLERS) as threads:
        together = list(threads.map(lambda picture: scanner.submit(picture).result(PATIENCE), kinds))
    assert [result.verdict for result in together] == [result.verdict for result in alone]


def test_each_of_many_tasks_gets_the_answer_for_its_own_picture(scanner, kinds):
    async def judge_all():
        return await asyncio.gather(*(scanner.acheck(picture) for picture in kinds))

    assert [result.verdict for result in asyncio.run(judge_all())] == [scanner.check(picture).verdict for picture in kinds]


def test_one_scanner_serves_tasks_of_several_loops_and_threads_at_once(scanner, kinds):
    def loop(_):
        async def judge_all():
            return await asyncio.gather(*(scanner.acheck(picture) for picture in kinds[:8]))

        return [result.verdict for result in asyncio.run(judge_all())]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(loop, range(4))) == [[scanner.check(picture).verdict for picture in kinds[:8]]] * 4


def test_concurrent_items_share_a_batch():
    ledger = Ledger()
    batcher = MicroBatcher(ledger.judge, workers=1, max_batch=16, max_wait=0.2)
    futures = [batcher.submit(str(index)) for index in range(48)]
    assert [future.result(PATIENCE).path for future in futures] == [str(index) for index in range(48)]
    assert ledger.sizes == [16, 16, 16]


def test_a_lone_item_waits_no_longer_than_the_budget():
    batcher = MicroBatcher(Ledger().judge, workers=2, max_batch=16, max_wait=0.05)
    start = time.monotonic()
    batcher.submit("alone").result(PATIENCE)
    assert 0.04 < time.monotonic() - start < 5


def test_a_full_batch_does_not_wait_for_the_budget():
    batcher = MicroBatcher(Ledger().judge, workers=1, max_batch=4, max_wait=PATIENCE * 10)
    futures = [batcher.submit(str(index)) for index in range(4)]
    assert [future.result(PATIENCE).path for future in futures] == list("0123")


def test_an_item_that_raises_fails_alone():
    batcher = MicroBatcher(Ledger().judge, workers=1, max_batch=3, max_wait=1)
    first, second, third = (batcher.submit(item) for item in ("first", ZeroDivisionError("second"), "third"))
    assert (first.result(PATIENCE).path, third.result(PATIENCE).path) == ("first", "third")
    with pytest.raises(ZeroDivisionError):
        second.result(PATIENCE)


def test_a_judge_that_loses_an_answer_fails_and_nobody_hangs():
    batcher = MicroBatcher(lambda _: [], workers=1, max_batch=2, max_wait=1)
    for future in [batcher.submit("first"), batcher.submit("second")]:
        with pytest.raises(ValueError, match="shorter"):
            future.result(PATIENCE)


def test_a_picture_that_cannot_be_read_leaves_its_batch_alone(toy_path, toy_policy, draw):
    scanner = Scanner(toy_path, toy_policy, workers=1, batch_size=4, max_wait=1)
    items = [draw("minimal"), b"not a picture", Poison(), draw("clothed")]
    futures = [scanner.submit(item) for item in items]
    assert [future.result(PATIENCE).verdict for future in futures] == ["review", "undecided", "undecided", "allow"]


def test_a_caller_that_gives_up_leaves_its_batch_alone():
    batcher = MicroBatcher(Ledger().judge, workers=1, max_batch=2, max_wait=PATIENCE * 10)
    impatient = batcher.submit("impatient")
    assert impatient.cancel()
    patient = batcher.submit("patient")
    assert patient.result(PATIENCE).path == "patient"
    with pytest.raises(CancelledError):
        impatient.result()


def test_a_cancelled_task_leaves_the_others_alone(scanner, draw):
    async def cancel_one():
        tasks = [asyncio.create_task(scanner.acheck(draw("minimal"))) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(cancel_one())
    assert (first.verdict, third.verdict) == ("review", "review")
    assert isinstance(second, asyncio.CancelledError)


def test_close_answers_what_is_queued_and_refuses_more():
    batcher = MicroBatcher(Ledger().judge, workers=2, max_batch=8, max_wait=0.1)
    futures = [batcher.submit(str(index)) for index in range(20)]
    batcher.close()
    batcher.close()
    assert all(future.done() and future.result().verdict == "allow" for future in futures)
    with pytest.raises(SetupError, match="closed"):
        batcher.submit("late")


def test_a_closed_scanner_still_checks_one_by_one(toy_path, toy_policy, draw):
    scanner = Scanner(toy_path, toy_policy)
    scanner.close()
    assert scanner.check(draw("clothed")).verdict == "allow"


def test_a_scanner_that_is_dropped_leaves_no_thread_behind(toy_path, toy_policy, draw):
    before = set(threading.enumerate())
    scanner = Scanner(toy_path, toy_policy)
    scanner.submit(draw("clothed")).result(PATIENCE)
    threads = set(threading.enumerate()) - before
    gone = weakref.ref(scanner)
    del scanner
    gc.collect()
    for thread in threads:
        thread.join(PATIENCE)
    assert gone() is None and threads and not any(thread.is_alive() for thread in threads)


def test_no_thread_is_started_before_the_first_item(toy_path, toy_policy):
    before = threading.active_count()
    Scanner(toy_path, toy_policy)
    assert threading.active_count() == before


@pytest.mark.parametrize("max_wait", [-1, float("nan")])
def test_a_budget_below_zero_is_refused(toy_path, toy_policy, max_wait):
    with pytest.raises(SetupError, match="max_wait"):
        Scanner(toy_path, toy_policy, max_wait=max_wait)


def test_an_object_that_ends_the_thread_leaves_nobody_waiting():
    def judge(items):
        if SystemExit in items:
            raise SystemExit
        return [Result(item, "allow") for item in items]

    batcher = MicroBatcher(judge, 1, 4, 0.05)
    futures = [batcher.submit(item) for item in ("a.png", SystemExit, "b.png")]
    assert [futures[index].result(PATIENCE).path for index in (0, 2)] == ["a.png", "b.png"]
    with pytest.raises(SystemExit):
        futures[1].result(PATIENCE)


def test_a_callback_that_ends_the_thread_leaves_nobody_waiting():
    def leave(_):
        raise SystemExit

    batcher = MicroBatcher(Ledger().judge, workers=1, max_batch=4, max_wait=PATIENCE * 10)
    futures = [batcher.submit("a.png"), batcher.submit("b.png")]
    futures[0].add_done_callback(leave)
    futures += [batcher.submit("c.png"), batcher.submit("d.png")]
    assert [future.result(PATIENCE).path for future in futures] == ["a.png", "b.png", "c.png", "d.png"]


def test_a_callback_that_ends_the_thread_leaves_nobody_waiting_after_a_failure():
    def leave(_):
        raise SystemExit

    batcher = MicroBatcher(Ledger().judge, workers=1, max_batch=2, max_wait=PATIENCE * 10)
    failing = batcher.submit(ZeroDivisionError())
    failing.add_done_callback(leave)
    assert batcher.submit("b.png").result(PATIENCE).path == "b.png"
    assert isinstance(failing.exception(PATIENCE), ZeroDivisionError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(("used", "said"), [(True, b"make a new one"), (False, b"a.png")])
def test_a_forked_process_is_told_that_the_threads_stayed_behind(used, said):
    batcher = MicroBatcher(Ledger().judge, workers=1, max_batch=1, max_wait=0)
    if used:
        batcher.submit("before.png").result(PATIENCE)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, batcher.submit("a.png").result(PATIENCE).path.encode())
        except SetupError as problem:
            os.write(writing, str(problem).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert said in told.read()
    os.waitpid(child, 0)
