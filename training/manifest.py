"""A manifest CSV to checked rows. Nothing here reads a pixel.

Columns: `path` (below the manifest's folder) and `source` are needed; `licence` too, unless the settings
name one for the source; `medium, framing, attire, age_min, age_max, gender, ethnicity, group, fold, how` may be
empty or absent. Four of them hold one of these, or nothing:

    attire    no_person, clothed, revealing, minimal, or not_minimal: one of the first three
    framing   scene, figure (one person on a plain ground, as in a catalogue), face (a portrait), object (things)
    medium    photo, generated, drawn, mixed (several of these)
    fold      train, calibration, test; where it is empty, `training.split` decides

What a reader would get wrong: an exposed row (`revealing` or `minimal`) with no age is
refused as well, because an unknown age can be under 18; so is an age under 18 with no attire, unless it is a face crop's, because
an unknown attire can be exposed. And ages of scenes whose origin names none, or names one by a word of a caption, come from
`ages_by_eye.csv`; of an exposed row they can say that it is refused, never that it is allowed.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import click

from training.heads import ATTIRE, EXPOSED, NOT_MINIMAL, OLDEST

ADULT = 18
ATTIRE_VALUES = ("", NOT_MINIMAL, *ATTIRE.labels)
FOLDS = ("train", "calibration", "test")
MEDIA = ("photo", "generated", "drawn", "mixed")
FRAMINGS = ("scene", "figure", "face", "object")
KNOWN = {"attire": ATTIRE_VALUES[1:], "fold": FOLDS, "medium": MEDIA, "framing": FRAMINGS}
NEEDED = ("path", "source")
TEXTS = ("medium", "framing", "attire", "gender", "ethnicity", "group", "fold")
COLUMNS = (*NEEDED, "licence", *TEXTS, "age_min", "age_max", "how")

# What a language model that sees said of the picture on a contact sheet: somebody clearly under 18, only people clearly 18 or
# older, cannot be told, nobody recognisable. Columns: source, path, letter. It replaces the age in the manifest.
AGES_BY_EYE = Path(__file__).with_name("ages_by_eye.csv")
BY_EYE: dict[str, tuple[float, float] | None] = {"M": (0, ADULT - 1), "A": (ADULT, OLDEST), "Y": None, "N": None}


class ManifestError(click.ClickException):
    """The manifest cannot be used for training. The message names line, column and value; a command that meets it prints it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled picture. `age` is (least, greatest) apparent years of the youngest person, or none.

    fold: the one that it has to stand in; where it is empty, `training.split` decides.
    """

    path: str
    source: str
    licence: str
    medium: str = ""
    framing: str = ""
    attire: str = ""
    age: tuple[float, float] | None = None
    gender: str = ""
    ethnicity: str = ""
    group: str = ""
    fold: str = ""

    @property
    def exposed(self) -> bool:
        """True for `revealing` and `minimal`: rows of adults that never meet an age label."""
        return self.attire in EXPOSED

    @property
    def minor(self) -> bool:
        """True when the label says that somebody appears to be under 18."""
        return self.age is not None and self.age[1] < ADULT

    @property
    def adult(self) -> bool:
        """True when the label says that everybody appears to be 18 or older."""
        return self.age is not None and self.age[0] >= ADULT

    @property
    def adults_or_nobody(self) -> bool:
        """True when no minor can be in the picture: the only rows an exposed one may share a canvas with."""
        return self.attire == "no_person" or self.adult


def load_manifest(path: Path, licences: Mapping[str, str]) -> list[Row]:
    """Read and check every row. licences: source to licence, for manifests without that column.

    Raises `ManifestError` for the first row that is malformed or that training may not see.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before the first column's name
            reader = csv.DictReader(file)
            _check_header(path, reader.fieldnames or ())
            lines = reader.reader  # its number counts the blank lines that the other leaves out
            rows = [(lines.line_num, _row(lines.line_num, record, licences)) for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise ManifestError(f"{path}: cannot be read: {problem}") from problem
    if not rows:
        raise ManifestError(f"{path}: has no rows")
    seen: set[str] = set()
    for line, row in rows:
        if row.path in seen:
            raise ManifestError(f"line {line}: path {row.path!r} stands twice")
        seen.add(row.path)
    return [row for _, row in rows]


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        meant = name.strip().lower()
        if name != meant and meant in COLUMNS:
            raise ManifestError(f"{path}: column {name!r} must be written {meant!r}")
    if missing := next((column for column in NEEDED if header and column not in header), None):
        shown = ", ".join(map(repr, header))
        raise ManifestError(f"{path}: has no column {missing!r}; what stands between the commas of its first line is {shown}")


def check_sources(rows: Sequence[Row], sources: Sequence[str]) -> None:
    """Raise `ManifestError` for a source that no row has."""
    if unknown := set(sources) - {row.source for row in rows}:
        raise ManifestError(f"the manifest has no source {', '.join(sorted(unknown))} to leave out")


def _row(line: int, record: Mapping[str | None, str | None], licences: Mapping[str, str]) -> Row:
    if None in record:
        raise ManifestError(f"line {line}: more fields than the header has")
    values = {key: (value or "").strip() for key, value in record.items() if key is not None}
    for column in NEEDED:
        if not values.get(column):
            raise ManifestError(f"line {line}: column {column!r} is empty")
    if Path(values["path"]).is_absolute() or ".." in Path(values["path"]).parts:
        raise ManifestError(f"line {line}: path {values['path']!r} must stay below the manifest's folder")
    licence = values.get("licence") or licences.get(values["source"], "")
    if not licence:
        raise ManifestError(f"line {line}: source {values['source']!r} names no licence")
    text = {column: values.get(column, "") for column in TEXTS}
    path = Path(values["path"]).as_posix()  # one name for one file
    stated, seen = _age(line, values), _ages_by_eye().get((values["source"], path))
    age = BY_EYE[seen] if seen else stated
    for column, known in KNOWN.items():
        if text[column] not in ("", *known):
            raise ManifestError(f"line {line}: {column} {text[column]!r} is not one of {', '.join(known)} or empty")
    row = Row(path, values["source"], licence, age=age, **text)
    _check_lawful(line, row)
    if row.exposed:
        _check_lawful(line, replace(row, age=stated))
    return row


@cache
def _ages_by_eye() -> dict[tuple[str, str], str]:
    with AGES_BY_EYE.open(newline="", encoding="utf-8") as file:
        return {(source, path): letter for source, path, letter in csv.reader(file)}


def _age(line: int, values: Mapping[str, str]) -> tuple[float, float] | None:
    low, high = values.get("age_min", ""), values.get("age_max", "")
    if not low and not high:
        return None
    try:
        age = (float(low), float(high))
    except ValueError:
        raise ManifestError(f"line {line}: age_min {low!r} and age_max {high!r} must both be numbers") from None
    if not 0 <= age[0] <= age[1] <= 150:  # NaN fails this too
        raise ManifestError(f"line {line}: ages {low} to {high} are not a range from 0 to 150")
    return (min(age[0], OLDEST), min(age[1], OLDEST))


def _check_lawful(line: int, row: Row) -> None:
    if row.exposed and not row.adult:
        shown = "unknown" if row.age is None else f"{row.age[0]:g} to {row.age[1]:g}"
        raise ManifestError(
            f"line {line}: {row.path} joins attire {row.attire!r} with an age that can be under {ADULT} ({shown}); "
            "exposed attire is learned from adults only. Remove the row (and, if it shows a minor, the picture)"
        )
    if not row.attire and row.framing != "face" and row.age is not None and row.age[0] < ADULT:
        raise ManifestError(
            f"line {line}: {row.path} joins an age that can be under {ADULT} with no attire; age is learned from clothed people "
            "and faces only. Say that it is clothed, or not_minimal, or a face"
        )
