"""Counts to shares with intervals, as they are and corrected for the classifier's own errors.

In: how many of how many pictures were flagged, and how often the classifier was right on labelled pictures. Out: `Share`s.
What a reader would get wrong: a raw count is not a prevalence. With 2 % of apparent minors and a specificity of 95 %, two
thirds of what is flagged is wrong, and the raw share is over three times too high.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from imgsafety.errors import SetupError
from imgsafety.spec import shipped_file

Z = NormalDist().inv_cdf(0.975)  # of intervals that hold with 95 % confidence
RATES_FILE = "operating_points.json"
DEFAULT_SCAN = "default"
MOST = 10**15  # labelled pictures, beyond which floats do not count
CORRECTED = frozenset(("minimal-attire", "apparent-minor"))  # what error counts may be of


@dataclass(frozen=True, slots=True)
class Share:
    """A share in [0, 1] with the ends of its interval."""

    value: float
    low: float
    high: float

    def of(self, other: "Share") -> "Share":
        """Return this share of another share, both estimated: their product (Zou and Donner's method of 2008, on logarithms)."""
        value = self.value * other.value
        if not value:
            return Share(0.0, 0.0, self.high * other.high)
        down = math.hypot(*(math.log(one.value / one.low) if one.low else math.inf for one in (self, other)))
        up = math.hypot(*(math.log(one.high / one.value) for one in (self, other)))
        return Share(value, value * math.exp(-down), _clip(value * math.exp(up)))


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Right and wrong answers on labelled pictures: true and false positives and negatives."""

    tp: int
    fn: int
    tn: int
    fp: int

    @property
    def sensitivity(self) -> float:
        """The share of the pictures that are so that was flagged."""
        return self.tp / (self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """The share of the pictures that are not so that was not flagged."""
        return self.tn / (self.tn + self.fp)


def raw_share(flagged: int, total: int) -> Share | None:
    """Return the share that was flagged, with Wilson's interval (1927); none of nothing."""
    if not total:
        return None
    share = flagged / total
    centre = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total)) / (1 + Z * Z / total)
    return Share(share, _clip(centre - half), _clip(centre + half))


def corrected_share(flagged: int, total: int, errors: ErrorCounts) -> Share | None:
    """Return the share that is so, as far as one can tell from what was flagged.

    The estimate is Rogan and Gladen's (1978). The interval is Lang and Reiczigel's (2014): it includes that sensitivity and
    specificity are themselves estimates. None when there is nothing to count, when nothing shows that the classifier is better
    than chance, or when it flags fewer pictures here than its false alarms alone would be: then the rates are not of such pictures.
    """
    found = correct(flagged, total, errors)
    return found if isinstance(found, Share) else None


def correct(flagged: int, total: int, errors: ErrorCounts) -> Share | str:
    """Return what `corrected_share` does, or in a sentence why there is none."""
    if not total:
        return "nothing was judged"
    chance = "nothing shows that the classifier is better than chance"
    if errors.sensitivity + errors.specificity <= 1:
        return chance
    value = _rogan_gladen(flagged / total, errors.sensitivity, errors.specificity)
    # Pseudo-observations keep the normal approximation honest near 0 and 1 (Agresti and Coull 1998).
    n, n_se, n_sp = total + Z * Z, errors.tp + errors.fn + 2, errors.tn + errors.fp + 2
    apparent, se, sp = (flagged + Z * Z / 2) / n, (errors.tp + 1) / n_se, (errors.tn + 1) / n_sp
    if se + sp <= 1:
        return chance
    share = _rogan_gladen(apparent, se, sp)
    noise_se, noise_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * Z * Z * (share * noise_se - (1 - share) * noise_sp)
    variance = apparent * (1 - apparent) / n + share**2 * noise_se + (1 - share) ** 2 * noise_sp
    half = Z * math.sqrt(variance) / (se + sp - 1)
    low, high = share + shift - half, share + shift + half
    if high <= 0:
        return "fewer are flagged than false alarms were on the pictures that the classifier was tested on"
    if low >= 1:
        return "more are flagged than it found on the pictures that it was tested on where all were so"
    return Share(_clip(value), min(_clip(low), _clip(value)), max(_clip(high), _clip(value)))


def _rogan_gladen(apparent: float, sensitivity: float, specificity: float) -> float:
    return (apparent + specificity - 1) / (sensitivity + specificity - 1)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def shipped_rates() -> Path | None:
    """Return the path of the error counts that came with the shipped model, if there are any."""
    return shipped_file(RATES_FILE)


def load_rates(
    path: str | os.PathLike[str], model_sha256: str, policy: str, policy_sha256: str = "", scan: str = DEFAULT_SCAN
) -> dict[str, ErrorCounts]:
    """Read the error counts of a model at a policy's thresholds: `minimal-attire`, `apparent-minor`, or both.

    policy_sha256: of the policy's text, which a name alone does not tell; nothing: not asked. scan: the kind of scan that they
    correct, `default`, `cascade` or `thorough`. Raises `SetupError` when the file cannot be read, or is about another model,
    policy or kind of scan (`scan` may be left out of a file about default ones):

        {"model_sha256": "…", "scan": "default", "policy_sha256": {"audit": "…"},
         "policies": {"audit": {"minimal-attire": {"tp": 90, "fn": 10, "tn": 950, "fp": 50}}}}
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        measured_on, policies = content["model_sha256"], dict(content["policies"])
        texts, kind = dict(content.get("policy_sha256", {})), content.get("scan", DEFAULT_SCAN)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise SetupError(f"error rates {path} cannot be read: {problem!r}") from problem
    if measured_on != model_sha256:
        raise SetupError(f"the error rates of {path} were measured on another model ({str(measured_on)[:12]}…)")
    if policy not in policies:
        raise SetupError(f"{path} has no error rates at the thresholds of policy {policy!r}")
    if not isinstance(policies[policy], Mapping) or not policies[policy].keys() <= CORRECTED:
        raise SetupError(f"{path}: {policy}: holds error counts of {' and '.join(sorted(CORRECTED))}, and nothing else")
    if policy_sha256 and texts.get(policy) != policy_sha256:
        raise SetupError(
            f"{path}: policy {policy!r} has another text here (SHA-256 {policy_sha256[:12]}…) than where its error rates were "
            f"measured (policy_sha256 {str(texts.get(policy, 'is not there'))[:12]}); thresholds may differ"
        )
    if kind != scan:
        raise SetupError(f"{path}: the error rates are of scans of the kind {kind!r}, this one is {scan!r}")
    return {name: _parse_counts(counts, f"{path}: {policy}: {name}") for name, counts in policies[policy].items()}


def _parse_counts(counts: Any, where: str) -> ErrorCounts:
    names = ("tp", "fn", "tn", "fp")
    if not isinstance(counts, Mapping) or any(type(counts.get(name)) is not int or not 0 <= counts[name] <= MOST for name in names):
        raise SetupError(f"{where}: needs whole numbers {', '.join(names)}")
    found = ErrorCounts(*(counts[name] for name in names))
    if not (found.tp + found.fn and found.tn + found.fp):
        raise SetupError(f"{where}: needs labelled pictures of both kinds")
    return found


def corrected_difference(first: Share, second: Share, errors: ErrorCounts) -> Share:
    """Return the corrected first minus the corrected second, of raw shares that the same error counts correct.

    Their errors do not add up as those of independent estimates would: both are divided by the same number, whose own error is
    in the interval too.
    """
    n_se, n_sp = errors.tp + errors.fn + 2, errors.tn + errors.fp + 2
    se, sp = (errors.tp + 1) / n_se, (errors.tn + 1) / n_sp
    by, noise = se + sp - 1, Z * math.sqrt(se * (1 - se) / n_se + sp * (1 - sp) / n_sp)
    raw = difference(first, second)
    value, doubt = raw.value / by, abs(raw.value) * noise / by**2
    down, up = ((end - raw.value) / by for end in (raw.low, raw.high))
    return Share(value, value - math.hypot(down, doubt), value + math.hypot(up, doubt))


def difference(first: Share, second: Share) -> Share:
    """Return first minus second, for shares of independent pictures (Newcombe 1998; Zou and Donner 2008)."""
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Share(value, low, high)
