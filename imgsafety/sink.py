"""Results to text: `text` lists who is flagged and why, `jsonl` and `csv` hold every result.

A new format is one function here, from `Result` to a line, and its name in `FORMATS`.
What a reader would get wrong: file names are untrusted. Text output escapes what a terminal would obey.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO

from imgsafety.errors import SetupError
from imgsafety.result import Result

CSV_COLUMNS = (
    "path sha256 verdict reasons minimal_attire minor under_25 apparent_age apparent_age_low apparent_age_high frame error"
).split()
ROW_GROUP = 50_000


def to_text(result: Result) -> str:
    """One line for a flagged result, empty for the others."""
    if not result.flagged:
        return ""
    frame = "" if result.frame is None else f" frame {result.frame}"
    why = "; ".join(map(str, result.reasons)) or result.error or ""
    return f"{result.verdict:<9}  {printable(result.path or '(no name)')}{frame}  {printable(why)}\n"


def to_jsonl(result: Result) -> str:
    """One JSON object per line, with every attribute of `Result`."""
    return json.dumps(result.to_dict()) + "\n"


def to_csv(result: Result) -> str:
    """One row under `CSV_COLUMNS`; `reasons` are rule names joined by spaces."""
    values = {**result.to_dict(), "reasons": " ".join(reason.rule for reason in result.reasons)}
    return _csv_line([_cell(values[column]) for column in CSV_COLUMNS])


FORMATS: dict[str, Callable[[Result], str]] = {"text": to_text, "jsonl": to_jsonl, "csv": to_csv}
HEADERS = {"csv": ",".join(CSV_COLUMNS) + "\n"}


def describe(result: Result) -> Iterator[str]:
    """Everything about one result, line by line, for a person."""
    yield f"{printable(result.path or '(no name)')}: {result.verdict}"
    for reason in result.reasons:
        yield f"  because         {reason}"
    if result.error:
        yield f"  error           {printable(result.error)}"
    if result.frame is not None:
        yield f"  frame           {result.frame}"
    for name in ("minimal_attire", "minor", "under_25"):
        score = getattr(result, name)
        if score is not None:
            yield f"  {name:<15} {score:.3f}"
    if result.apparent_age is not None:
        interval = f"90 % between {result.apparent_age_low:.0f} and {result.apparent_age_high:.0f}"
        yield f"  apparent_age    {result.apparent_age:.0f} years ({interval})"
    for head, labels in result.scores.items():
        shown = {label: p for label, p in labels.items() if p >= 0.01}
        yield f"  {head:<15} " + "  ".join(f"{label} {p:.2f}" for label, p in shown.items())
    if result.sha256:
        yield f"  sha256          {result.sha256}"


def printable(text: str) -> str:
    """Escape control characters and undecodable bytes, so that a file name cannot steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same for lines: CSV keeps names whole, which is for programs, and a terminal is none."""
    return "\n".join(map(printable, text.split("\n")))


def _cell(value: object) -> object:
    # Spreadsheets run cells that start like formulas; a leading quote keeps a hostile file name text.
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _csv_line(cells: list[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # it quotes a carriage return in a name only where that is part of its line ends
    return line.getvalue().removesuffix("\r\n") + "\n"


def write_parquet(
    results: Iterable[Result],
    heads: Sequence[tuple[str, Sequence[str]]],
    where: str | IO[bytes],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write results as a Parquet file: the columns of CSV, and one more for every label of every head.

    heads: names and labels. where: a path or an open file. about: goes into the file's metadata. Names that are not UTF-8 are
    escaped, because Parquet's text cannot hold them. Raises `SetupError` without the packages of the extra `parquet`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as problem:
        raise SetupError("Parquet needs more packages: pip install 'imgsafety[parquet]'") from problem
    text, number = pyarrow.string(), pyarrow.float32()
    types = {"reasons": pyarrow.list_(text), "frame": pyarrow.int32()} | dict.fromkeys(("path", "sha256", "verdict", "error"), text)
    names = {f"{head}.{label}": (head, label) for head, labels in heads for label in labels}
    schema = pyarrow.schema([(column, types.get(column, number)) for column in (*CSV_COLUMNS, *names)], dict(about or {}))
    iterator = iter(results)
    with parquet.ParquetWriter(where, schema) as writer:
        while batch := list(islice(iterator, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist([_parquet_row(result, names) for result in batch], schema))


def _parquet_row(result: Result, names: Mapping[str, tuple[str, str]]) -> dict[str, object]:
    row: dict[str, object] = {column: getattr(result, column) for column in CSV_COLUMNS}
    row |= {"path": printable(result.path or ""), "error": printable(result.error) if result.error else None}
    row["reasons"] = [reason.rule for reason in result.reasons]
    return row | {name: result.scores.get(head, {}).get(label) for name, (head, label) in names.items()}
