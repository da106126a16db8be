"""The only composition: items in, one frozen `Result` each out, in order.

Every worker thread takes a batch of items the whole way, from bytes to verdicts; decoding and inference
both leave Python's lock, so the cores stay busy without queues between stages, and memory holds one
large decoded picture per worker and a batch of those up to a megapixel. What a reader would get wrong: nothing about a single
item is ever raised.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety import source, where
from imgsafety.batching import MicroBatcher
from imgsafety.decode import FRAMES, MAX_PIXELS, TIMEOUT, Limits, prepare
from imgsafety.errors import ImageError, ModelError, SetupError
from imgsafety.isolate import Workers
from imgsafety.policy import Policy, check_fit, load_policy, settled
from imgsafety.policy import decide as apply_policy
from imgsafety.preprocess import CLOSER, LOOKS, shrink, with_half, zoom
from imgsafety.resample import TensorImage, stack
from imgsafety.result import SEVERITY, Part, Pixels, Result, Rgb, Scores, Verdict, make_result
from imgsafety.session import Session, head_of, score_names, with_head
from imgsafety.tensor import split_tensor

if TYPE_CHECKING:
    from imgsafety.selftest import SelfTest

T = TypeVar("T")

DEFAULT_BATCH_SIZE = 4  # what a core's cache holds (docs/performance.md); GPUs want more
BATCHES_IN_FLIGHT = 2  # per worker: one in work, one waiting, so that no worker idles
FIRST_LOOKS = 4  # times more pictures at less than half the side fit into the same cache
LIKELY = 0.5  # score of the whole picture from which on a zoom only raises it
MAX_WAIT = 0.005  # seconds that one of many concurrent callers waits for company


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One item on its way: its frames as pixels, or why there are none."""

    path: str | None
    sha256: str | None = None
    frames: tuple[Pixels, ...] = ()
    error: str | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """One item with the model's opinion of all that was looked at, or why there is none.

    scores: one entry per frame of an animation, per ground under a transparent picture, per look at each of these.
    frames: the frame that each entry is of; none for a still picture. skipped: nobody wanted its scores.
    looks_taken: what the entries of each are looks at, names of `preprocess.LOOKS` in that order (see also `with_half`).
    """

    path: str | None
    sha256: str | None
    frames: tuple[int | None, ...] = ()
    scores: tuple[Scores, ...] = ()
    error: str | None = None
    skipped: bool = False
    looks_taken: tuple[str, ...] = LOOKS[:1]

    @property
    def looks(self) -> tuple[str, ...]:
        """What each entry is a look at, a name of `preprocess.LOOKS`."""
        return tuple(look for look, _ in zip(cycle(self.looks_taken), self.scores, strict=False))


class Scanner:
    """Judges pictures. Safe to share between threads, not between processes: make one in each, after a fork; it cannot be pickled.

    model: path of an `.onnx` file; none is the shipped one. policy: name of a shipped policy, path of a TOML file, or
    a `Policy`; none is `default`. provider: `cpu`, `cuda` or `tensorrt`. batch_size: pictures per call of the model
    in `scan`. workers: threads in `scan`, by default one per core. frames: how many frames of an animation are
    judged. max_pixels: larger pictures are `undecided` without being decoded. thorough: also judge turns and the negative of each
    picture, with five or six looks instead of one or two; the worst decides. cascade: `scan`, `score`, `submit` and
    `acheck` first look at a fifth of the pixels, and where the policy says that this settles it, answer with those scores;
    nothing is zoomed into, so the whole's scores are held against thresholds for both looks (docs/performance.md has what is gained
    and missed: more on pictures unlike those it was calibrated on).
    max_wait: seconds that `submit` and `acheck` may hold a picture back to judge it together with others'. isolate: decode
    files and bytes in worker processes, so that a decoder that crashes, hangs or takes all memory costs one picture (see
    docs/hostile.md for the price). timeout: seconds for decoding one picture, after which it is `undecided`; exact with
    `isolate`, else looked at whenever the decoder asks for more bytes.

    Raises `ModelError`, `PolicyError` or `SetupError` when the set-up cannot work.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        policy: str | os.PathLike[str] | Policy | None = None,
        *,
        provider: str = "cpu",
        batch_size: int = DEFAULT_BATCH_SIZE,
        workers: int | None = None,
        frames: int = FRAMES,
        max_pixels: int = MAX_PIXELS,
        thorough: bool = False,
        cascade: bool = False,
        max_wait: float = MAX_WAIT,
        isolate: bool = False,
        timeout: float = TIMEOUT,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("workers", workers), ("frames", frames), ("max_pixels", max_pixels)):
            if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
                raise SetupError(f"{name} is {value!r}; it must be 1 or more, a whole number")
        if not 0 <= max_wait < math.inf:
            raise SetupError(f"max_wait is {max_wait}; it must be 0 seconds or more")
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise SetupError(f"timeout is {timeout}; it must be more than 0 seconds, and less than centuries")
        self.batch_size = int(batch_size)
        self.workers = int(workers or _cores())
        self.limits = Limits(int(max_pixels), int(frames), timeout)
        self.thorough, self.cascade = thorough, cascade
        self.policy = policy if isinstance(policy, Policy) else load_policy() if policy is None else load_policy(policy)
        # For one picture all cores work on one call; for many, each worker's calls stay on its core.
        self.session = Session(model, provider, threads=self.workers)
        check_fit(self.policy, self.session.spec.identity, score_names(self.session.spec), self.session.sha256)
        if cascade:
            _check_cascade(self)
        looks = LOOKS if thorough else LOOKS[:2] if self.policy.zoom and not cascade else LOOKS[:1]
        self.looks = with_half(looks) if self.session.finds_people else looks
        if len(self.looks) > 1 and not (self.session.has_maps and where.HEAD in {head.name for head in self.session.spec.heads}):
            raise SetupError(f"{self.session.path}: the model has no map of {where.HEAD} to tell where to zoom; export it again")
        self.isolated = Workers(self.workers) if isolate else None
        self._chunk = batch_size * (FIRST_LOOKS if cascade else 1)  # items that a worker takes at once
        self._batcher = MicroBatcher(self._judge_together, self.workers, self._chunk, max_wait)

    @cached_property
    def _batch_session(self) -> Session:
        if self.workers == 1 or self.session.provider != "cpu":  # a GPU needs no second copy: its calls take no cores
            return self.session
        session = Session(self.session.path, self.session.provider, threads=1)
        if session.sha256 != self.session.sha256:
            raise ModelError(f"{session.path} was replaced since this scanner was made; make a new one")
        return session

    def check(self, item: Any, maps: bool = False) -> Result:
        """Judge one item: a path, bytes, file object, PIL image, array or tensor (see README).

        Several frames (an animation, a batch of arrays) give one result: the worst frame decides.
        maps: also fill `Result.maps` and `Result.boxes`; raises `SetupError` on a `thorough` scanner, because the
        look that decides may be a turn.
        """
        if maps and self.thorough:
            raise SetupError("maps describe the whole picture; ask a scanner that is not thorough for them")
        return self._decide(self._score([self._prepare(item)], self.session, maps)[0])

    def check_many(self, items: Iterable[Any], before: Sequence[Any] | None = None) -> list[Result]:
        """Judge the pictures of one batch; one result each, in their order. For many, `scan` is lazy and faster.

        before: the pictures they were made from, if any. As many as items are paired with them in order; otherwise
        nobody can tell which became which, and the worst pairing counts. An empty one leaves nothing allowed.
        Raises `SetupError` when items is one item.
        """
        _require_many(items)
        items = list(items)
        if before is None:
            return [self._decide(scored) for scored in self._look(items, self.session)]
        _require_many(before)
        before = list(before)
        if not len(before):
            missing = Scored(None, None, error="there is none")
            return [self._decide_edit(missing, one) for one in self._look(items, self.session)]
        if len(before) == len(items):
            return self.check_edits(zip(before, items, strict=True))
        results = iter(self.check_edits([(first, item) for item in items for first in before]))
        return [max(islice(results, len(before)), key=lambda result: SEVERITY[result.verdict]) for _ in items]

    def check_tensor(self, tensor: Any, value_range: tuple[float, float] = (0.0, 1.0)) -> list[Result]:
        """Judge each picture of a torch tensor `(batch, channels, height, width)` of any float type, on any device.

        value_range: what black and white are, `(0, 1)` or `(-1, 1)`; a picture with other values, or NaN, is
        `undecided`. The scores are those of the PNG that the picture would be saved as. Raises `SetupError` when
        it is no such tensor.
        """
        pictures = split_tensor(tensor, value_range, stay=not self.thorough)
        prepared = [
            _Prepared(None, error=str(picture)) if isinstance(picture, ImageError) else self._prepare(source.Loaded(picture))
            for picture in pictures
        ]
        return [self._decide(scored) for scored in self._score(prepared, self.session, maps=False)]

    def submit(self, item: Any) -> Future[Result]:
        """Queue one item and return its future; what other threads submit within `max_wait` is judged with it.

        The item must stay as it is until then. Raises `SetupError` after `close`, and after a fork if the parent has used it.
        """
        return self._batcher.submit(item)

    async def acheck(self, item: Any) -> Result:
        """Like `check`, for asyncio: never blocks the loop, and concurrent calls are judged together. See `submit`."""
        import asyncio  # whoever awaits has it; everybody else need not wait for it

        return await asyncio.wrap_future(self.submit(item))

    def close(self) -> None:
        """Finish what was submitted and end threads and worker processes; calling it is optional.

        Then `submit` raises; what `isolate` would decode is `undecided`; all else works on.
        """
        self._batcher.close()
        if self.isolated:
            self.isolated.close()

    def selftest(self) -> "SelfTest":
        """Show with drawn frames that model, runtime and policy work together.

        Raises `SetupError` that names each step that failed: call it at start-up, before anything is let through.
        """
        from imgsafety.selftest import run_selftest  # draws: only who asks for it waits for Pillow's fonts

        report = run_selftest(self.session, self.policy, self.check, self.check_edit)
        if not report.passed:
            raise SetupError("self-test failed: " + "; ".join(f"{step.name}: {step.detail}" for step in report.failures))
        return report

    def scan(self, items: Iterable[Any]) -> Iterator[Result]:
        """Judge many items lazily; one result each, in their order. Mixed sizes and kinds batch.

        Items are asked for ahead, and looked at while later ones are made: a generator must not change what it has handed out.
        What it raises is raised after the results of all that it gave.
        """
        for scored in self.score(items):
            yield self._decide(scored)

    def score(self, items: Iterable[Any], wanted: Callable[[str], bool] | None = None) -> Generator[Scored]:
        """Like `scan`, but stop before the policy and keep every score; see `judge`.

        wanted: asked, from worker threads, with the SHA-256 of each item's bytes; an item it declines is not
        decoded and comes out `skipped`.
        """
        _require_many(items)

        def work(chunk: Sequence[Any], session: Session) -> list[Scored]:
            return self._score([self._prepare(item, wanted) for item in chunk], session, maps=False, cascade=self.cascade)

        return self._in_order(items, work)

    def _in_order(self, items: Iterable[Any], work: Callable[[Sequence[Any], Session], list[T]]) -> Generator[T]:
        session = self._batch_session
        waiting: deque[Future[list[T]]] = deque()
        raised: list[Exception] = []
        pool = ThreadPoolExecutor(self.workers, "imgsafety")
        try:
            iterator = _until_raised(items, raised)
            while chunk := list(islice(iterator, self._chunk)):
                waiting.append(pool.submit(work, chunk, session))
                if len(waiting) > self.workers * BATCHES_IN_FLIGHT:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
            if raised:
                raise raised[0]
        finally:
            pool.shutdown(cancel_futures=True)

    def check_edit(self, before: Any, after: Any) -> Result:
        """Judge `after`, knowing the picture it was made from; rules with `before_below` apply.

        The result describes `after`. When `before` cannot be judged, the verdict is never `allow`.
        """
        return self.check_edits([(before, after)])[0]

    def check_edits(self, pairs: Iterable[tuple[Any, Any]]) -> list[Result]:
        """Judge pairs of (before, after) together, like `check_edit`; an object in several pairs is looked at once.

        Raises `SetupError` when one is no pair.
        """
        pairs = [_pair(pair) for pair in pairs]
        items = {id(item): item for pair in pairs for item in pair}
        found = dict(zip(items, self._look(items.values(), self.session), strict=True))
        return [self._decide_edit(found[id(before)], found[id(after)]) for before, after in pairs]

    def _decide_edit(self, first: Scored, second: Scored) -> Result:
        result = self._decide(second, first)
        if first.scores and not first.error:
            return result
        error = f"the picture that came in: {first.error or 'no frame could be judged'}"
        grave = SEVERITY[result.verdict] >= SEVERITY["undecided"]
        return replace(result, error=error, verdict=result.verdict if grave else "undecided")

    def _judge_together(self, items: Sequence[Any]) -> list[Result]:
        session = self.session if len(items) == 1 else self._batch_session
        return [self._decide(scored) for scored in self._look(items, session, self.cascade)]

    def _look(self, items: Iterable[Any], session: Session, cascade: bool = False) -> list[Scored]:
        return self._score([self._prepare(item) for item in items], session, maps=False, cascade=cascade)

    def _prepare(self, item: Any, wanted: Callable[[str], bool] | None = None) -> _Prepared:
        path, sha256 = source.name_of(item), None
        try:
            loaded = source.load(item)
            path, sha256 = loaded.path, loaded.sha256
            if wanted is not None and sha256 is not None and not wanted(sha256):
                return _Prepared(path, sha256, skipped=True)
            return _Prepared(path, sha256, tuple(self._pixels(loaded.content)))
        except (ImageError, MemoryError) as problem:
            return _Prepared(path, sha256, error=str(problem) or "not enough memory")

    def _pixels(self, content: bytes | Image.Image | npt.NDArray[Any] | TensorImage) -> list[Pixels]:
        size, zooms = self.session.spec.size, "zoom" in self.looks
        if self.isolated and isinstance(content, bytes):
            return self.isolated.prepare(content, self.limits, size, self.thorough, zooms)
        return prepare(content, self.limits, size, self.thorough, zooms)

    def _score(self, prepared: Sequence[_Prepared], session: Session, maps: bool, cascade: bool = False) -> list[Scored]:
        """Run all frames of all items together; if that fails, item by item, so that one cannot spoil others."""
        frames = [frame for one in prepared for frame in one.frames]
        try:
            scores = iter(self._run_cascade(frames, session) if cascade else self._run_looks(frames, session, maps))
        except (ImageError, ModelError) as problem:
            if len(prepared) == 1:
                return [self._scored(prepared[0], (), prepared[0].error or str(problem))]
            return [scored for one in prepared for scored in self._score([one], session, maps, cascade)]
        return [self._scored(one, tuple(islice(scores, len(one.frames))), one.error) for one in prepared]

    def _scored(self, one: _Prepared, seen: Sequence[tuple[Scores, ...]], error: str | None) -> Scored:
        frames = tuple(frame.frame for frame, looks in zip(one.frames, seen, strict=False) for _ in looks)
        scores = tuple(scores for looks in seen for scores in looks)
        return Scored(one.path, one.sha256, frames, scores, error, one.skipped, self.looks)

    def _run(self, pixels: Sequence[Rgb], session: Session, maps: bool | Collection[str] = False) -> list[Scores]:
        return [scores for batch in _batches(pixels, self.batch_size) for scores in session.run(batch, maps)]

    def _run_looks(self, frames: Sequence[Pixels], session: Session, maps: bool) -> list[tuple[Scores, ...]]:
        """Look at each, and once more and closer at a part of what has a `detail`, see `where.focus`.

        Where nothing stands out there, and for closer looks of the other kind, the first look stands for the second as well.
        """
        details = {index: frame.detail for index, frame in enumerate(frames) if frame.detail is not None}
        scores = self._run([frame.rgb for frame in frames], session, maps or (where.HEAD,) if details else maps)
        parts = {index: part for index in details if (part := where.focus(scores[index]))}
        # What only told where to look is not handed on.
        scores = [replace(one, maps=one.maps if maps else {}, people=None) for one in scores]
        cut = [zoom(details[index], part, session.spec.size) for index, part in parts.items()]
        found = zip(parts.items(), self._run(cut, session, maps), strict=True)
        closer = {(index, part.look): _closer(scores[index], one, part) for (index, part), one in found}
        kinds = [look for look in self.looks if look in CLOSER]
        return [
            (one, *(closer.get((index, look), one) for look in kinds)) if index in details else (one,)
            for index, one in enumerate(scores)
        ]

    def _run_cascade(self, frames: Sequence[Pixels], session: Session) -> list[tuple[Scores, ...]]:
        """Look at fewer pixels first, and at all of them where that does not settle it."""
        pixels = [frame.rgb for frame in frames]
        side, batches = session.spec.first_size, _batches(pixels, self.batch_size * FIRST_LOOKS)
        first = [scores for batch in batches for scores in session.run(shrink(batch, side))]
        unsettled = [index for index, scores in enumerate(first) if not settled(self.policy, scores)]
        second = dict(zip(unsettled, self._run([pixels[index] for index in unsettled], session), strict=True))
        return [(second.get(index, scores),) for index, scores in enumerate(first)]

    def _decide(self, scored: Scored, before: Scored | None = None) -> Result:
        return judge(self.policy, scored, before)[0]


def judge(policy: Policy, scored: Scored, before: Scored | None = None) -> tuple[Result, int | None]:
    """Apply a policy to one item's scores; return its result and which of its scores decided.

    The worst decides; against an edit's picture that came in (`before`), the worst pairing. Its other looks at the
    frame that decided add the rules that only they set off. For a policy that zooms, the whole's scores are those of `together`.
    """
    cut_short = len(scored.scores) % len(scored.looks_taken)
    if scored.error or not scored.scores or cut_short:
        error = scored.error or "no frame could be judged"
        return Result(scored.path, "undecided", error=error, sha256=scored.sha256), None
    if policy.zoom:
        scored, before = together(scored), together(before) if before else None
    looks, wanted = scored.looks, _deciding(policy, scored.looks_taken)
    origins = {look: [*_per_frame(before, look)] if before and before.scores else [None] for look in wanted}
    judged = [
        (apply_policy(policy.for_look(look), scores, other), index)
        for index, (look, scores) in enumerate(zip(looks, scored.scores, strict=True))
        if look in wanted
        for other in origins[look]
    ]
    verdict, index = max(judged, key=lambda entry: _gravity(entry[0], scored.scores[entry[1]], looks[entry[1]]))
    scores = scored.scores[index]
    named = {reason.rule: reason for one, at in judged if scored.frames[at] == scored.frames[index] for reason in one.reasons}
    named |= {reason.rule: reason for reason in verdict.reasons}
    verdict = replace(verdict, reasons=tuple(named[rule.name] for rule in policy.rules if rule.name in named))
    fired = {name for reason in verdict.reasons for name in reason.scores if name in scores.maps}
    places = {name: where.boxes(scores.maps[name]) for name in sorted(fired)}
    return make_result(scored.path, scored.sha256, scored.frames[index], scores, verdict, places), index


def _deciding(policy: Policy, taken: tuple[str, ...]) -> tuple[str, ...]:
    """The looks that decide: a half says nothing alone, and a default scan for a policy without `[zoom]` would not zoom.

    The whole always does; another look only where the policy has rules to ask about it.
    """
    zooms = policy.zoom or taken[-1] == LOOKS[-1]  # a thorough scan zooms whatever the policy says
    others = (look for look in dict.fromkeys(taken if zooms else ()) if look not in (LOOKS[0], CLOSER[0]))
    return LOOKS[0], *(look for look in others if policy.for_look(look).rules)


def together(scored: Scored) -> Scored:
    """The same, but for each whole that was zoomed into what both looks say together."""
    entries = list(scored.scores)
    for start in range(0, len(entries), len(scored.looks_taken)):
        whole, looks = entries[start], zip(scored.looks_taken, entries[start:], strict=False)
        closer = [one for look, one in looks if look in CLOSER and one.heads != whole.heads]
        if closer:
            entries[start] = _both(whole, closer[0])
    return replace(scored, scores=tuple(entries))


def _both(whole: Scores, closer: Scores) -> Scores:
    looks = (np.array([*scores.heads[where.HEAD].values()]) for scores in (whole, closer))
    scores = with_head(closer, where.HEAD, where.pool(*looks))
    maps = {
        name: where.joined(whole.maps[name], plane, scores.named[name]) if head_of(name) == where.HEAD else plane
        for name, plane in closer.maps.items()
    }
    return replace(scores, maps=maps)


def _per_frame(scored: Scored, look: str) -> Iterator[Scores]:
    """The whole of each frame or, where it is more exposed, a look of this kind: a zoom may show little of a beach."""
    best: dict[int | None, Scores] = {}
    for kind, frame, scores in zip(scored.looks, scored.frames, scored.scores, strict=True):
        known = best.get(frame)
        if kind in (LOOKS[0], look) and (known is None or _exposed(scores) > _exposed(known)):
            best[frame] = scores
    return iter(best.values())


def _exposed(scores: Scores) -> float:
    return scores.named.get("exposed", 0.0)


def _gravity(verdict: Verdict, scores: Scores, look: str) -> tuple[int, int, bool, float]:
    """Where no rule fires, the picture itself stands for its looks: a zoom that did not count says nothing more about it."""
    counts = bool(verdict.reasons) or look == LOOKS[0]
    return SEVERITY[verdict.decision], len(verdict.reasons), counts, _exposed(scores)


def _require_many(items: Iterable[Any]) -> None:
    """Refuse one item: its rows or lines would be judged as pictures."""
    if isinstance(items, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(items, "read"):
        raise SetupError(f"{type(items).__name__} is one item, not many; of a folder's name `find_images` makes many")
    dimensions, kind = getattr(items, "ndim", 4), getattr(items, "dtype", None)
    # An array of names or objects is as good as a list.
    numbers = getattr(kind, "kind", "") in tuple("biufc") or str(kind).startswith("torch.")
    if dimensions != 4 and numbers and (not dimensions or len(items)):  # type: ignore[arg-type]
        raise SetupError(
            f"{type(items).__name__} of {dimensions} dimensions is no batch of pictures: that has 4; put one picture into a list"
        )


def _pair(pair: Any) -> tuple[Any, Any]:
    _require_many(pair)
    try:
        before, after = pair
    except (TypeError, ValueError) as problem:
        raise SetupError(f"{type(pair).__name__} is no pair: `check_edits` takes many of (before, after)") from problem
    return before, after


def _until_raised(items: Iterable[T], raised: list[Exception]) -> Iterator[T]:
    """Pass items on; what they raise is put aside. Whoever leaves early may go on with them: `yield from` would close them."""
    try:
        for item in items:  # noqa: UP028
            yield item
    except Exception as problem:  # noqa: BLE001  a caller's own iterator raises what it likes
        raised.append(problem)


def _batches(pixels: Sequence[Rgb], size: int) -> Iterator[Rgb]:
    for start in range(0, len(pixels), size):
        yield stack(pixels[start : start + size])


def _closer(whole: Scores, closer: Scores, part: Part) -> Scores:
    """A part's scores; but the whole's of age, unless the part shows somebody whole who looks younger, or who is alone.

    Elsewhere somebody's head may be cut off, and a body without it looks young to the model. Where the whole holds a minor for
    likely, no part takes that back: it may show somebody else.
    """
    closer = replace(closer, people=None, maps={name: where.placed(plane, part) for name, plane in closer.maps.items()})
    whole_body = part.alone is not None and closer.age is not None
    if whole_body and (closer.named["minor"] > whole.named["minor"] or (part.alone and whole.named["minor"] < LIKELY)):
        return closer
    named = {name: closer.named[name] for name in whole.named if head_of(name) == where.HEAD}
    maps = {name: plane for name, plane in closer.maps.items() if name in named}
    heads = {**whole.heads, where.HEAD: closer.heads[where.HEAD]}
    return replace(whole, heads=heads, named={**whole.named, **named}, maps={**whole.maps, **maps})


def _check_cascade(scanner: Scanner) -> None:
    """Raise `SetupError` unless what a first look settles can set off no rule of the policy."""
    policy, session = scanner.policy, scanner.session
    if scanner.thorough:
        raise SetupError("a scanner is either thorough or a cascade: small people and turned pictures need all pixels")
    if not session.spec.first_size:
        raise SetupError(f"{session.path}: the model takes pictures of one side only; export it again for a cascade")
    if not policy.cascade:
        raise SetupError(f"policy {policy.name!r} has no [cascade] table; make one with training.calibrate")
    side = session.spec.first_size
    session.run(np.zeros((1, side, side, 3), np.uint8))  # so that a file whose first look is damaged fails now
    for rule in policy.rules:
        if not any(value <= rule.when.get(name, -1.0) for name, value in policy.cascade.items()):
            raise SetupError(f"policy {policy.name!r}: rule {rule.name!r} can fire whatever [cascade] says; it names no such score")


def _cores() -> int:
    """Cores this process may use; containers and `taskset` often allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
