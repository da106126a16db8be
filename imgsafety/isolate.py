"""Bytes to the model's pixels in a worker process, which may crash, hang or run out of memory instead of us.

In: a file's bytes. Out: `Pixels` of everything that is judged of it. A worker gets bytes over a pipe and answers
with one line of JSON and raw pixels, so that a decoder that was taken over can send numbers and nothing else; nothing is
unpickled. What a reader would get wrong: workers are plain programs, neither forks (unsafe beside the runtime's threads) nor
children of `multiprocessing` (which would run the caller's main module again).
"""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety.decode import Limits, prepare
from imgsafety.errors import ImageError, SetupError
from imgsafety.preprocess import most_detail, reduced
from imgsafety.result import Detail, Pixels

MEMORY = 4 * 1024**3  # bytes of address space; a picture of 80 million pixels needs a third of it
MAX_LINE = 1 << 20  # bytes of the JSON that a worker may answer
# -P: a file named json.py in the folder where the command is given must not be run.
WORKER = (sys.executable, "-P", "-c", "from imgsafety.isolate import work; work()")
# A black picture: a worker that cannot answer this cannot be used at all. Large enough that it takes memory of its own.
PROBE = b"P6 512 512 255\n" + bytes(512 * 512 * 3)


@dataclass(slots=True)
class _Slot:
    """A place for one worker; none before its first picture and after it died."""

    process: subprocess.Popen[bytes] | None = None


class Workers:
    """Up to `count` worker processes; a dead one is replaced. Safe to share between threads.

    memory: bytes of address space that each may use. Raises `SetupError` when a worker cannot work here.
    """

    def __init__(self, count: int, memory: int = MEMORY) -> None:
        self.memory = memory
        self._closed = False
        self._slots = tuple(_Slot() for _ in range(count))
        self._idle: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for slot in self._slots:
            self._idle.put(slot)
        self._end = weakref.finalize(self, _end_all, self._slots)
        try:
            self.prepare(PROBE, Limits(), 16, thorough=False)
        except ImageError as problem:
            raise SetupError(f"pictures cannot be decoded in a process of their own: {problem}") from problem

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        running = [slot.process for slot in self._slots]  # a copy: other threads replace them
        return tuple(process.pid for process in running if process is not None and process.poll() is None)

    def prepare(self, data: bytes, limits: Limits, size: int, thorough: bool, detailed: bool = False) -> list[Pixels]:
        """Like the function `prepare`, in a worker that is killed after `limits.timeout` seconds. Raises `ImageError`."""
        slot = self._idle.get()
        try:
            if self._closed:
                raise ImageError("this scanner was closed")
            process = slot.process
            if process is None or process.poll() is not None:
                _end(slot)
                process = slot.process = _start(self.memory)
            try:
                return _ask(process, data, {"limits": asdict(limits), "size": size, "thorough": thorough, "detailed": detailed})
            finally:
                if process.poll() is not None:
                    _end(slot)
        finally:
            self._idle.put(slot)

    def close(self) -> None:
        """End the workers; they also end with this object, or with this process."""
        self._closed = True
        _end_all(self._slots)


def _start(memory: int) -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    # A group of its own: Ctrl-C is for the scan, which finishes what is begun. Workers end with it, as their input does.
    try:
        return subprocess.Popen(  # noqa: S603
            [*WORKER, str(memory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
        )
    except OSError as problem:
        raise ImageError(f"no process can be started to decode it: {problem.strerror}") from problem


def _end(slot: _Slot) -> None:
    process, slot.process = slot.process, None
    if process is None or process.stdin is None or process.stdout is None:
        return
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(OSError):  # what was not sent yet has nobody to go to
        process.stdin.close()


def _end_all(slots: tuple[_Slot, ...]) -> None:
    for slot in slots:
        _end(slot)


def _ask(process: subprocess.Popen[bytes], data: bytes, task: dict[str, Any]) -> list[Pixels]:
    """Send one task and read its answer; whatever breaks off kills the worker and becomes an `ImageError`."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101  # for the type checker: both are pipes
    timeout: float = task["limits"]["timeout"]
    started = time.monotonic()
    timer = threading.Timer(timeout, process.kill)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(json.dumps(task | {"bytes": len(data)}).encode() + b"\n" + data)
        process.stdin.flush()
        return _read_answer(process.stdout, task["size"])
    except ImageError:
        raise
    except Exception as problem:  # a worker that was taken over may answer anything
        process.kill()
        raise ImageError(_obituary(process, time.monotonic() - started, timeout, problem)) from problem
    except BaseException:  # an interrupt: the answer that nobody read must not become the next picture's
        process.kill()
        process.wait()
        raise
    finally:
        timer.cancel()
        if time.monotonic() - started >= timeout:  # the timer may be at it: never leave half a worker to the next picture
            process.kill()
            process.wait()


def _read_answer(pipe: Any, size: int) -> list[Pixels]:
    answer = json.loads(pipe.readline(MAX_LINE))
    if answer["error"] is not None:
        raise ImageError(str(answer["error"]))
    frames = []
    most = most_detail(size)
    for index, about in answer["frames"]:
        rgb, detail = _read_pixels(pipe, size, size), None
        if about is not None:
            rows, columns, height, width = about
            if not (0 < height <= rows <= most and 0 < width <= columns <= most):
                raise ValueError(f"a picture of {rows} x {columns} pixels")
            detail = Detail(Image.fromarray(_read_pixels(pipe, rows, columns)), (1, 1), height, width)
        frames.append(Pixels(rgb, None if index is None else int(index), detail))
    if not frames:
        raise ValueError("no frames")
    return frames


def _read_pixels(pipe: Any, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(pipe.read(rows * columns * 3), np.uint8).reshape(rows, columns, 3)


def _obituary(process: subprocess.Popen[bytes], seconds: float, timeout: float, problem: Exception) -> str:
    status = process.wait()
    if seconds >= timeout:
        return f"takes longer than {timeout:g} seconds"
    if status < 0 and status != -signal.SIGKILL:
        return f"its decoder was killed by {signal.Signals(-status).name}"
    return f"its decoder broke off (exit status {status}, {type(problem).__name__})"


# --- what runs in the worker ---


def work() -> None:
    """Decode what comes in until nothing more comes. The only argument is the limit of memory in bytes."""
    import resource  # not on Windows, where workers are refused as a whole
    import warnings

    warnings.simplefilter("ignore")  # as the command does
    memory = int(sys.argv[1])
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        lowest = _within(value, resource.getrlimit(limit)[1])
        resource.setrlimit(limit, (lowest, lowest))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not do it into the answers
    while line := sys.stdin.buffer.readline():
        task = json.loads(line)
        data = sys.stdin.buffer.read(task["bytes"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Against going on alone when the parent is gone; decoders with threads may use several seconds in one.
        seconds = math.ceil(used.ru_utime + used.ru_stime + task["limits"]["timeout"] * (os.cpu_count() or 1)) + 1
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (_within(seconds, hard), hard))
        _answer(answers, data, task)


def _within(value: int, hard: int) -> int:
    """A limit no higher than the one that was set for us, -1 for none: nobody may raise that."""
    return value if hard == -1 else min(value, hard)


def _answer(answers: Any, data: bytes, task: dict[str, Any]) -> None:
    frames: list[Pixels] = []
    details: list[Detail | None] = []
    error = None
    try:
        frames = prepare(data, Limits(**task["limits"]), task["size"], task["thorough"], task["detailed"])
        details = [frame.detail and reduced(frame.detail) for frame in frames]  # fewer pixels to send
    except (ImageError, MemoryError) as problem:
        frames, error = [], str(problem) or "not enough memory"
    about = [
        (frame.frame, detail and (detail.image.height, detail.image.width, detail.height, detail.width))
        for frame, detail in zip(frames, details, strict=True)
    ]
    answers.write(json.dumps({"error": error, "frames": about}).encode() + b"\n")
    for frame, detail in zip(frames, details, strict=True):
        answers.write(frame.rgb.tobytes())
        if detail is not None:
            answers.write(np.ascontiguousarray(detail.image))
    answers.flush()
