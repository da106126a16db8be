"""A run to the figures of its report, as plain JSON values; `page.py` makes a page of them.

In: a `Store`, and error rates to correct counts with. Out: a dictionary (`summarise`) with a sentence that can be quoted.
What a reader would get wrong: undecided pictures are in no share; they are counted beside it. File names are hostile text and
leave here escaped.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from imgsafety.errors import SetupError
from imgsafety.policy import load_policy, shipped_policies
from imgsafety.prevalence import (
    DEFAULT_SCAN,
    ErrorCounts,
    Share,
    correct,
    corrected_difference,
    difference,
    load_rates,
    raw_share,
    shipped_rates,
)
from imgsafety.result import SEVERITY
from imgsafety.sink import printable
from imgsafety.store import FLAGGED, Store, undamaged

BINS = {"minimal_attire": 40, "minor": 40, "age": 100}
MOST_GROUPS = 60  # rows of the tables over folders and over time
MOST_ERRORS = 30
MOST_FLAGGED = 100_000
VIEWS = {"count": "results", "once": "distinct_results"}
UNDATED = "unknown"
OTHERS = "(all others)"
FEW = 10  # files of a year, below which it is no row of a public report
RATES_OF = {"minimal_attire": "minimal-attire"}  # figures that are a share of all pictures, and what corrects them
UNKNOWN_RATES = "no error rates of this model are known"
FLAGGED_COLUMNS = ("path", "verdict", "rules", "minimal_attire", "minor", "under_25", "age", "date", "sha256", "error")


@dataclass(frozen=True, slots=True)
class Tally:
    """What one pass over the results counts; `what`, `folders` and `days` count files, judged, people, minimal, minor, ..."""

    verdicts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    attire: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    what: Counter[str] = field(default_factory=Counter)
    folders: dict[str, Counter[str]] = field(default_factory=dict)
    days: dict[str, Counter[str]] = field(default_factory=dict)
    bins: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in BINS})


def find_rates(store: Store, path: str | os.PathLike[str] | None = None) -> dict[str, ErrorCounts] | str:
    """Return the error counts that fit a run, or the reason why there are none.

    path: a file of the user's own; one that does not fit raises `SetupError`. None is the file that came with the model.
    """
    model, policy, settings = (store.fact(name) for name in ("model", "policy", "settings"))
    scan = next((kind for kind in ("thorough", "cascade") if settings.get(kind)), DEFAULT_SCAN)
    wanted = (model["sha256"], policy["name"], policy["sha256"], scan)
    if path is not None:
        return load_rates(path, *wanted)
    shipped = shipped_rates()
    if shipped is None:
        return UNKNOWN_RATES
    if policy["name"] not in shipped_policies() or load_policy(policy["name"]).sha256 != policy["sha256"]:
        return "error rates are known only at the thresholds of the shipped policies"
    if scan != DEFAULT_SCAN:
        return f"error rates of scans with --{scan} are not known"
    try:
        return load_rates(shipped, *wanted)
    except SetupError as problem:
        return f"{UNKNOWN_RATES}: {problem}"


def summarise(store: Store, rates: dict[str, ErrorCounts] | str, duplicates: str = "count") -> dict[str, Any]:
    """Count a run and return everything that its report says, as plain JSON values.

    duplicates: `count` counts every file, `once` counts files with the same bytes once.
    """
    if store.fact("model") is None:
        raise SetupError(f"run {store.path} is empty: nothing was scanned into it")
    with undamaged(store.path):
        return _summary(store, rates, duplicates)


def _summary(store: Store, rates: dict[str, ErrorCounts] | str, duplicates: str) -> dict[str, Any]:
    if duplicates == "once" and store.fact("selection")["sample"]:
        raise SetupError("a sample is drawn of files, and says nothing of pictures counted once; report it with --duplicates count")
    rules = store.fact("policy")["rules"]
    thresholds = {score: _threshold(rules, score) for score in ("minimal_attire", "minor")}
    alone = {score: {rule["name"] for rule in _alone(rules, score)} for score in thresholds}
    root = _root(store)
    tally = _tally(store, VIEWS[duplicates], root, thresholds, alone)
    ((files, pictures),) = store.query("SELECT count(*), count(DISTINCT sha256) FROM files")
    summary = {
        "run": {name: store.fact(name) for name in ("model", "policy", "settings", "selection", "versions", "started", "finished")},
        "name": printable(store.path.name),
        "root": printable(root),
        "duplicates": duplicates,
        "files": files,
        "distinct_pictures": pictures,
        "counted": sum(tally.verdicts.values()),
        "judged": tally.what["judged"],
        "with_people": tally.what["people"],
        "flagged": tally.what["flagged"],
        "verdicts": {verdict: tally.verdicts[verdict] for verdict in SEVERITY},
        "rules": dict(tally.rules.most_common()),
        "attire": {label: tally.attire[label] for name, labels in store.heads if name == "attire" for label in labels},
        "thresholds": thresholds,
        "figures": _figures(tally, thresholds, rates),
        "error_rates": _describe_rates(rates),
        "histograms": {name: [bins[index] for index in range(BINS[name])] for name, bins in tally.bins.items()},
        "folders": _roll_up(tally.folders, _folder_levels(tally.folders)),
        "dates": _roll_up(tally.days, [_shortened(tally.days, length) for length in (10, 7, 4)]),
        "undecided": dict(tally.errors.most_common(MOST_ERRORS)),
    }
    return {**summary, "quote": quote(summary)}


def for_public(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what leads to single files or tells of the machine: names, folders, days, patterns, errors, the system."""
    run, undecided = summary["run"], summary["verdicts"]["undecided"]
    hidden = {"paths": [], **{name: ["…"] * len(run["selection"][name]) for name in ("include", "exclude")}}
    versions = [{name: version for name, version in one.items() if name != "system"} for one in run["versions"]]
    shown = {**run, "selection": {**run["selection"], **hidden}, "versions": versions}
    hides: dict[str, Any] = {"name": f"scan of {(run['started'] or '')[:10]}", "root": "", "folders": []}
    hides |= {"dates": _years(summary["dates"]), "undecided": {"any": undecided}}
    return {**summary, "run": shown, **hides}


def _years(dates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of dates by year; years of few files are one row, which leads to none of them."""
    joined: dict[str, Counter[str]] = {}
    for row in dates:
        counts = {name: count for name, count in row.items() if name != "name"}
        joined.setdefault(row["name"] if row["name"] in (UNDATED, OTHERS) else row["name"][:4], Counter()).update(counts)
    for year in [year for year, counts in joined.items() if counts["files"] < FEW]:
        few = joined.pop(year)
        joined.setdefault(OTHERS, Counter()).update(few)
    return [{"name": name, **counts} for name, counts in sorted(joined.items())]


def _threshold(rules: Sequence[Mapping[str, Any]], score: str) -> float | None:
    """The value at which a policy says that a picture is so: that of the rule about this score alone, else the lowest."""
    named = [rule for rule in rules if score in rule["when"] and not rule["before_below"]]
    return min((rule["when"][score] for rule in _alone(rules, score) or named), default=None)


def _alone(rules: Sequence[Mapping[str, Any]], score: str) -> list[Mapping[str, Any]]:
    """The rules about this score alone."""
    return [rule for rule in rules if [*rule["when"]] == [score] and not rule["before_below"]]


def _root(store: Store) -> str:
    """The folder that all paths are below."""
    root: str = os.path.commonpath(store.fact("selection")["paths"])
    is_file = os.path.isfile(root) or (os.path.splitext(root)[1] and not os.path.isdir(root))  # one that is gone: by its name
    return os.path.dirname(root) if is_file else root


def _tally(
    store: Store, view: str, root: str, thresholds: Mapping[str, float | None], alone: Mapping[str, set[str]]
) -> Tally:
    tally = Tally()
    columns = "path, mtime_ns, verdict, reasons, error, minimal_attire, minor, apparent_age, attire"
    for path, mtime_ns, verdict, reasons, error, minimal, minor, age, attire in store.query(f"SELECT {columns} FROM {view}"):  # noqa: S608
        rules = [rule for rule, *_ in json.loads(reasons)] if reasons != "[]" else []
        what = ["files"]
        if verdict == "undecided":
            what.append("undecided")
            tally.errors[re.sub(r"\d+", "…", printable(error or "unknown"))] += 1
        if rules or verdict != "allow":
            what.append("flagged")
        if attire is not None:
            reached = {
                # The rule, where there is one: error rates are its, and other looks and frames can set it off as well.
                score: not alone[score].isdisjoint(rules) if alone[score] else _reaches(value, thresholds[score])
                for score, value in (("minimal_attire", minimal), ("minor", minor))
            }
            what += _traits(reached["minimal_attire"], reached["minor"], people=age is not None)
            tally.attire[attire] += 1
            _fill_bins(tally, minimal, minor, age)
        if verdict not in SEVERITY:
            raise ValueError(f"it holds the verdict {verdict!r}")
        tally.verdicts[verdict] += 1
        tally.rules.update(rules)
        tally.what.update(what)
        tally.folders.setdefault(_below(os.path.dirname(os.fsdecode(path)), root), Counter()).update(what)
        tally.days.setdefault(_day(mtime_ns), Counter()).update(what)
    return tally


def _traits(minimal: bool, minor: bool, people: bool) -> Iterator[str]:
    """What a judged picture counts as. An apparent minor needs somebody who is seen."""
    yield "judged"
    if people:
        yield "people"
    if minimal:
        yield "minimal"
    if minor and people:
        yield "minor"
    if minimal and minor and people:
        yield "both"


def _reaches(score: float | None, threshold: float | None) -> bool:
    return score is not None and threshold is not None and score >= threshold


def _fill_bins(tally: Tally, minimal: float | None, minor: float | None, age: float | None) -> None:
    for name, score in (("minimal_attire", minimal), ("minor", minor)):
        if score is not None and (name != "minor" or age is not None):
            tally.bins[name][min(int(score * BINS[name]), BINS[name] - 1)] += 1
    if age is not None:
        tally.bins["age"][min(int(age), BINS["age"] - 1)] += 1


def _below(folder: str, root: str) -> str:
    return printable(folder[len(root) :].lstrip("/")) if folder.startswith(root) else printable(folder)


def _day(mtime_ns: int | None) -> str:
    try:
        return datetime.fromtimestamp((mtime_ns or 0) / 1e9, UTC).date().isoformat() if mtime_ns is not None else UNDATED
    except (OverflowError, ValueError, OSError):  # a file may claim any date
        return UNDATED


def _shortened(days: Iterable[str], length: int) -> dict[str, str]:
    return {day: day if day == UNDATED else day[:length] for day in days}


def _folder_levels(folders: Mapping[str, Counter[str]]) -> list[dict[str, str]]:
    """Each folder's ancestor at each depth, the deepest first."""
    depth = max((name.count("/") + 1 for name in folders), default=0)
    return [{name: "/".join(name.split("/")[:level]) for name in folders} for level in range(depth, -1, -1)]


def _roll_up(groups: Mapping[str, Counter[str]], levels: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Join groups at the first level that leaves few enough rows; if none does, keep the largest and say so."""
    level = next((level for level in levels if len(set(level.values())) <= MOST_GROUPS), levels[-1] if levels else {})
    joined: dict[str, Counter[str]] = {}
    for name, counts in groups.items():
        joined.setdefault(level[name], Counter()).update(counts)
    names = sorted(joined, key=lambda name: -joined[name]["files"])
    for name in names[MOST_GROUPS:]:
        joined.setdefault(OTHERS, Counter()).update(joined.pop(name))
    return [{"name": name, **counts} for name, counts in sorted(joined.items())]


def _figures(tally: Tally, thresholds: Mapping[str, float | None], rates: dict[str, ErrorCounts] | str) -> dict[str, Any]:
    """The three figures of an audit, as counted and as corrected.

    The error rate of the minor score is measured on pictures of people, so it corrects the share among those. Among people in
    minimal attire no one can measure it lawfully, so that share stays as counted.
    """
    what, known = tally.what, rates if isinstance(rates, dict) else {}
    judged, people = what["judged"], what["people"]
    minimal, minor = (known.get(name) for name in ("minimal-attire", "apparent-minor"))
    of_all = correct(what["minimal"], judged, minimal) if minimal else ""
    of_people, with_people = correct(what["minor"], people, minor) if minor else "", raw_share(people, judged)
    minors = of_people.of(with_people) if isinstance(of_people, Share) and with_people else of_people
    return {
        "minimal_attire": _figure(what["minimal"], judged, thresholds["minimal_attire"], of_all),
        "minor_in_minimal_attire": _figure(what["both"], what["minimal"], thresholds["minor"], ""),
        "minor": _figure(what["minor"], judged, thresholds["minor"], minors),
    }


def _figure(count: int, total: int, threshold: float | None, corrected: Share | str) -> dict[str, Any]:
    """corrected: the share, or why there is none although its error rates are known."""
    raw = raw_share(count, total) if threshold is not None else None
    share, why = (asdict(corrected), "") if isinstance(corrected, Share) else (None, corrected)
    return {"count": count, "of": total, "raw": asdict(raw) if raw else None, "corrected": share, "uncorrected": why}


def _describe_rates(rates: dict[str, ErrorCounts] | str) -> dict[str, Any]:
    if isinstance(rates, str):
        return {"unknown": rates}
    return {name: {**asdict(one), "sensitivity": one.sensitivity, "specificity": one.specificity} for name, one in rates.items()}


def quote(summary: Mapping[str, Any]) -> str:
    """The three figures on one line that can be quoted as it stands."""
    figures, sample = summary["figures"], summary["run"]["selection"]["sample"]
    unfinished = "" if summary["run"]["finished"] else " so far, in a scan that is not finished"
    several = sample and summary["files"] > sample
    drawn = " of several samples, drawn as files came," if several else " of a random sample" if sample else ""
    whole = f"{summary['judged']:,} pictures{drawn} that could be judged{unfinished}"
    model, policy = summary["run"]["model"]["name"], summary["run"]["policy"]["name"]
    minimal = _say(figures["minimal_attire"])
    return (
        f"Of {whole}, {minimal} show people in minimal attire. {_say_minors(summary)}"
        f"({model}, policy {policy}; {summary['verdicts']['undecided']:,} more were undecided.)"
    )


def _say_minors(summary: Mapping[str, Any]) -> str:
    """What is counted is a score, unless it is corrected: its threshold misses few minors, and so takes in many adults."""
    figures, threshold = summary["figures"], summary["thresholds"]["minor"]
    if threshold is None:
        return "Apparent minors were not counted: the policy does not ask for them. "
    minor = _say(figures["minor"])
    if figures["minor"]["corrected"]:
        return f"Of all, {minor} show somebody who appears to be a minor. "
    both = figures["minor_in_minimal_attire"]
    who = f"Of those with minimal attire {_say(both, corrects=False)}, and of all {minor}," if both["of"] else f"Of all, {minor}"
    return (
        f"{who} reach the score of an apparent minor ({threshold:.2g}). "
        "Adults whom the model takes for minors are counted with them, and can be most of them. "
    )


def _say(figure: Mapping[str, Any], corrects: bool = True) -> str:
    """A share as text, with the reason where it is not corrected although its error rates are known."""
    if figure["raw"] is None:
        return "an unknown share"
    raw, corrected = percent(figure["raw"]["value"]), figure["corrected"]
    if not corrects:
        return f"{raw} (as counted)"
    if corrected is None:
        why = f": {figure['uncorrected']}" if figure["uncorrected"] else ""
        return f"{raw} (as counted; not corrected for the classifier's errors{why})"
    low, high = percent(corrected["low"]), percent(corrected["high"])
    return (
        f"{percent(corrected['value'])} (95 % interval {low} to {high}, corrected for the classifier's errors, if it errs here as "
        f"on the pictures that it was tested on; as counted {raw})"
    )


def percent(share: float) -> str:
    """A share as text, with as many places as small shares, and those of nearly all, need."""
    rest = 100 * (1 - share)
    digits = places(100 * share) if 0 < share < 0.01 else places(rest) - 1 if 0 < rest < 0.1 else 1
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def places(value: float) -> int:
    """How many decimals show two digits of a small number: at least 2."""
    return max(2, 1 - math.floor(math.log10(abs(value)))) if value else 2


def list_flagged(store: Store, duplicates: str = "count", limit: int = MOST_FLAGGED) -> list[list[Any]]:
    """Return `FLAGGED_COLUMNS` of what is flagged, gravest first."""
    root = _root(store)
    gravity = " ".join(f"WHEN '{verdict}' THEN {rank}" for verdict, rank in SEVERITY.items())
    rows = store.query(
        "SELECT path, verdict, reasons, minimal_attire, minor, under_25, apparent_age, mtime_ns, sha256, error "  # noqa: S608  # our own
        f"FROM {VIEWS[duplicates]} WHERE {FLAGGED} "
        f"ORDER BY CASE verdict {gravity} END DESC, reasons != '[]' DESC, minimal_attire DESC, path LIMIT ?",
        (limit,),
    )
    with undamaged(store.path):
        return [_flagged_row(row, root) for row in rows]


def _flagged_row(row: Sequence[Any], root: str) -> list[Any]:
    path, verdict, reasons, minimal, minor, under_25, age, mtime_ns, sha256, error = row
    rules = " ".join(rule for rule, *_ in json.loads(reasons))
    scores = [None if score is None else round(score, 3) for score in (minimal, minor, under_25)]
    years = None if age is None else round(age)
    return [_below(os.fsdecode(path), root), verdict, rules, *scores, years, _day(mtime_ns), sha256, printable(error or "")]


def compare(first: Store, second: Store, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say what changed from one run to another: each figure's difference, and verdicts on bytes that both hold.

    cautions: what else than the pictures may have made the difference, in sentences.
    """
    before, after = (summary["figures"] for summary in summaries)
    verdicts = list(first.changes(second))
    differing = [part for part in ("model", "policy", "settings") if first.fact(part) != second.fact(part)]
    cautions = [f"The two scans differ in {part}: a difference in the figures may be due to that." for part in differing]
    if common := sum(count for *_, count in verdicts):
        cautions.append(f"{common:,} pictures are in both scans; the intervals of the differences hold for other pictures alone.")
    return {
        "figures": {name: _changes(before[name], after[name], _common_errors(name, summaries)) for name in before},
        "verdicts": [{"before": a, "after": b, "pictures": count} for a, b, count in verdicts],
        "cautions": cautions,
    }


def _common_errors(name: str, summaries: Sequence[Mapping[str, Any]]) -> ErrorCounts | None:
    """The error counts that correct a share of all pictures in both summaries, if they are the same."""
    first, second = (summary["error_rates"].get(RATES_OF.get(name, "")) for summary in summaries)
    return ErrorCounts(*(first[count] for count in ("tp", "fn", "tn", "fp"))) if first and first == second else None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], errors: ErrorCounts | None) -> dict[str, Any]:
    """The difference of a figure as counted, and as corrected, by the same error counts or by each its own."""
    pairs = {kind: (after[kind], before[kind]) for kind in ("raw", "corrected")}
    known = {kind: [Share(**share) for share in pair] for kind, pair in pairs.items() if all(pair)}
    found = {kind: difference(*pair) for kind, pair in known.items()}
    if errors and "corrected" in found:
        first, second = known["raw"]
        found["corrected"] = corrected_difference(first, second, errors)
    return {kind: asdict(found[kind]) if kind in found else None for kind in pairs}
