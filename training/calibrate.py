"""Pick thresholds with a promise and write a policy: `python -m training.calibrate --data DIR --output FILE`.

DIR holds a manifest.csv (the calibration fold is used when --split names one, else every row) or one folder per
label: `minimal`, `revealing`, `clothed`, `no_person`, `not_minimal` (adults or nobody), `minor`, `adult`.

The promise: with the stated confidence, at most the stated share of such cases scores under the threshold.
Candidates are tested from the safest upwards, each by the exact binomial bound, and the first failure stops
(fixed-sequence testing, Learn then Test, Angelopoulos et al. 2021). Below that threshold the promise holds as well, so the
threshold is then lowered as far as the recipe's share of false alarms allows: of all pictures, or the mean over origins (the
manifest's `source`), whichever is smaller, because what will be judged is of none of them, and neither the largest nor the
oddest is to decide alone. A rule about edits names a share (`edits`) of clothed pictures that may set it off after an edit that
undresses nobody; its threshold is lowered no further than that. Pictures that look alike or share a `group` are one case, the one
that is missed first: the bound counts independent draws. The promise holds for pictures drawn like the labelled ones, and for no
others. Needs no torch.
"""

import datetime
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from scipy import stats

from imgsafety import Scanner
from imgsafety.policy import parse_policy
from imgsafety.preprocess import LOOKS
from imgsafety.scan import Scored, together
from imgsafety.session import score_names
from training.heads import EXPOSED, OLDEST
from training.manifest import ADULT, ATTIRE_VALUES, ManifestError, Row, check_sources, load_manifest
from training.measure import Rate, Values, rate
from training.predict import first_looks, open_scanner, read_image
from training.settings import FILE, load_settings
from training.split import first_of_all, picture_sha256, read_fold, readable_groups, refuse_contradictions
from training.transforms import EDITS

HERE = Path(__file__).parent
FOLDER_AGES = {"minor": (0.0, ADULT - 1.0), "adult": (float(ADULT), float(OLDEST))}
DECIMALS = 4
CONFIDENCE = 0.95  # of a promise
ROUNDING = 1e-9  # of a sum of shares: 5 of 100 are no more than 0.05
MOST_FLAGGED = 0.5  # of other pictures; beyond it a threshold is worth a warning
ATTIRE_SCORES = ("minimal_attire", "exposed")
CONDITIONS = ("when", "before_below")  # of a rule, each with a share of misses per score
# Condition, score, share of misses, share of false alarms, share of harmless edits.
Promise = tuple[str, str, float, float, float]
Groups = npt.NDArray[np.int64]  # (rows,), the same number for all rows of a group


class TooFewRowsError(click.ClickException):
    """The labelled pictures cannot carry the promise that was asked for."""


class VacuousError(click.ClickException):
    """The promise can only be kept by a threshold that every picture reaches."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of labelled pictures: a policy for a scanner's model, as a recipe says.

    groups: by row, what looks alike or belongs together. target_miss: in place of every miss rate of the recipe, if it is given.
    """

    scanner: Scanner
    rows: Sequence[Row]
    groups: Groups
    data: Path
    recipe: dict[str, Any]
    target_miss: float | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The chosen value, the promise it keeps, and what it rests on.

    cases: groups of pictures that look alike or belong together; missed: those of which one picture at least is.
    miss_bound: what the counts prove about the miss rate at this value (Clopper and Pearson); at or below the promise.
    """

    value: float
    target_miss: float
    missed: int
    cases: int
    pictures: int
    miss_bound: float
    flagged_others: Rate


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Labelled pictures, see above."
)
@click.option("--split", type=FILE, help="split.csv of training.train: use its calibration fold only.")
@click.option("--model", type=FILE, help="Model file; default: the shipped one.")
@click.option("--recipe", default="default", show_default=True, help="Policy in recipes.toml to calibrate.")
@click.option(
    "--target-miss",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Promise this miss rate for every score, instead of the recipe's.",
)
@click.option("--leave-out", multiple=True, help="Calibrate without this source, for a model that was trained without it.")
@click.option("--confidence", type=click.FloatRange(0.5, 1, max_open=True), default=CONFIDENCE, show_default=True)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The policy TOML to write.")
@click.option("--settings", "settings_path", type=FILE, default=HERE / "settings.toml")
def main(
    data: Path,
    split: Path | None,
    model: Path | None,
    recipe: str,
    target_miss: float | None,
    leave_out: tuple[str, ...],
    confidence: float,
    output: Path,
    settings_path: Path,
) -> None:
    settings = load_settings(settings_path)
    plan = load_recipe(recipe)
    output.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before all is judged
    scanner = open_scanner(model, zoom="zoom" in plan)
    rows = read_rows(data, split, settings.licences, leave_out)
    text = calibrate(scanner, rows, data, recipe, plan, target_miss, confidence, leave_out)
    parse_policy(text)  # what we write must be what the scanner reads
    output.write_text(text, encoding="utf-8")
    print(text)


def load_recipe(name: str) -> dict[str, Any]:
    """A policy of recipes.toml. Raises `UsageError`."""
    plan: dict[str, dict[str, Any]] = tomllib.loads((HERE / "recipes.toml").read_text(encoding="utf-8"))
    if name not in plan:
        raise click.UsageError(f"recipe {name!r} is not one of {', '.join(plan)}")
    return plan[name]


def read_rows(data: Path, split: Path | None, licences: dict[str, str], leave_out: Sequence[str] = ()) -> list[Row]:
    """Rows of a manifest (one fold of it, if a split is named), or of one folder per label; without some sources."""
    if split is not None:
        return read_fold(data, split, "calibration", licences, leave_out)
    if (data / "manifest.csv").is_file():
        rows = load_manifest(data / "manifest.csv", licences)
    else:
        rows = [_folder_row(path.relative_to(data)) for path in _files(data)]
    check_sources(rows, leave_out)
    refuse_contradictions(rows, data)
    return [row for row in rows if row.source not in leave_out]


def _files(folder: Path) -> list[Path]:
    """The files of the folders in a folder, but hidden ones, which file managers leave behind."""
    named = ((path, path.relative_to(folder).parts) for path in folder.glob("*/**/*") if path.is_file())
    return sorted(path for path, parts in named if not any(part.startswith(".") for part in parts))


def _folder_row(path: Path) -> Row:
    label, known = path.parts[0], (*ATTIRE_VALUES[1:], *FOLDER_AGES)
    if label not in known:
        raise ManifestError(f"folder {label!r} is not named for a label: {', '.join(known)}")
    if label in FOLDER_AGES:
        return Row(str(path), "folder", "the user's own", age=FOLDER_AGES[label])
    age = FOLDER_AGES["adult"] if label in EXPOSED else None
    return Row(str(path), "folder", "the user's own", attire=label, age=age)


def calibrate(
    scanner: Scanner,
    rows: Sequence[Row],
    data: Path,
    name: str,
    recipe: dict[str, Any],
    target_miss: float | None,
    confidence: float,
    left_out: Sequence[str] = (),
) -> str:
    """Return the text of a policy whose every threshold keeps its promise.

    left_out: sources that are not among `rows`, for the record. Raises `TooFewRowsError`, `VacuousError`, and `UsageError` for a
    score that cannot be calibrated.
    """
    if unknown := {score for _, score in _asked(recipe)} - score_names(scanner.session.spec):
        raise click.UsageError(f"the model gives no score {sorted(unknown)[0]!r} that the recipe names")
    rows, roots, unread = readable_groups(rows, data)
    groups = np.array(roots, dtype=np.int64)
    require_cases(rows, groups, recipe, target_miss, confidence, cascade=bool(scanner.session.spec.first_size))
    answers = list(map(together, scanner.score(data / row.path for row in rows)))
    unread += [f"{row.path}: {one.error}" for row, one in zip(rows, answers, strict=True) if one.error]
    if unread:
        click.echo(f"left out: {len(unread)} files could not be judged:{first_of_all(unread)}", err=True)
    judged = [index for index, one in enumerate(answers) if not one.error]
    rows, scored, groups = [rows[index] for index in judged], [answers[index] for index in judged], groups[judged]
    found: dict[Promise, Threshold] = {}
    task = Task(scanner, rows, groups, data, recipe, target_miss, confidence)
    tables = list(_rules(task, scored, found))
    for line in dict.fromkeys(_warnings(found)):
        click.echo(line, err=True)
    if scanner.session.spec.first_size and "cascade" in recipe:
        tables.append(_cascade(task, found))
    if "zoom" in recipe or "thorough" in recipe:
        tables += _other_looks(open_scanner(scanner.session.path, thorough=True), rows, data, recipe)
    header = _header(scanner, name, recipe["about"], confidence, left_out, _of_data(rows, data, len(unread)))
    # Two rules may come to the same promise; it is one then.
    record = "\n".join(dict.fromkeys(_record(promise, threshold) for promise, threshold in found.items()))
    return header + "\n" + "\n\n".join(tables) + "\n\n# What each threshold promises, and the pictures it rests on.\n" + record


def _rules(task: Task, scored: Sequence[Scored], found: dict[Promise, Threshold]) -> Iterator[str]:
    """The `[[rules]]` tables; their thresholds are added to `found`. scored: each picture, both looks together."""
    for rule in task.recipe["rules"]:
        lines = [f'name = "{rule["name"]}"', f'verdict = "{rule["verdict"]}"']
        for key in CONDITIONS:
            chosen = {}
            for score, miss in rule.get(key, {}).items():
                edits = rule.get("edits", 1.0)
                promise = (key, score, task.target_miss or miss, task.recipe["false_alarms"], edits)
                if promise not in found:
                    least = _edits_threshold(task, score, edits) if key == "when" else -math.inf
                    found[promise] = _threshold(task, _highest(scored, LOOKS[0], score), promise, least=least)
                    _refuse_vacuous(promise, found[promise])
                chosen[score] = found[promise].value
            if chosen:
                lines.append(f"{key} = {{ " + ", ".join(f"{_key(score)} = {value}" for score, value in chosen.items()) + " }")
        yield "[[rules]]\n" + "\n".join(lines)


def _refuse_vacuous(promise: Promise, threshold: Threshold) -> None:
    """Raise `VacuousError` for a rule's threshold that everything reaches."""
    key, score, miss, *_ = promise
    if key == "when" and threshold.value <= 0:
        raise VacuousError(
            f"{key} {score}: to miss at most {miss:g} of its cases, the threshold would have to be 0, which every picture reaches: "
            "the rule would flag everything. The model does not tell these cases apart: look at those that score lowest, or allow "
            "more misses"
        )


def _warnings(found: dict[Promise, Threshold]) -> Iterator[str]:
    """Of rules' thresholds that most other pictures reach; of a buffer of years that is no news."""
    for (key, score, *_), threshold in found.items():
        share = threshold.flagged_others
        if key == "when" and share.total and share.value > MOST_FLAGGED and (_years(score) or 0) <= ADULT:
            yield f"warning: {key} {score} >= {threshold.value} is reached by {share} of the other pictures"


def _asked(recipe: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every condition and score that a recipe names; of tables of other looks and of the first, as a rule's `when`."""
    for rule in recipe["rules"]:
        yield from ((key, score) for key in CONDITIONS for score in rule.get(key, {}))
    yield from (("when", score) for table in ("cascade", "zoom", "thorough") for score in recipe.get(table, {}))


def require_cases(
    rows: Sequence[Row], groups: Groups, recipe: dict[str, Any], target_miss: float | None, confidence: float, cascade: bool
) -> None:
    """Raise `TooFewRowsError` that names everything that is lacking, before the pictures are judged, which takes minutes.

    Raises `UsageError` where a score has no cases in any manifest.
    """
    for key, score in _asked(recipe):
        cases_of(rows, key, score)
    promises = [
        (key, score, target_miss or miss)
        for rule in recipe["rules"]
        for key in CONDITIONS
        for score, miss in rule.get(key, {}).items()
    ]
    # A first look has the cases of `when`: it is named where it needs more of them.
    first = [("cascade", score, target_miss or miss) for score, miss in recipe.get("cascade", {}).items() if cascade]
    promises += [promise for promise in first if ("when", *promise[1:]) not in promises]
    lacking = []
    for key, score, miss in dict.fromkeys(promises):
        count = len(np.unique(groups[cases_of(rows, key, score)[0]]))
        if count < cases_needed(miss, confidence):
            lacking.append(_too_few(f"{key} {score}", count, miss, confidence))
    if lacking:
        raise TooFewRowsError("\n".join(lacking))


def _highest(scored: Sequence[Scored], look: str, score: str) -> Values:
    """What a score reaches in any look of a kind at each picture, `(n,)`; 0 for zooms where there was nothing to zoom into."""
    values = []
    for one in scored:
        looks = list(zip(one.looks, one.scores, strict=True))
        # Where there was nothing to zoom into, the whole stands for the zoom.
        stand_ins = {id(scores) for kind, scores in looks if kind == LOOKS[0]} if look != LOOKS[0] else set()
        seen = (scores.named[score] for kind, scores in looks if kind == look and id(scores) not in stand_ins)
        values.append(max(seen, default=0.0))
    return np.array(values)


def _cascade(task: Task, found: dict[Promise, Threshold]) -> str:
    """The `[cascade]` table, with thresholds no higher than the lowest of the rules in `found`; its own are added there."""
    first = first_looks(task.scanner, task.rows, task.data)
    lines = ["# All below these in a first look at a fifth of the pixels: nobody looks again.", "[cascade]"]
    for score, miss in task.recipe["cascade"].items():
        fires = [threshold.value for (key, name, *_), threshold in found.items() if (key, name) == ("when", score)]
        promise = ("cascade", score, task.target_miss or miss, task.recipe.get("second_looks", 0.0), 1.0)
        values = np.array([one.named[score] for one in first])
        found[promise] = _threshold(task, values, promise, most=min(fires, default=1.0))
        lines.append(f"{_key(score)} = {found[promise].value}")
    return "\n".join(lines)


def _edits_threshold(task: Task, score: str, share: float) -> float:
    """What at most a share of the clothed pictures reach after any one of the edits that undress nobody."""
    if share >= 1:
        return -math.inf
    images = (read_image(row, task.data) for row in task.rows if row.attire == "clothed")
    scored = [together(one) for one in task.scanner.score(change(image) for image in images for change in EDITS.values())]
    reached = _highest(scored, LOOKS[0], score).reshape(-1, len(EDITS))
    return max(affordable_threshold(values, share, np.full(len(values), "clothed")) for values in reached.T)


def _other_looks(scanner: Scanner, rows: Sequence[Row], data: Path, recipe: dict[str, Any]) -> list[str]:
    """The `[zoom]` and `[thorough]` tables: what a zoom, turn or negative must score, so that these flag few pictures more."""
    scored = list(scanner.score(data / row.path for row in rows))
    origins = np.array([row.source for row in rows])
    tables = []
    for look in dict.fromkeys(LOOKS[1:]):  # not halves, which say nothing alone
        lines = []
        shares = recipe.get("zoom" if look == "zoom" else "thorough", {})
        for score, share in shares.items():
            others = cases_of(rows, "when", score)[1]
            value = affordable_threshold(_highest(scored, look, score)[others], share, origins[others])
            rounded = min(_rounded(value, math.ceil), 1.0) if math.isfinite(value) else 1.0
            reached = f"reached by at most {share:g} of other pictures, or of their origins on average"
            lines.append(f"{_key(score)} = {rounded}  # {reached}")
        if lines:
            tables.append((f"[{look}]\n" if look == "zoom" else f"[thorough.{look}]\n") + "\n".join(lines))
    return tables


def cases_of(rows: Sequence[Row], key: str, score: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows are cases that the condition must not miss, and which it should leave alone."""
    years = _years(score)
    if score not in ATTIRE_SCORES and (years is None or key == "before_below"):
        raise click.UsageError(
            f"{key} {score}: no label says which pictures are its cases; there are cases of {', '.join(ATTIRE_SCORES)} and, "
            "but for before_below, of minor, under_25 and age.under_N"
        )
    attire = np.array([row.attire for row in rows], dtype=np.str_)
    if key == "before_below":
        return attire == "clothed", attire == "minimal"
    if score == "minimal_attire":
        return attire == "minimal", (attire != "minimal") & (attire != "")
    if score == "exposed":
        return np.isin(attire, EXPOSED), np.isin(attire, ("no_person", "clothed"))
    line = min(years or ADULT, ADULT)  # a score of more years is a buffer: its cases are minors as well
    young = np.array([row.age is not None and row.age[1] < line for row in rows], dtype=bool)
    old = np.array([row.age is not None and row.age[0] >= line and not row.exposed for row in rows], dtype=bool)
    return young, old


def _years(score: str) -> int | None:
    """The years below which somebody is a case of a score of age; none for another score."""
    found = re.fullmatch(r"(?:age\.)?under_(\d+)", score)
    return ADULT if score == "minor" else int(found[1]) if found else None


def _threshold(task: Task, scores: Values, promise: Promise, least: float = -math.inf, most: float = 1.0) -> Threshold:
    key, score, miss, false_alarms, _ = promise
    cases, others = cases_of(task.rows, key, score)
    # `before_below` is a promise about high scores of clothed pictures: the same question, mirrored.
    sign = -1 if key == "before_below" else 1
    alone = lowest_of_groups(sign * scores[cases], task.groups[cases])
    promised = certified_threshold(alone, miss, task.confidence, f"{key} {score}")
    # Where the promise leaves room, the room goes to finding more, as far as false alarms allow. Not for `before_below`: there
    # it would find nothing more, and a picture that was exposed before would count as undressed when its score moves a little.
    # A first look may not settle at what a rule fires (`most`).
    origins = np.array([row.source for row in task.rows])
    affordable = max(least, affordable_threshold(scores[others], false_alarms, origins[others]))
    # What is promised is rounded down, which finds more, what can be afforded up, which flags less: the number written keeps both.
    lowest = _rounded(promised, math.floor)
    if key != "before_below" and affordable < lowest:
        lowest = min(lowest, _rounded(max(affordable, 0.0), math.ceil))
    value = min(max(sign * lowest, 0.0), most)
    missed = int((alone < sign * value).sum())
    bound = float(stats.beta.ppf(task.confidence, missed + 1, max(len(alone) - missed, 1)))
    flagged = rate(sign * scores[others] >= sign * value)
    return Threshold(value, miss, missed, len(alone), int(cases.sum()), round(bound, DECIMALS), flagged)


def lowest_of_groups(scores: Values, groups: Groups) -> Values:
    """The lowest score of each group, `(groups,)`: one case each, however many pictures show it."""
    return np.array([scores[groups == one].min() for one in np.unique(groups)])


def _rounded(value: float, to_whole: Callable[[float], int]) -> float:
    return float(to_whole(value * 10**DECIMALS) / 10**DECIMALS)


def affordable_threshold(scores: Values, false_alarms: float, origins: npt.NDArray[np.str_]) -> float:
    """The lowest threshold at which at most a share `false_alarms` of these scores is flagged: of all, or the mean over origins.

    Whichever finds more. scores, origins: `(n,)`. Minus infinity where everything may be flagged, infinity of no scores.
    """
    if not len(scores):
        return math.inf
    names, places, counts = np.unique(origins, return_inverse=True, return_counts=True)
    order = np.argsort(-scores, kind="stable")
    over_origins = np.cumsum(1 / counts[places[order]]) / len(names)  # flagged with this score and all above it
    over_all = np.arange(1, len(scores) + 1) / len(scores)
    beyond = np.flatnonzero(np.minimum(over_origins, over_all) > false_alarms + ROUNDING)
    return float(np.nextafter(scores[order[beyond[0]]], math.inf)) if len(beyond) else -math.inf


def certified_threshold(scores: Values, target_miss: float, confidence: float, what: str = "score") -> float:
    """The highest threshold for which, with `confidence`, at most `target_miss` of cases score below.

    scores: of labelled cases, `(n,)`. Raises `TooFewRowsError` when even missing none of them proves too little.
    """
    allowed = np.arange(len(scores))
    passing = stats.binom.cdf(allowed, len(scores), target_miss) <= 1 - confidence
    if not passing.any():
        raise TooFewRowsError(_too_few(what, len(scores), target_miss, confidence))
    return float(np.sort(scores)[allowed[passing].max()])


def cases_needed(target_miss: float, confidence: float) -> int:
    """The fewest labelled cases that can promise a miss rate, if none of them is missed."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - target_miss)))


def _too_few(what: str, count: int, target_miss: float, confidence: float) -> str:
    return (
        f"{what}: {count} labelled cases cannot promise a miss rate of {target_miss:g} with confidence {confidence:g}; "
        f"at least {cases_needed(target_miss, confidence)} are needed"
    )


def _key(score: str) -> str:
    """A score's name as a key of TOML: one with dots stands in quotes."""
    return score if re.fullmatch(r"[A-Za-z0-9_-]+", score) else json.dumps(score)


def _header(scanner: Scanner, name: str, about: str, confidence: float, left_out: Sequence[str], of_data: str) -> str:
    spec, session = scanner.session.spec, scanner.session
    return f'''# {about}
# Written by training.calibrate; thresholds come from labelled pictures, not from taste.
name = "{name}"
model = "{spec.identity}"

[calibration]
date = {datetime.date.today().isoformat()}
confidence = {confidence}
{of_data}
model_sha256 = "{session.sha256}"
''' + (f"left_out = {json.dumps(list(left_out))}\n" if left_out else "")


def _of_data(rows: Sequence[Row], data: Path, unread: int) -> str:
    """What identifies the pictures that thresholds rest on, in whatever order they are listed, and how many there are."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.path):
        labels = [row.path, row.source, row.group, row.attire, row.age]
        digest.update(json.dumps(labels).encode() + b"\0" + picture_sha256(row, data))
    return f'data_sha256 = "{digest.hexdigest()}"\nrows = {len(rows)}\nunreadable = {unread}'


def _record(promise: Promise, threshold: Threshold) -> str:
    key, score, miss, *_ = promise
    return f'''
[[calibration.promise]]
condition = "{key}"
score = "{score}"
threshold = {threshold.value}
target_miss = {miss}
missed = {threshold.missed}
cases = {threshold.cases}
pictures = {threshold.pictures}
miss_bound = {threshold.miss_bound}
flagged_others = "{threshold.flagged_others}"
'''


if __name__ == "__main__":
    main()
