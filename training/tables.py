"""The tables of a model card, each a function from held-out pictures and their scores. No torch.

What a reader would get wrong: all thresholds are those of the policy that is passed in, nothing is tuned here. A table for
which pictures or the policy's rule are lacking is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from imgsafety import Scanner
from imgsafety.policy import Policy, settled
from imgsafety.preprocess import LOOKS
from imgsafety.scan import Scored, judge
from imgsafety.session import read_out
from imgsafety.spec import ModelSpec
from imgsafety.where import Heads, together
from training.heads import AGE, ATTIRE, HEADS
from training.manifest import ADULT, Row
from training.measure import Values, auroc_text, both_text, calibration_error, rate, recall_at
from training.predict import Answers, first_looks, predict, read_image
from training.transforms import EDITS, ROBUSTNESS, Change, beside, collage_of, smaller

SPEC = ModelSpec("measured", "", 224, HEADS)  # only its heads are asked: what their scores mean
Mask = npt.NDArray[np.bool_]
RANGES = (0.0, 0.05, 0.2, 0.5, 0.8, 1.0)  # of a score, in which what is expected is held against what is there


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, what the reader must know, column names and rows of text."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [f"### {self.title}", "", self.about, "", "| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in self.rows]) + "\n"


def markdown(tables: Iterable[Table]) -> str:
    """Several tables, one under the other."""
    return "\n".join(table.markdown() for table in tables)


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows with their scores, each an array over rows. `age` is the expected apparent age in years."""

    rows: Sequence[Row]
    answers: Answers

    def column(self, name: str) -> npt.NDArray[np.str_]:
        """A text column of the manifest."""
        return np.array([getattr(row, name) for row in self.rows], dtype=np.str_)

    @property
    def joint(self) -> Heads:
        """Of every head `(rows, labels)`: what the whole and a closer look say together, where there was one."""
        return together(self.answers.heads, self.answers.closer.values())

    @property
    def attire(self) -> Values:
        """P(attire) for each label, `(rows, labels)`."""
        return self.joint[ATTIRE.name]

    @property
    def minimal(self) -> Values:
        """P(attire = minimal)."""
        return self.attire[:, -1]

    @property
    def age(self) -> Values:
        """Expected apparent age."""
        return np.asarray(self.joint[AGE.name] @ AGE.middles)

    def under(self, years: float) -> Values:
        """P(apparent age < years)."""
        return np.asarray(self.joint[AGE.name][:, : AGE.edges.index(years)].sum(axis=1))

    @property
    def exact_age(self) -> Values:
        """The labelled age where it is exact, else NaN."""
        return np.array([row.age[0] if row.age and row.age[0] == row.age[1] else np.nan for row in self.rows])

    @property
    def minors(self) -> Mask:
        """Which labels say that somebody appears to be under 18."""
        return np.array([row.minor for row in self.rows], dtype=bool)

    def scored(self) -> list[Scored]:
        """What a scanner knows of each row, closer looks included if there were any."""
        parts = {LOOKS[0]: self.answers.heads, **self.answers.closer}
        looks = zip(*(read_out(SPEC, part) for part in parts.values()), strict=True)
        return [Scored(None, None, (None,) * len(parts), one, looks_taken=tuple(parts)) for one in looks]

    def reasons(self, policy: Policy, before: Iterable[Scored | None] = repeat(None)) -> list[set[str]]:
        """The rules that each row sets off in any look; before: of edits, what came in."""
        judged = (judge(policy, after, first)[0] for after, first in zip(self.scored(), before, strict=False))
        return [{reason.rule for reason in result.reasons} for result in judged]

    def fired(self, policy: Policy, rule: str, before: Iterable[Scored | None] = repeat(None)) -> Mask:
        """Which rows set off this rule; before: as for `reasons`."""
        return np.array([rule in names for names in self.reasons(policy, before)], dtype=bool)

    def take(self, chosen: Mask) -> "Measured":
        """The rows where `chosen` is true."""
        return Measured([row for row, keep in zip(self.rows, chosen, strict=True) if keep], self.answers.take(chosen))


def threshold(policy: Policy, rule: str, score: str) -> float:
    """The value at which a rule of a policy reacts to a score. Raises `UsageError` where there is none: ask `has_rule` first."""
    if not has_rule(policy, rule, score):
        raise click.UsageError(f"policy {policy.name!r} has no rule {rule!r} that asks for {score}")
    return next(entry for entry in policy.rules if entry.name == rule).when[score]


def has_rule(policy: Policy, rule: str, score: str) -> bool:
    """True when a policy has a rule of this name that reacts to the score."""
    return any(entry.name == rule and score in entry.when for entry in policy.rules)


def attire_tables(all_rows: Measured, policy: Policy) -> Iterator[Table]:
    """Minimal attire: how well it is ranked, what is flagged at the shipped threshold, and the levels."""
    known = all_rows.take(all_rows.column("attire") != "")
    positive = known.column("attire") == "minimal"
    if positive.any():
        yield _minimal_ranking(known, positive)
    if known.rows and has_rule(policy, "minimal-attire", "minimal_attire"):
        yield _minimal_flagged(all_rows, known, policy)
    exact = known.take(np.isin(known.column("attire"), ATTIRE.labels))
    if exact.rows:
        yield from _levels(exact)


def _minimal_ranking(known: Measured, positive: Mask) -> Table:
    return Table(
        "Minimal attire: ranking",
        "Positives: `minimal`. Others: every held-out picture known not to be minimal. Per source: both from that source. "
        "95 % intervals: bootstrap for AUROC, Wilson for rates.",
        ("pictures", "AUROC", "recall at 5 % false positives", "recall at 1 % false positives"),
        [
            _ranking("all", known.minimal, positive),
            *(
                _ranking(source, part.minimal, part.column("attire") == "minimal")
                for source in _values(known, "source")
                if (part := known.take(known.column("source") == source)).column("attire").tolist().count("minimal") > 1
            ),
        ],
    )


def _minimal_flagged(all_rows: Measured, known: Measured, policy: Policy) -> Table:
    limit = threshold(policy, "minimal-attire", "minimal_attire")
    return Table(
        f"Minimal attire: flagged at the shipped threshold {limit:g}",
        "Misses among `minimal`, false alarms among all others, for each group of pictures. "
        "Last column: false alarms that the zoom does not bring in by itself.",
        ("pictures", "missed", "falsely flagged", "by both looks together"),
        [
            (name, str(rate(~fired[hit])), str(rate(fired[~hit])), str(rate(part.minimal[~hit] >= limit)))
            for name, part in (("all whose attire is known", known), *_groups(all_rows))
            for hit, fired in [(part.column("attire") == "minimal", part.fired(policy, "minimal-attire"))]
        ],
    )


def _parts(measured: Measured, *columns: str) -> Iterator[tuple[str, Measured]]:
    """The rows of each value of each column."""
    for column in columns:
        for value in _values(measured, column):
            yield f"{column} {value}", measured.take(measured.column(column) == value)


def _groups(all_rows: Measured) -> Iterator[tuple[str, Measured]]:
    """By source, medium, framing, then the groups that people ask about; of faces the attire is unknown, but none is minimal."""
    yield from _parts(all_rows, "source", "medium", "framing")
    children = np.array([row.minor for row in all_rows.rows])
    scene = all_rows.column("framing") == "scene"
    yield "children in scenes", all_rows.take(children & scene)
    yield "faces of minors", all_rows.take(children & ~scene)
    sports = np.char.startswith(all_rows.column("source"), "sports") & (all_rows.column("attire") == "clothed")
    yield "sports, clothed", all_rows.take(sports)
    yield "revealing", all_rows.take(all_rows.column("attire") == "revealing")


def _ranking(name: str, scores: Values, positive: Mask) -> tuple[str, ...]:
    hits, others = scores[positive], scores[~positive]
    recalls = [str(recall_at(hits, others, share)) for share in (0.05, 0.01)] if len(hits) and len(others) else ["none"] * 2
    return (name, auroc_text(hits, others), *recalls)


def _levels(exact: Measured) -> Iterator[Table]:
    answers = exact.attire
    truth = np.array([ATTIRE.labels.index(row.attire) for row in exact.rows])
    best = answers.argmax(axis=1)
    yield Table(
        "Attire levels: what is answered",
        "Rows: the label. Columns: the likeliest answer.",
        ("label", *ATTIRE.labels),
        [
            (label, *(str(int(((truth == index) & (best == other)).sum())) for other in range(len(ATTIRE.labels))))
            for index, label in enumerate(ATTIRE.labels)
        ],
    )
    rows = []
    revealing = ATTIRE.labels.index("revealing")
    if revealing not in truth:
        return
    for other in ("minimal", "clothed"):
        pair = np.isin(truth, (revealing, ATTIRE.labels.index(other)))
        right = (answers[pair][:, revealing] > answers[pair][:, ATTIRE.labels.index(other)]) == (truth[pair] == revealing)
        mine = rate(right[truth[pair] == revealing])
        theirs = rate(right[truth[pair] != revealing])
        rows.append((f"`revealing` or `{other}`", f"{(mine.value + theirs.value) / 2:.3f}", str(mine), str(theirs)))
    yield Table(
        "Attire levels: `revealing` told from its neighbours",
        "Which of the two labels is likelier.",
        ("pair", "balanced accuracy", "of `revealing`", "of the other"),
        rows,
    )


def age_tables(all_rows: Measured, policy: Policy) -> Iterator[Table]:
    """Apparent age of faces with an exact label: ranking, error, misses around 18, by group; of clothed people, ages by eye."""
    if not has_rule(policy, "minor-exposed", "minor"):
        return
    faces, people = all_rows.take(~np.isnan(all_rows.exact_age)), _aged_by_eye(all_rows)
    limit = threshold(policy, "minor-exposed", "minor")
    if faces.rows:
        yield _age_of_faces(faces, limit)
    if people.rows:
        yield _age_in_scenes(people, limit)
    if faces.rows:
        yield _age_by_group(faces, limit)


def _age_of_faces(faces: Measured, limit: float) -> Table:
    age, minor = faces.exact_age, faces.exact_age < ADULT
    error = np.abs(faces.age - (age + 0.5))
    teen, young, older = (age >= 13) & minor, (age >= ADULT) & (age < 25), age >= 30
    return Table(
        "Minor: faces with an exact age",
        f"Positives: under 18. The shipped threshold of the minor score is {limit:g}.",
        ("figure", "value"),
        [
            ("AUROC of the minor score", auroc_text(faces.under(ADULT)[minor], faces.under(ADULT)[~minor])),
            ("AUROC, 13 to 17 against 18 to 24", auroc_text(faces.under(ADULT)[teen], faces.under(ADULT)[young])),
            (
                "mean absolute error of the apparent age",
                f"{_mean(error)} years ({len(error)} faces; under 30: {_mean(error[age < 30])})",
            ),
            *(
                (f"{name} at {cut:g}", str(rate(hit(cut))))
                for cut in (limit, 0.5)
                for name, hit in _around_18(faces, teen, young, older, minor)
            ),
            ("ages 13 to 17 estimated 25 or more", str(rate(faces.age[teen] >= 25))),
            ("true age inside the 90 % interval", str(rate(_inside_interval(faces)))),
        ],
    )


def _mean(values: Values) -> str:
    return f"{values.mean():.2f}" if len(values) else "none"


def _age_by_group(faces: Measured, limit: float) -> Table:
    return Table(
        f"Minor: by group, at the shipped threshold {limit:g}",
        "Missed: share that passes as adult. Falsely flagged: share of adults that is called a minor.",
        ("group", "missed, 13 to 17", "missed, under 18", "falsely flagged, 18 to 24", "falsely flagged, 30 and older"),
        [
            (
                name,
                *(str(rate(part.under(ADULT)[chosen] < limit)) for chosen in (_between(part, 13, ADULT), _between(part, 0, ADULT))),
                *(str(rate(part.under(ADULT)[chosen] >= limit)) for chosen in (_between(part, ADULT, 25), _between(part, 30, 200))),
            )
            for name, part in _people(faces)
        ],
    )


def _age_in_scenes(people: Measured, limit: float) -> Table:
    """Whole scenes and figures, clothed: ages by eye, without years."""
    rows = []
    for name, part in (("all", people), *_parts(people, "framing", "source")):
        rows.append((name, *_told_apart(part, limit)))
    return Table(
        f"Minor: clothed people in scenes, figures and portraits, at the shipped threshold {limit:g}",
        "Ages by eye (`training/ages_by_eye.csv`) or as the origin says: somebody under 18, or everybody 18 or older; "
        "what could be either is left out.",
        ("pictures", "AUROC", "minors missed", "adults falsely flagged"),
        rows,
    )


def small_people_tables(scanner: Scanner, all_rows: Measured, policy: Policy, data: Path) -> Iterator[Table]:
    """The same people small, alone and, if adults are among them, beside one."""
    rows = _aged_by_eye(all_rows).rows
    if not rows or not has_rule(policy, "minor-exposed", "minor"):
        return
    limit = threshold(policy, "minor-exposed", "minor")
    random = np.random.default_rng(0)
    grounds = _grounds(all_rows.rows, data, random, len(rows))
    if not grounds:
        return
    adults = [read_image(row, data) for row in some_rows(rows, np.array([not row.minor for row in rows]), random, len(rows))]

    def pair(share: float) -> Callable[[int], Change]:
        return lambda index: beside(share, adults[index % len(adults)], grounds[index % len(grounds)])

    lines = []
    beside_one = ((f"at 1/{part}, beside an adult", pair(1 / part)) for part in (3, 4) if adults)
    for name, make in [*_pasted(grounds), *beside_one]:
        lines.append((name, *_told_apart(Measured(rows, predict(scanner, rows, data, _in_turn(make))), limit)))
    yield Table(
        "Minor: the same people, small",
        "Pasted into pictures without people.",
        ("change", "AUROC", "minors missed", "adults falsely flagged"),
        lines,
    )


def _told_apart(people: Measured, limit: float) -> tuple[str, str, str]:
    """Minors against adults: AUROC, minors missed at the threshold, adults flagged."""
    minor, score = people.minors, people.under(ADULT)
    return auroc_text(score[minor], score[~minor]), str(rate(score[minor] < limit)), str(rate(score[~minor] >= limit))


def _aged_by_eye(all_rows: Measured) -> Measured:
    aged = np.array([row.age is not None and not row.exposed for row in all_rows.rows], dtype=bool)
    return all_rows.take(aged & np.isnan(all_rows.exact_age) & (all_rows.column("attire") != "no_person"))


def _around_18(faces: Measured, teen: Mask, young: Mask, older: Mask, minor: Mask) -> list[tuple[str, Callable[[float], Mask]]]:
    score = faces.under(ADULT)
    return [
        ("missed, under 18,", lambda cut: score[minor] < cut),
        ("missed, 13 to 17,", lambda cut: score[teen] < cut),
        ("falsely flagged, 18 to 24,", lambda cut: score[young] >= cut),
        ("falsely flagged, 30 and older,", lambda cut: score[older] >= cut),
    ]


def _between(part: Measured, low: float, high: float) -> Mask:
    return (part.exact_age >= low) & (part.exact_age < high)


def _people(faces: Measured) -> Iterator[tuple[str, Measured]]:
    yield "all", faces
    for column in ("gender", "ethnicity"):
        for value in _values(faces, column):
            yield f"{column} {value}", faces.take(faces.column(column) == value)


def _inside_interval(faces: Measured) -> Mask:
    edges = np.array(AGE.edges)
    inside = []
    for probabilities, age in zip(faces.joint[AGE.name], faces.exact_age, strict=True):
        low, high = np.interp([0.05, 0.95], np.concatenate([[0], np.cumsum(probabilities)]), edges)
        inside.append(low <= age + 1 and age <= high)
    return np.array(inside)


def verdict_table(all_rows: Measured, policy: Policy) -> Table:
    """What the policy says of each kind of picture, rule by rule: what its users meet."""
    attire = all_rows.column("attire")
    adult = np.array([row.adult for row in all_rows.rows])
    groups = {
        "adults, minimal": attire == "minimal",
        "adults, revealing": (attire == "revealing") & adult,
        "adults, clothed": (attire == "clothed") & adult,
        "clothed children in scenes": np.array([row.minor for row in all_rows.rows]) & (attire == "clothed"),
        "nobody": attire == "no_person",
    }
    rules = [rule.name for rule in policy.rules if not rule.before_below]
    rows = []
    for name, chosen in groups.items():
        fired = all_rows.take(chosen).reasons(policy)
        rows.append((name, *(str(rate(np.array([rule in names for names in fired], dtype=bool))) for rule in rules)))
    return Table(f"Policy `{policy.name}`: which rules fire", "On held-out pictures.", ("pictures", *rules), rows)


def calibration_tables(all_rows: Measured) -> Iterator[Table]:
    """How far the scores are from the frequency of what they predict."""
    known = all_rows.take(all_rows.column("attire") != "")
    faces = all_rows.take(~np.isnan(all_rows.exact_age))
    attire, people = known.column("attire"), _aged_by_eye(all_rows)
    scores = [
        ("minimal_attire", known.minimal, attire == "minimal"),
        *(
            (f"{name}, faces", faces.under(years), faces.exact_age < years)
            for name, years in (("minor", ADULT), ("under_25", 25.0))
        ),
        ("minor, clothed people in scenes, figures and portraits", people.under(ADULT), people.minors),
    ]
    lines = [_calibration(*score) for score in scores if len(score[1])]
    if not lines:
        return
    yield Table(
        "Calibration",
        "Expected calibration error over 15 bins of equal count, and how many there are in ranges of a score beside how many it "
        "expects. It holds for the mix of pictures of this fold.",
        ("score", "error", *(f"{low:g} to {high:g}: there, expected" for low, high in pairwise(RANGES)), "pictures"),
        lines,
    )


def _calibration(name: str, scores: Values, truth: Mask) -> tuple[str, ...]:
    cells = []
    for low, high in pairwise(RANGES):
        chosen = (scores >= low) & ((scores < high) | (high == RANGES[-1]))
        cells.append(f"{truth[chosen].sum()}, {scores[chosen].sum():.1f} of {chosen.sum()}")
    return name, f"{calibration_error(scores, truth):.3f}", *cells, str(len(scores))


def cascade_tables(scanner: Scanner, all_rows: Measured, policy: Policy, data: Path) -> Iterator[Table]:
    """What `--cascade` settles at the first look, and what that misses; nothing if the policy has no cascade."""
    if not policy.cascade:
        return
    attire = all_rows.column("attire")
    looks = first_looks(scanner, all_rows.rows, data)
    settles = np.array([settled(policy, scores) for scores in looks], dtype=bool)
    fires = np.array([bool(names) for names in all_rows.reasons(policy)], dtype=bool)
    cascade = Scanner(scanner.session.path, policy, provider=scanner.session.provider, cascade=True)
    results = cascade.scan(data / row.path for row in all_rows.rows)
    fires_still = np.array([bool(result.reasons) for result in results], dtype=bool)
    groups = {"all": np.ones(len(attire), dtype=bool), **{label: attire == label for label in ATTIRE.labels}}
    scores, known = np.array([look.named["minimal_attire"] for look in looks]), attire != ""
    ranked = auroc_text(scores[attire == "minimal"], scores[known & (attire != "minimal")])
    yield Table(
        "Cascade: what the first look settles",
        f"Policy `{policy.name}`. Lost: of the pictures that set off a rule in a default scan, those that do not in a cascade. "
        f"At the first look the AUROC of minimal attire is {ranked}.",
        ("pictures", "settled", "lost", "set off a rule"),
        [
            (name, str(rate(settles[chosen])), str(rate(~fires_still[chosen & fires])), str(rate(fires_still[chosen])))
            for name, chosen in groups.items()
        ],
    )


def changed_tables(scanner: Scanner, all_rows: Measured, policy: Policy, data: Path, most: int) -> Iterator[Table]:
    """The same pictures, changed: recall of minimal attire and of minors, at the shipped thresholds."""
    random = np.random.default_rng(0)
    minimal, others = _minimal_and_others(all_rows.rows, random, most)
    ages = all_rows.exact_age
    minors, adults = some_rows(all_rows.rows, ages < ADULT, random, most), some_rows(all_rows.rows, ages >= 25, random, most)
    asked = [
        ("minimal missed", minimal, "minimal-attire", "minimal_attire", False),
        ("others flagged", others, "minimal-attire", "minimal_attire", True),
        ("minors missed", minors, "minor-exposed", "minor", False),
        ("adults 25+ flagged", adults, "minor-exposed", "minor", True),
    ]
    asked = [one for one in asked if one[1] and has_rule(policy, one[2], one[3])]

    def score(make: Callable[[int], Change]) -> list[str]:
        cells = []
        for _, rows, rule, name, flagged in asked:
            part = Measured(rows, predict(scanner, rows, data, _in_turn(make)))
            fired = part.under(ADULT) >= threshold(policy, rule, name) if name == "minor" else part.fired(policy, rule)
            cells.append(str(rate(fired == flagged)))
        return cells

    yield from _tables_of_changes(all_rows.rows, data, random, most, [one[0] for one in asked], score)


def judged_tables(scanner: Scanner, all_rows: Sequence[Row], grounds: Sequence[Row], data: Path, most: int) -> Iterator[Table]:
    """The same for attire alone, as a scanner judges with its policy: each look of a thorough one has thresholds of its own.

    grounds: among these are the pictures without people that others are pasted into.
    """
    random = np.random.default_rng(0)
    minimal, others = _minimal_and_others(all_rows, random, most)
    asked = [one for one in (("minimal missed", minimal, False), ("others flagged", others, True)) if one[1]]
    if not any(rule.name == "minimal-attire" for rule in scanner.policy.rules):
        return

    def score(make: Callable[[int], Change]) -> list[str]:
        cells = []
        for _, rows, wanted in asked:
            change = _in_turn(make)
            results = scanner.scan(change(read_image(row, data)) for row in rows)
            fired = np.array([any(reason.rule == "minimal-attire" for reason in result.reasons) for result in results])
            cells.append(str(rate(fired == wanted)))
        return cells

    yield from _tables_of_changes(grounds, data, random, most, [one[0] for one in asked], score)


def _minimal_and_others(rows: Sequence[Row], random: np.random.Generator, most: int) -> tuple[list[Row], list[Row]]:
    attire = np.array([row.attire for row in rows])
    minimal = some_rows(rows, attire == "minimal", random, most)
    return minimal, some_rows(rows, np.isin(attire, ("clothed", "no_person", "not_minimal")), random, most)


def _in_turn(make: Callable[[int], Change]) -> Change:
    """The change for the first picture, then that for the second, and so on."""
    counter = count()
    return lambda image: make(next(counter))(image)


def _tables_of_changes(
    rows: Sequence[Row],
    data: Path,
    random: np.random.Generator,
    most: int,
    asked: Sequence[str],
    score: Callable[[Callable[[int], Change]], list[str]],
) -> Iterator[Table]:
    """asked: what each cell of `score` is, if anything is asked at all."""
    if not asked:
        return
    columns = ("change", *asked)
    yield Table(
        "Robustness",
        f"At most {most} held-out pictures per column, each changed, at the shipped thresholds.",
        columns,
        [(name, *score(lambda _, change=change: change)) for name, change in ROBUSTNESS.items()],  # type: ignore[misc]
    )
    grounds = _grounds(rows, data, random, most)
    if not grounds:
        return

    def grid(side: int) -> Callable[[int], Change]:
        return lambda index: collage_of(
            [grounds[(index + step) % len(grounds)] for step in range(side * side - 1)], side, index % (side * side)
        )

    yield Table(
        "Small people and collages",
        "The same pictures pasted into pictures without people, at a share of the frame's side, or as one cell of a grid.",
        columns,
        [(name, *score(make)) for name, make in _pasted(grounds)]
        + [(f"one cell of {side} x {side}", *score(grid(side))) for side in (2, 3)],
    )


def _grounds(rows: Sequence[Row], data: Path, random: np.random.Generator, most: int) -> list[Image.Image]:
    """Pictures without people, to paste others into."""
    empty = np.array([row.attire == "no_person" and row.framing != "figure" for row in rows])
    return [read_image(row, data) for row in some_rows(rows, empty, random, most)]


def _pasted(grounds: Sequence[Image.Image]) -> Iterator[tuple[str, Callable[[int], Change]]]:
    """Every picture small in one of these, at the places of their diagonal in turn."""

    def paste(share: float) -> Callable[[int], Change]:
        return lambda index: smaller(share, grounds[index % len(grounds)], (index % 5) / 4)

    return ((f"pasted at 1/{part} of the frame", paste(1 / part)) for part in (2, 3, 4))


def edit_tables(scanner: Scanner, all_rows: Measured, policy: Policy, data: Path) -> Iterator[Table]:
    """Pairs of pictures as an editor makes them: how often the rule `undressed` fires."""
    people = np.isin(all_rows.column("framing"), ("scene", "figure"))
    clothed = all_rows.take((all_rows.column("attire") == "clothed") & people)
    minimal = all_rows.take(all_rows.column("attire") == "minimal")
    if not clothed.rows or not minimal.rows or not any(rule.name == "undressed" for rule in policy.rules):
        return
    order = np.random.default_rng(0).permutation(len(clothed.rows))

    def fires(before: Iterable[Scored], after: Measured) -> Mask:
        return after.fired(policy, "undressed", before)

    def edited(part: Measured, name: str) -> Measured:
        return Measured(part.rows, predict(scanner, part.rows, data, EDITS[name]))

    came_in = clothed.scored()
    harmless, plain = came_in[int(np.argmin(clothed.minimal))], minimal.take(minimal.minimal == minimal.minimal.max())
    found = fires(repeat(harmless), minimal)
    rows = [
        (
            "undressed: any clothed picture, any minimal one",
            both_text(np.array([fires([first], plain)[0] for first in came_in]), found),
        ),
        ("(its picture that goes out alone, for comparison)", str(rate(found))),
        ("clothed, another clothed", str(rate(fires([came_in[index] for index in order], clothed)))),
    ]
    for name in EDITS:
        rows += [
            (f"clothed, {name}", str(rate(fires(came_in, edited(clothed, name))))),
            (f"minimal, {name}", str(rate(fires(minimal.scored(), edited(minimal, name))))),
        ]
    yield Table("Edits: the rule `undressed`", "First picture: what came in. Second: what goes out.", ("pair", "fires"), rows)


def some_rows(rows: Sequence[Row], chosen: Mask, random: np.random.Generator, most: int) -> list[Row]:
    """At most `most` of the chosen rows, of each source its share (a systematic sample from a random start), in their order."""
    indices = np.flatnonzero(chosen)
    if len(indices) > most:
        by_source = np.array(sorted(indices, key=lambda index: rows[int(index)].source))
        indices = np.sort(by_source[((np.arange(most) + random.random()) * len(indices) / most).astype(int)])
    return [rows[int(index)] for index in indices]


def _values(measured: Measured, column: str) -> list[str]:
    return sorted({str(value) for value in measured.column(column)} - {""})
