"""What a generator does with pictures that are not allowed; the same words in every integration.

`blank`: a black picture of the same size takes its place. `raise`: `FlaggedError`, and no picture at all. `mark`: it is
returned as it is, and the caller acts on its result. What a reader would get wrong: `undecided` is held back too.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from imgsafety.errors import FlaggedError, SetupError
from imgsafety.result import Result

OnFlagged = Literal["blank", "raise", "mark"]
CHOICES: tuple[str, ...] = get_args(OnFlagged)


def check_choice(on_flagged: str) -> None:
    """Raise `SetupError` for a word that is none of the three."""
    if on_flagged not in CHOICES:
        raise SetupError(f"on_flagged is {on_flagged!r}, not one of {', '.join(CHOICES)}")


def held(results: Sequence[Result], on_flagged: OnFlagged) -> list[bool]:
    """Tell for each picture whether it is held back. Raises `FlaggedError` when that is asked for.

    Rules that only label do not hold a picture back; its reasons are in its result.
    """
    flags = [result.verdict != "allow" for result in results]
    if any(flags) and on_flagged == "raise":
        why = dict.fromkeys(_explain(result) for result, flag in zip(results, flags, strict=True) if flag)
        raise FlaggedError(f"{sum(flags)} of {len(flags)} pictures are not allowed: {' | '.join(why)}", results)
    return flags


def _explain(result: Result) -> str:
    return f"{result.verdict}: {'; '.join(map(str, result.reasons)) or result.error}"
