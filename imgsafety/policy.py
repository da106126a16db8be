"""Scores to a verdict: a pure function over the rules of a TOML file.

A rule fires when every score it names is at or above its threshold. What a reader would get wrong:
a score that is missing or not finite must not read as "below the threshold"; it makes the picture
`undecided`. A policy names the model whose scores its thresholds were calibrated on, and fits no other.

    name = "default"
    model = "imgsafety 1.0"

    [[rules]]
    name = "undressed"
    verdict = "block"                        # label, review or block
    when = { minimal_attire = 0.6 }          # all at or above
    before_below = { minimal_attire = 0.3 }  # edits only: all below in the picture that came in

    [cascade]                                # for `Scanner(cascade=True)`: all below in the first look settle a picture
    exposed = 0.02

    [zoom]                                   # part of the picture is looked at more closely; scores are of both looks together, and
                                             # those of a zoom at somebody small fire alone where they reach at least this
    minimal_attire = 0.8

    [thorough.turn]                          # for `Scanner(thorough=True)`: in a turned picture, rules ask for at least this
    exposed = 0.9
"""

import hashlib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from imgsafety.errors import PolicyError
from imgsafety.preprocess import LOOKS
from imgsafety.result import SEVERITY, Decision, Reason, Scores, Verdict

FOLDER = Path(__file__).parent / "policies"
DISGUISES = tuple(dict.fromkeys(LOOKS[2:]))  # looks that only a thorough scan takes
HUGE = 2**1000  # a whole number beyond this cannot be shown
# A rule may only make things graver; `label` names a reason and leaves the decision as it is.
OUTCOMES: dict[str, Decision] = {"label": "allow", "review": "review", "block": "block"}


@dataclass(frozen=True, slots=True)
class Rule:
    """`when`: score name to the least value that fires. `before_below`: the same scores of the picture
    that came in must be under these values; a rule that has it is only asked about edits.
    """

    name: str
    verdict: str
    when: Mapping[str, float]
    before_below: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can never fire, or not be decided. Raises `PolicyError`."""
        where = f"rule {self.name!r}"
        if self.name.split() != [self.name]:  # tables name several, with spaces between
            raise PolicyError(f"{where}: its name is one word, without spaces")
        _check_outcome(self.verdict, where)
        _thresholds(dict(self.when), f"{where}: when")
        if self.before_below:
            _thresholds(dict(self.before_below), f"{where}: before_below")


@dataclass(frozen=True)
class Policy:
    """Named rules for the scores of one model; `sha256` is that of the TOML text.

    cascade: score name to the value below which a first look at few pixels settles that no rule will fire; empty
    when the policy was not calibrated for that. model_sha256: of the model's file that it was calibrated for; empty when
    it was not calibrated. zoom: score name to the least value that fires in a zoom, where a rule asks for less; empty when
    the policy asks for no zoom. thorough: the same for looks of a thorough scan (`turn`, `negative`), by look.
    """

    name: str
    model: str
    rules: tuple[Rule, ...]
    sha256: str = ""
    cascade: Mapping[str, float] = field(default_factory=dict)
    model_sha256: str = ""
    thorough: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    zoom: Mapping[str, float] = field(default_factory=dict)

    @property
    def least(self) -> dict[str, Mapping[str, float]]:
        """By look, the least values that fire there where a rule asks for less; looks without any are left out."""
        return {look: values for look, values in {"zoom": self.zoom, **self.thorough}.items() if values}

    @property
    def score_names(self) -> frozenset[str]:
        """Every score that the policy names."""
        tables = [table for rule in self.rules for table in (rule.when, rule.before_below)]
        return frozenset(name for table in (*tables, self.cascade, *self.least.values()) for name in table)

    def for_look(self, look: str) -> "Policy":
        """The policy for one look, a name of `preprocess.LOOKS`: elsewhere, rules may ask for more than in the whole.

        A zoom is not asked about edits: it shows another part of what came in than of what goes out.
        """
        return self._by_look.get(look, self)

    @cached_property
    def _by_look(self) -> dict[str, "Policy"]:
        # Asked of every picture.
        return {look: self._for_look(look) for look in dict.fromkeys(LOOKS)}

    def _for_look(self, look: str) -> "Policy":
        least = self.least.get(look, {})
        rules = tuple(
            replace(rule, when={name: max(value, least.get(name, 0.0)) for name, value in rule.when.items()})
            for rule in self.rules
            if look != "zoom" or not rule.before_below
        )
        return self if rules == self.rules else replace(self, rules=rules)


def shipped_policies() -> tuple[str, ...]:
    """Return the names of the policies that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_policy(policy: str | os.PathLike[str] = "default") -> Policy:
    """Load a shipped policy by name, or a TOML file by path. Raises `PolicyError`."""
    shipped = FOLDER / f"{policy}.toml"
    path = shipped if os.fspath(policy) in shipped_policies() else Path(policy)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:  # ValueError: bytes that are not UTF-8, or a NUL in the name
        names = ", ".join(shipped_policies())
        raise PolicyError(f"policy {policy} is neither a readable TOML file nor one of: {names}") from problem
    return parse_policy(text, where=str(path))


def parse_policy(text: str, where: str = "policy") -> Policy:
    """Read a policy from TOML text. Raises `PolicyError` that says what is wrong and `where`."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # ValueError: also a number of 5,000 digits
        raise PolicyError(f"{where}: not TOML: {problem}") from problem
    if unknown := set(table) - {"name", "model", "rules", "cascade", "zoom", "thorough", "calibration"}:
        raise PolicyError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    entries = table.get("rules")
    if not isinstance(entries, list) or not entries:
        raise PolicyError(f"{where}: needs at least one [[rules]] table")
    rules = tuple(_parse_rule(entry, where) for entry in entries)
    if len({rule.name for rule in rules}) != len(rules):
        raise PolicyError(f"{where}: two rules have the same name")
    digest = hashlib.sha256(text.encode()).hexdigest()
    cascade, zoom = (_thresholds(table[key], f"{where}: {key}") if key in table else {} for key in ("cascade", "zoom"))
    thorough = table.get("thorough", {})
    if not isinstance(thorough, dict) or not thorough.keys() <= set(DISGUISES):
        raise PolicyError(f"{where}: thorough must be a table of {', '.join(DISGUISES)}")
    thorough = {look: _thresholds(values, f"{where}: thorough.{look}") for look, values in thorough.items()}
    calibration = table.get("calibration", {})
    if not isinstance(calibration, dict):
        raise PolicyError(f"{where}: calibration must be a table")
    model_sha256 = _text(calibration, "model_sha256", where) if "model_sha256" in calibration else ""
    name, model = _text(table, "name", where), _text(table, "model", where)
    return Policy(name, model, rules, digest, cascade, model_sha256, thorough, zoom)


def _parse_rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, dict):
        raise PolicyError(f"{where}: rules must be [[rules]] tables")
    name = _text(entry, "name", where)
    where = f"{where}: rule {name!r}"
    unknown = set(entry) - {"name", "verdict", "when", "before_below"}
    if unknown:
        raise PolicyError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    verdict = _text(entry, "verdict", where)
    _check_outcome(verdict, where)
    when = _thresholds(entry.get("when"), f"{where}: when")
    before = _thresholds(entry["before_below"], f"{where}: before_below") if "before_below" in entry else {}
    return Rule(name, verdict, when, before)


def _check_outcome(verdict: str, where: str) -> None:
    if verdict not in OUTCOMES:
        raise PolicyError(f"{where}: verdict {verdict!r} is not one of {', '.join(OUTCOMES)}")


def _thresholds(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise PolicyError(f"{where}: needs at least one `score = threshold`")
    for name, threshold in value.items():
        number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not (number and 0 <= threshold <= 1):  # NaN fails this too
            hint = "; put names with dots in quotes" if isinstance(threshold, dict) else ""
            shown = repr(threshold) if not number else "huge" if abs(threshold) > HUGE else f"{float(threshold):g}"
            raise PolicyError(f"{where}: threshold of {name!r} is {shown}, not a number from 0 to 1{hint}")
    return {name: float(threshold) for name, threshold in value.items()}


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise PolicyError(f'{where}: needs `{key} = "…"`')
    return value


def check_fit(policy: Policy, model: str, available: frozenset[str], sha256: str = "") -> None:
    """Raise `PolicyError` unless the policy was calibrated for this model and all its scores exist.

    sha256: of the model's file; a policy that records another was calibrated for another training of that name.
    """
    if policy.model != model:
        raise PolicyError(
            f"policy {policy.name!r} was calibrated for model {policy.model!r}, not {model!r}; "
            "make one for this model with training.calibrate"
        )
    if policy.model_sha256 and sha256 and policy.model_sha256 != sha256:
        raise PolicyError(
            f"policy {policy.name!r} was calibrated for another file of model {model!r} (SHA-256 {policy.model_sha256[:12]}…, "
            f"not {sha256[:12]}…); make one for this file with training.calibrate"
        )
    missing = sorted(policy.score_names - available)
    if missing:
        known = ", ".join(sorted(name for name in available if "." not in name))
        raise PolicyError(
            f"policy {policy.name!r} names scores that model {model!r} does not give: {', '.join(missing)}; "
            f"it gives {known}, and NAME.LABEL for each label that `imgsafety info` lists"
        )


def decide(policy: Policy, scores: Scores, before: Scores | None = None) -> Verdict:
    """Apply every rule to the scores of one picture; the gravest outcome is the decision.

    before: scores of the picture that came in, for an edit; rules with `before_below` need it.
    A rule whose scores are missing or not finite makes the verdict `undecided`, unless another blocks. So does a policy that has
    no rule to ask.
    """
    asked = [rule for rule in policy.rules if before is not None or not rule.before_below]
    if not asked:
        has = "rules about edits only" if policy.rules else "no rules"
        return Verdict("undecided", (), f"policy {policy.name!r} has {has}")
    reasons: list[Reason] = []
    decision: Decision = "allow"
    error: str | None = None
    for rule in asked:
        lacking = _lacking(rule.when, scores) + (_lacking(rule.before_below, before) if before else [])
        if lacking:
            error = f"rule {rule.name!r} has no finite score {lacking[0]!r}"
            outcome: Decision = "undecided"
        elif _fires(rule, scores, before):
            reasons.append(Reason(rule.name, rule.verdict, {name: scores.named[name] for name in rule.when}))
            outcome = OUTCOMES[rule.verdict]
        else:
            continue
        decision = max(decision, outcome, key=lambda name: SEVERITY[name])
    return Verdict(decision, tuple(reasons), error)


def settled(policy: Policy, scores: Scores) -> bool:
    """True when a first look with these scores makes a second one needless: below every value of `policy.cascade`.

    A score that is missing or not finite settles nothing, and neither does a policy without such values.
    """
    below = [scores.named.get(name, math.nan) < value for name, value in policy.cascade.items()]
    return bool(below) and all(below)


def _lacking(thresholds: Mapping[str, float], scores: Scores) -> list[str]:
    return [name for name in thresholds if not math.isfinite(scores.named.get(name, math.nan))]


def _fires(rule: Rule, scores: Scores, before: Scores | None) -> bool:
    above = all(scores.named[name] >= threshold for name, threshold in rule.when.items())
    if before is None:
        return above
    return above and all(before.named[name] < threshold for name, threshold in rule.before_below.items())
