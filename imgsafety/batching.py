"""Many callers with one picture each, judged together.

In: single items from any thread. Out: one `Future` each. The first item of a batch waits at most `max_wait`
seconds for company. What a reader would get wrong: there is no thread to stop. Each item also schedules one
run; the first run takes everybody's items and the others find nothing left. Threads end with the batcher.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imgsafety.errors import SetupError
from imgsafety.result import Result

Judge = Callable[[Sequence[Any]], Sequence[Result]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Any
    future: Future[Result]
    since: float


class MicroBatcher:
    """Collects items and judges up to `max_batch` of them per call of `judge`, which returns one result each.

    workers: batches in work at the same time. Safe to share between threads; costs nothing until it is used.
    """

    def __init__(self, judge: Judge, workers: int, max_batch: int, max_wait: float) -> None:
        self._judge, self._max_batch, self._max_wait = judge, max_batch, max_wait
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(workers, "imgsafety-batch")
        self._process: int | None = None  # that has used it

    def submit(self, item: Any) -> Future[Result]:
        """Queue one item. Raises `SetupError` after `close`, and in a forked process whose parent has used it."""
        self._process = self._process or os.getpid()
        if self._process != os.getpid():  # its threads are not here, and its lock may be held for ever
            raise SetupError("this scanner was used before a fork; make a new one in each process")
        one = _Waiting(item, Future(), time.monotonic())
        with self._changed:
            try:
                self._pool.submit(self._run)
            except RuntimeError as problem:  # what a closed pool raises
                raise SetupError("this scanner was closed") from problem
            self._waiting.append(one)
            self._changed.notify_all()
        return one.future

    def close(self) -> None:
        """Judge what is queued, then refuse more. May be called twice."""
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        batch = [one for one in self._take() if one.future.set_running_or_notify_cancel()]
        if batch:
            self._answer(batch)

    def _take(self) -> list[_Waiting]:
        with self._changed:
            while 0 < len(self._waiting) < self._max_batch:
                left = self._waiting[0].since + self._max_wait - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
        return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            answers = list(zip(batch, self._judge([one.item for one in batch]), strict=True))
        except BaseException as problem:  # noqa: BLE001  a caller's object may raise anything when it is read; others must not notice
            if len(batch) == 1:
                with suppress(BaseException):
                    batch[0].future.set_exception(problem)
                return
            for one in batch:
                self._answer([one])
            return
        for one, result in answers:
            with suppress(BaseException):  # of a caller's callback: `Future` stops only an `Exception`
                one.future.set_result(result)
