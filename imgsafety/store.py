"""A run in one SQLite file: which files were seen, every score of every picture, the verdicts of one policy.

In: a batch of `Entry`s, written in one transaction. Out: what is done already, results, and rows for reports.
What a reader would get wrong: files and pictures are two tables. A file is a path with the stamp it had when it was
read; a picture is bytes, named by their SHA-256, scored once however many files hold them. A file is written with or
after its picture, never before it, so that no crash leaves a file whose scores are missing.
"""

import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgsafety import where
from imgsafety.errors import SetupError
from imgsafety.preprocess import CLOSER, LOOKS
from imgsafety.result import SEVERITY, Decision, Reason, Result

APPLICATION_ID = 0x696D6773  # "imgs", so that `file` and we can tell a run from another database
FORMAT = 1
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE,
    frames TEXT NOT NULL,       -- JSON: the frame of each row of scores, null for a still picture
    scores BLOB NOT NULL,       -- float32, one row of all heads' labels per entry of frames
    deciding INTEGER,           -- which of these rows decided
    verdict TEXT NOT NULL,
    reasons TEXT NOT NULL,      -- JSON
    error TEXT,
    minimal_attire REAL, minor REAL, under_25 REAL,
    apparent_age REAL, apparent_age_low REAL, apparent_age_high REAL,
    attire TEXT                 -- the most probable level
);
CREATE TABLE files (
    path BLOB PRIMARY KEY,      -- the name's own bytes, whatever their encoding
    stamp TEXT NOT NULL,        -- another stamp is another file
    size INTEGER, mtime_ns INTEGER,
    sha256 TEXT,                -- null when it could not be read
    error TEXT
) WITHOUT ROWID;
CREATE INDEX files_sha256 ON files (sha256);
CREATE VIEW results AS
    SELECT path, size, mtime_ns, files.sha256, coalesce(verdict, 'undecided') AS verdict, coalesce(reasons, '[]') AS reasons,
        coalesce(pictures.error, files.error) AS error, frames, scores, deciding, minimal_attire, minor, under_25,
        apparent_age, apparent_age_low, apparent_age_high, attire
    FROM files LEFT JOIN pictures ON pictures.sha256 = files.sha256;
CREATE VIEW distinct_results AS
    SELECT * FROM results WHERE sha256 IS NULL
    UNION ALL
    SELECT results.* FROM pictures JOIN results
        ON results.path = (SELECT min(path) FROM files WHERE files.sha256 = pictures.sha256);
"""
FLAGGED = "(verdict != 'allow' OR reasons != '[]')"  # `Result.flagged`, in SQL
NUMBERS = "minimal_attire minor under_25 apparent_age apparent_age_low apparent_age_high".split()
VERDICT_COLUMNS = ["deciding", "verdict", "reasons", "error", *NUMBERS, "attire"]
RESULT_COLUMNS = ", ".join(["path", "sha256", "verdict", "reasons", "error", "frames", "scores", "deciding", *NUMBERS])
# What describes a run, and what each of it holds at least.
FACTS = {"model": {"name", "sha256", "spec"}, "policy": {"name", "sha256", "rules"}}
FACTS |= {"settings": set(), "selection": {"paths", "sample"}}
Heads = tuple[tuple[str, tuple[str, ...]], ...]  # names and labels, in the order of the stored scores


@dataclass(frozen=True, slots=True)
class Seen:
    """One file as it was when it was listed. stamp: changes with its size or date."""

    path: bytes
    stamp: str
    size: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """Every score of one picture.

    frames: the frame that each row of scores is of, none for a still picture. scores: float32 (rows, labels of all heads).
    deciding: the row that decided, none when there are no scores.
    """

    frames: tuple[int | None, ...]
    scores: npt.NDArray[np.float32]
    deciding: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written for one file; opinion is none when the file could not be read or its bytes are stored."""

    seen: Seen
    result: Result
    opinion: Opinion | None = None


class Store:
    """One open run. `done`, `write` and `results` belong to one thread, `claim` to any.

    Opened by `open_to_write` or `open_to_read`, which raise `SetupError` when the file cannot be used.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._claims: set[str] = set()
        self._claiming = threading.Lock()
        self._closed = False
        self._looking = _connect(path, "ro")

    def close(self) -> None:
        """Close the file; nothing is lost by not calling it."""
        with self._claiming:  # a worker of an abandoned scan may be looking, and SQLite does not survive that
            self._closed = True
            self._looking.close()
        self._connection.close()

    def fact(self, name: str) -> Any:
        """Return a stored fact of the run (model, policy, settings, ...), or none."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        with undamaged(self.path):
            return json.loads(row[0]) if row else None

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Store or replace facts, all together."""
        with self._transaction():
            self._put_facts(facts)

    @cached_property
    def heads(self) -> Heads:
        """The model's heads and labels, in the order of the stored scores."""
        with undamaged(self.path):
            return tuple((head["name"], tuple(head["labels"])) for head in json.loads(self.fact("model")["spec"])["heads"])

    @cached_property
    def looks(self) -> tuple[str, ...]:
        """What the scores of each frame are looks at; nothing where an older version did not say it of a thorough scan."""
        settings = self.fact("settings")
        return tuple(settings.get("looks", "" if settings.get("thorough") else LOOKS[0]).split())

    def done(self, seen: Seen) -> bool:
        """True when this file was judged before and has not changed. One that could not be judged is tried again."""
        row = self._connection.execute(
            "SELECT 1 FROM files JOIN pictures USING (sha256) WHERE path = ? AND stamp = ? AND deciding IS NOT NULL",
            (seen.path, seen.stamp),
        ).fetchone()
        return row is not None

    def claim(self, sha256: str) -> bool:
        """True when no one has scored these bytes nor is about to: then the caller must. Any thread may ask."""
        with self._claiming:
            if self._closed or sha256 in self._claims:
                return False
            known = "SELECT 1 FROM pictures WHERE sha256 = ? AND deciding IS NOT NULL"
            if self._looking.execute(known, (sha256,)).fetchone():
                return False
            self._claims.add(sha256)
            return True

    def begin(self) -> None:
        """Begin a scan: nobody scores any more what one before it claimed, and what could not be judged is noted, see `end`."""
        with self._claiming:
            self._claims.clear()
        self._connection.execute("DELETE FROM unjudged")
        self._connection.execute("INSERT INTO unjudged SELECT path FROM files WHERE sha256 IS NULL")

    def end(self, facts: Mapping[str, Any], forget: bool) -> None:
        """End a scan: store facts and, if it listed everything, forget what stood for archives and folders that could be read now.

        These are there, pictures in them were judged, and they did not come up as what cannot be judged again.
        """
        again = "SELECT path FROM files WHERE sha256 IS NULL AND path IN unjudged"
        inside = "SELECT 1 FROM files WHERE path > ? AND path < ? AND sha256 IS NOT NULL"
        with self._transaction():
            for (path,) in list(self.query(again)) if forget else ():
                stem = path.removesuffix(b"/...")
                if os.path.lexists(stem) and next(self.query(inside, (stem + b"/", stem + b"0")), None):
                    self._connection.execute("DELETE FROM files WHERE path = ?", (path,))
            self._put_facts(facts)

    def write(self, entries: Sequence[Entry]) -> None:
        """Store a batch in one transaction: all of it or, after a crash, nothing."""
        with self._transaction():
            for entry in entries:
                self._put(entry)
        with self._claiming:
            self._claims.difference_update(entry.result.sha256 for entry in entries if entry.result.sha256)

    def _put(self, entry: Entry) -> None:
        seen, result, opinion = entry.seen, entry.result, entry.opinion
        if opinion is not None:
            columns = ", ".join(("sha256", "frames", "scores", *VERDICT_COLUMNS))
            scores = opinion.scores.astype("<f4").tobytes()
            values = (result.sha256, json.dumps(opinion.frames), scores, *_verdict_values(result, opinion.deciding))
            marks = ", ".join("?" * len(values))
            self._connection.execute(f"INSERT OR REPLACE INTO pictures ({columns}) VALUES ({marks})", values)  # noqa: S608  # our own
        if result.sha256 is None:
            self._connection.execute("DELETE FROM unjudged WHERE path = ?", (seen.path,))
        error = _storable(result.error) if result.sha256 is None else None
        row = (seen.path, seen.stamp, _fitting(seen.size), _fitting(seen.mtime_ns), result.sha256, error)
        self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", row)

    def find(self, sha256: str) -> Result | None:
        """Return the stored result for these bytes, without a path, or none."""
        columns = RESULT_COLUMNS.replace("path", "NULL")
        row = self._connection.execute(f"SELECT {columns} FROM pictures WHERE sha256 = ?", (sha256,)).fetchone()  # noqa: S608
        return self._result(row, self._joined_looks()) if row else None

    def count(self) -> dict[str, int]:
        """Return how many files have each verdict, and how many are `flagged` (see `Result.flagged`)."""
        verdicts = dict(self.query("SELECT verdict, count(*) FROM results GROUP BY verdict"))
        if unknown := verdicts.keys() - SEVERITY.keys():
            raise SetupError(f"run {self.path} is damaged: it holds the verdict {unknown.pop()!r}")
        ((flagged,),) = self.query(f"SELECT count(*) FROM results WHERE {FLAGGED}")  # noqa: S608  # our own
        return {**verdicts, "flagged": flagged}

    def results(self, view: str = "results", condition: str = "1") -> Iterator[Result]:
        """Yield stored results in the order of their paths. view: `results` or `distinct_results`; condition: SQL."""
        looks = self._joined_looks()
        for row in self.query(f"SELECT {RESULT_COLUMNS} FROM {view} WHERE {condition} ORDER BY path"):  # noqa: S608  # our own words
            yield self._result(row, looks)

    def _joined_looks(self) -> tuple[str, ...]:
        """The looks of each frame where the policy joins them, else nothing."""
        policy = self.fact("policy")
        return self.looks if policy and policy.get("zoom") else ()

    def _result(self, row: tuple[Any, ...], looks: tuple[str, ...]) -> Result:
        with undamaged(self.path):
            return _to_result(row, self.heads, looks)

    def query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a SELECT on the tables above."""
        with closing(self._connection.cursor()) as cursor:
            yield from cursor.execute(sql, values)

    def changes(self, other: "Store") -> list[tuple[str, str, int]]:
        """Return verdict here, verdict there, and how many pictures that both runs hold have these two."""
        ordered = "SELECT sha256, verdict FROM pictures WHERE sha256 IN (SELECT sha256 FROM files) ORDER BY sha256"
        counts: Counter[tuple[str, str]] = Counter()
        theirs = other.query(ordered)
        with undamaged(self.path):
            there = next(theirs, None)
            for sha256, verdict in self.query(ordered):
                while there and there[0] < sha256:
                    there = next(theirs, None)
                if there and there[0] == sha256:
                    counts[verdict, there[1]] += 1
        return sorted((before, after, count) for (before, after), count in counts.items())

    def pictures(self, after: int, count: int) -> list[tuple[int, str, str | None, Opinion]]:
        """Return id, SHA-256, error and opinion of up to `count` pictures whose id is above `after`."""
        width = sum(len(labels) for _, labels in self.heads)
        rows = self._connection.execute(
            "SELECT id, sha256, error, frames, scores FROM pictures WHERE id > ? ORDER BY id LIMIT ?", (after, count)
        )
        with undamaged(self.path):
            return [(id_, sha256, error, _to_opinion(frames, scores, width)) for id_, sha256, error, frames, scores in rows]

    def replace_verdicts(self, verdicts: Iterable[tuple[int, Result, int | None]], facts: Mapping[str, Any]) -> None:
        """Replace verdicts by those of another policy, and the facts about it, in one transaction.

        verdicts: a picture's id, its new result, and which row of its scores decided.
        """
        assignments = ", ".join(f"{column} = ?" for column in VERDICT_COLUMNS)
        with self._transaction():
            for id_, result, deciding in verdicts:
                values = (*_verdict_values(result, deciding), id_)
                self._connection.execute(f"UPDATE pictures SET {assignments} WHERE id = ?", values)  # noqa: S608  # our own
            self._put_facts(facts)

    def _put_facts(self, facts: Mapping[str, Any]) -> None:
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise


def files_of(run: str) -> tuple[str, ...]:
    """The run's own file, and those that lie beside it while somebody has it open."""
    return tuple(run + ending for ending in ("", "-wal", "-shm", "-journal", ".lock"))


@contextmanager
def open_to_write(path: str | os.PathLike[str], create: bool = True) -> Iterator[Store]:
    """Open a run for one writer, or make a new one; nobody else can write until it is closed or the process ends."""
    path = Path(path)
    if not create and not path.is_file():
        raise SetupError(f"run {path} does not exist")
    if not path.parent.is_dir():
        raise SetupError(f"run {path}: there is no folder {path.parent}")
    with _explained(path), closing(_connect(path, "rwc")) as connection, _locked(path, connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a lost commit is scanned again; a damaged file would not heal
        if not _is_run(connection, path):
            marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            connection.executescript(f"BEGIN; {SCHEMA} {marks} COMMIT;")
        connection.execute("CREATE TEMP TABLE unjudged (path BLOB PRIMARY KEY) WITHOUT ROWID")
        with closing(Store(path, connection)) as store:
            _check_facts(store)
            yield store


@contextmanager
def open_to_read(path: str | os.PathLike[str]) -> Iterator[Store]:
    """Open a finished or running run for reading."""
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"run {path} does not exist")
    # Readers write beside a run, too; where nobody can, nobody writes into it either.
    unchanging = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    with _explained(path), closing(_connect(path, "ro&immutable=1" if unchanging else "ro")) as connection:
        if not _is_run(connection, path):
            raise SetupError(f"run {path} is empty: nothing was scanned into it")
        connection.execute("BEGIN")  # whatever a scan writes meanwhile, all that is read is of one moment
        with closing(Store(path, connection)) as store:
            _check_facts(store)
            yield store


def _check_facts(store: Store) -> None:
    """Raise `SetupError` where what describes a run is not as it was written; a run that holds nothing has no facts."""
    facts = {name: store.fact(name) for name in FACTS}
    if all(value is None for value in facts.values()) and next(store.query("SELECT 1 FROM files"), None) is None:
        return
    for name, value in facts.items():
        if not isinstance(value, dict) or not FACTS[name] <= value.keys():
            raise SetupError(f"run {store.path} is damaged: its {name} is {value!r:.80}; scan anew into another --run file")


@contextmanager
def _locked(path: Path, connection: sqlite3.Connection) -> Iterator[None]:
    """Hold an exclusive lock on `PATH.lock`, an empty database: the system drops it however the process ends."""
    _is_run(connection, path)  # leave no lock beside what is none of ours
    lock = path.with_name(path.name + ".lock")
    with closing(sqlite3.connect(lock, timeout=0, isolation_level=None)) as holder:
        try:
            holder.execute("PRAGMA journal_mode = MEMORY")  # no journal beside an empty file
            holder.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem):
                raise
            raise SetupError(f"another imgsafety is writing to {path}; wait until it ends, or name another --run file") from None
        yield


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)


def _is_run(connection: sqlite3.Connection, path: Path) -> bool:
    """True for a run, false for an empty file; raises for any other file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application:
        return False
    if application != APPLICATION_ID:
        raise SetupError(f"{path} is a database, but not a run of imgsafety; name another --run file")
    if version != FORMAT:
        raise SetupError(f"run {path} has format {version}, this imgsafety reads {FORMAT}; use the version that made it")
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into an error that says what to do."""
    try:
        yield
    # SQLite's own words quote damaged names, and a damaged length asks for more memory than there is.
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as problem:
        text = str(problem) or "out of memory; either the file is damaged or this machine has too little left"
        if "full" in text or "disk I/O" in text:
            text = f"{text}; what was stored stays valid: free some space and give the same command again"
        elif "not a database" in text:
            text = "this is some other file; name another --run file"
        raise SetupError(f"run {path}: {text}") from problem


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Say that the run is damaged when what it holds is not what was written."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as problem:
        raise SetupError(f"run {path} is damaged: {problem}; scan anew into another --run file") from problem


def _verdict_values(result: Result, deciding: int | None) -> tuple[Any, ...]:
    reasons = [[reason.rule, reason.verdict, dict(reason.scores)] for reason in result.reasons]
    attire = result.scores.get("attire")
    return (
        deciding,
        result.verdict,
        json.dumps(reasons),
        _storable(result.error),
        *(getattr(result, name) for name in NUMBERS),
        max(attire, key=lambda label: attire[label]) if attire else None,
    )


def _fitting(number: int | None) -> int | None:
    """A file's date may lie further away than SQLite can count."""
    return number if number is not None and -(2**63) <= number < 2**63 else None


def _storable(text: str | None) -> str | None:
    """An error may quote a file name that is not UTF-8, which SQLite's text cannot hold."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


def _to_result(row: tuple[Any, ...], heads: Heads, looks: tuple[str, ...]) -> Result:
    """looks: those that each frame was given, for a policy that joins them; else none."""
    path, sha256, verdict, reasons, error, frames, scores, deciding, *numbers = row
    chosen: dict[str, dict[str, float]] = {}
    frame = None
    if deciding is not None:
        opinion = _to_opinion(frames, scores, sum(len(labels) for _, labels in heads))
        frame = opinion.frames[deciding]
        columns = split_columns(opinion.scores, heads)
        decided = _said(columns, deciding, looks)
        chosen = {name: dict(zip(labels, decided[name].tolist(), strict=True)) for name, labels in heads}
    if verdict not in SEVERITY:
        raise ValueError(f"it holds the verdict {verdict!r}")
    decision: Decision = verdict
    named = [Reason(rule, outcome, values) for rule, outcome, values in json.loads(reasons)]
    name = None if path is None else os.fsdecode(path)
    numbered = dict(zip(NUMBERS, numbers, strict=True))
    return Result(name, decision, tuple(named), error, sha256, frame, **numbered, scores=chosen)


def _said(columns: Mapping[str, npt.NDArray[np.float32]], deciding: int, looks: tuple[str, ...]) -> where.Heads:
    """What decided; if that is a whole, what it and a closer look say together."""
    rows = [deciding, *(deciding + at for at, look in enumerate(looks) if look in CLOSER and not deciding % len(looks))]
    whole, *closer = ({name: column[row].astype(float) for name, column in columns.items()} for row in rows)
    return where.together(whole, closer)


def _to_opinion(frames: str, scores: bytes, width: int) -> Opinion:
    table = np.frombuffer(scores, "<f4").astype(np.float32).reshape(-1, width)
    return Opinion(tuple(json.loads(frames)), table)


def split_columns(scores: npt.NDArray[np.float32], heads: Heads) -> dict[str, npt.NDArray[np.float32]]:
    """Give each head its columns of stored scores, as the model answered them: float32 (rows, labels)."""
    ends = np.cumsum([len(labels) for _, labels in heads])
    return {name: part for (name, _), part in zip(heads, np.split(scores, ends[:-1], axis=1), strict=True)}
