"""Do model, runtime and policy work together? Asked with drawn frames only.

In: a session, a policy and the calls that judge. Out: a frozen `SelfTest`, one `Step` per question. What a
reader would get wrong: a passed self-test says that the path is whole, not that the model is right about
people; accuracy is measured on labelled pictures. Nobody needs an unsafe picture to run it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from imgsafety.errors import ModelError
from imgsafety.policy import OUTCOMES, Policy, Rule, decide
from imgsafety.preprocess import shrink
from imgsafety.result import SEVERITY, Result, Scores
from imgsafety.session import Session

# A batch may take other kernels than a single picture; their sums round differently, quantised ones by a step.
BATCH_TOLERANCE = 0.01
# Frames as different as a black and a red one must move some score by more than rounding does.
LEAST_RESPONSE = 1e-4
FRAME_SIZE = (48, 32)


@dataclass(frozen=True, slots=True)
class Step:
    """One question and its answer; `detail` says what was seen, or what is wrong."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What `Scanner.selftest` found, in order."""

    steps: tuple[Step, ...]

    @property
    def passed(self) -> bool:
        """True when every step passed, and there was at least one."""
        return bool(self.steps) and all(step.passed for step in self.steps)

    @property
    def failures(self) -> tuple[Step, ...]:
        """The steps that did not pass."""
        return tuple(step for step in self.steps if not step.passed)


def run_selftest(
    session: Session, policy: Policy, check: Callable[[Any], Result], check_edit: Callable[[Any, Any], Result]
) -> SelfTest:
    """Ask every question once; a step that fails does not keep the others from being asked."""
    frames = draw_frames()
    return SelfTest(
        (
            _model(session),
            _scores(frames, check),
            _deterministic(frames, check),
            _batch(frames, session),
            *([_first_look(frames, session)] if policy.cascade and session.spec.first_size else []),
            _policy(policy),
            _missing_scores(policy),
            _unreadable(check),
            _edit(frames, check_edit),
        )
    )


def draw_frames() -> dict[str, Image.Image]:
    """Draw the frames: plain grounds, shapes on grey, and noise from a fixed seed."""
    frames = {colour: Image.new("RGB", FRAME_SIZE, colour) for colour in ("black", "white", "red", "lime", "blue")}
    shapes = Image.new("RGB", FRAME_SIZE, "grey")
    pen = ImageDraw.Draw(shapes)
    pen.rectangle((4, 4, 20, 28), fill="orange")
    pen.ellipse((25, 6, 45, 26), fill="navy")
    noise = np.random.default_rng(0).integers(0, 256, (FRAME_SIZE[1], FRAME_SIZE[0], 3), np.uint8)
    return frames | {"shapes": shapes, "noise": Image.fromarray(noise)}


def _model(session: Session) -> Step:
    try:
        on_disk = hashlib.sha256(session.path.read_bytes()).hexdigest()
    except OSError as problem:
        return Step("model", False, f"{session.path} cannot be read any more: {problem.strerror}")
    if on_disk != session.sha256:
        return Step("model", False, f"{session.path} is no longer the file that was loaded; start again")
    return Step("model", True, f"{session.spec.identity}, sha256 {session.sha256}")


def _scores(frames: Mapping[str, Image.Image], check: Callable[[Any], Result]) -> Step:
    """Every frame has scores, and they are not the same for all: a collapsed model answers a constant."""
    results = {name: check(frame) for name, frame in frames.items()}
    silent = [f"{name}: {result.error}" for name, result in results.items() if not result.scores]
    if silent:
        return Step("scores", False, f"no verdict for a drawn frame: {silent[0]}")
    table = np.array([_flat(result) for result in results.values()])
    if not np.all(np.isfinite(table)):
        return Step("scores", False, "a score is not finite")
    response = float(np.max(np.ptp(table, axis=0)))
    if response < LEAST_RESPONSE:
        return Step("scores", False, f"all {len(frames)} frames have the same scores; the model is damaged")
    return Step("scores", True, f"{len(frames)} frames, finite; they differ by up to {response:.3f}")


def _deterministic(frames: Mapping[str, Image.Image], check: Callable[[Any], Result]) -> Step:
    *_, (name, frame) = frames.items()
    first, second = check(frame), check(frame)
    return Step("deterministic", first == second, f"frame {name!r} twice: {'the same' if first == second else 'different'}")


def _stack(frames: Mapping[str, Image.Image], side: int) -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(frame.resize((side, side)), np.uint8) for frame in frames.values()])


def _first_look(frames: Mapping[str, Image.Image], session: Session) -> Step:
    """A first look that answers a constant would settle everything: a scan with a cascade would allow all pictures."""
    side = session.spec.first_size
    try:
        looks = session.run(shrink(_stack(frames, session.spec.size), side))
    except ModelError as problem:
        return Step("first look", False, str(problem))
    response = float(np.max(np.ptp([list(look.named.values()) for look in looks], axis=0)))
    return Step("first look", response >= LEAST_RESPONSE, f"{len(looks)} frames of {side} pixels differ by up to {response:.3f}")


def _batch(frames: Mapping[str, Image.Image], session: Session) -> Step:
    batch = _stack(frames, session.spec.size)
    try:
        together = session.run(batch)
        alone = [session.run(batch[row : row + 1])[0] for row in range(len(batch))]
    except ModelError as problem:
        return Step("batch", False, str(problem))
    gap = max(_gap(first, second) for first, second in zip(together, alone, strict=True))
    # Written so that NaN fails it.
    return Step("batch", gap <= BATCH_TOLERANCE, f"a batch of {len(batch)} and single frames differ by {gap:.1e}")


def _policy(policy: Policy) -> Step:
    """Each rule fires on scores of 1 for what it names, and on scores of 0 only if its thresholds are 0."""
    broken = [rule.name for rule in policy.rules if not _reacts(policy, rule)]
    if broken:
        return Step("policy", False, f"policy {policy.name!r}: rule {broken[0]!r} does not fire on the highest scores")
    ones = _named(policy, dict.fromkeys(policy.score_names, 1.0))
    fired = {reason.rule for reason in decide(policy, _named(policy, {}), ones).reasons}
    eager = [rule.name for rule in policy.rules if rule.name in fired and any(rule.when.values())]
    if eager:
        return Step("policy", False, f"policy {policy.name!r}: rule {eager[0]!r} fires on scores of zero")
    return Step("policy", True, f"{policy.name}: each of {len(policy.rules)} rules fires")


def _reacts(policy: Policy, rule: Rule) -> bool:
    scores = _named(policy, dict.fromkeys(rule.when, 1.0))
    verdict = decide(policy, scores, _named(policy, {}) if rule.before_below else None)
    fired = rule.name in [reason.rule for reason in verdict.reasons]
    return fired and SEVERITY[verdict.decision] >= SEVERITY[OUTCOMES[rule.verdict]]


def _missing_scores(policy: Policy) -> Step:
    """No scores and scores that are not numbers must both leave the picture undecided."""
    absent = {"missing": Scores({}, {}), "NaN": Scores({}, dict.fromkeys(policy.score_names, float("nan")))}
    allowed = [what for what, scores in absent.items() if decide(policy, scores, scores).decision == "allow"]
    if allowed:
        return Step("undecided", False, f"policy {policy.name!r} allows a picture whose scores are {allowed[0]}")
    return Step("undecided", True, "missing and NaN scores are not allowed through")


def _unreadable(check: Callable[[Any], Result]) -> Step:
    result = check(b"not a picture")
    return Step("unreadable", result.verdict == "undecided", f"bytes that are no picture: {result.verdict}")


def _edit(frames: Mapping[str, Image.Image], check_edit: Callable[[Any, Any], Result]) -> Step:
    judged = check_edit(frames["white"], frames["shapes"])
    if judged.verdict == "undecided":
        return Step("edit", False, f"no verdict for an edit of drawn frames: {judged.error}")
    halves = (check_edit(b"", frames["shapes"]), check_edit(frames["white"], b""))
    passed = all(half.verdict in ("undecided", "block") for half in halves)
    return Step("edit", passed, f"with one picture unreadable: {halves[0].verdict}, {halves[1].verdict}")


def _named(policy: Policy, high: Mapping[str, float]) -> Scores:
    return Scores({}, {**dict.fromkeys(policy.score_names, 0.0), **high})


def _flat(result: Result) -> list[float]:
    return [score for labels in result.scores.values() for score in labels.values()]


def _gap(first: Scores, second: Scores) -> float:
    def table(scores: Scores) -> npt.NDArray[np.float64]:
        return np.array([p for labels in scores.heads.values() for p in labels.values()])

    return float(np.max(np.abs(table(first) - table(second))))
