"""Results as text: complete, parseable, and harmless to terminals and spreadsheets."""

import csv
import io
import json
import os

import pytest

from imgsafety import Reason, Result, sink

REASON = Reason("minor-exposed", "block", {"minor": 0.91, "exposed": 0.82})
BLOCKED = Result("a/b.png", "block", (REASON,), sha256="00ff", frame=3, minimal_attire=0.82, minor=0.91, under_25=0.99)
ALLOWED = Result("a/c.png", "allow", minimal_attire=0.01, minor=0.02, under_25=0.03, scores={"attire": {"clothed": 1.0}})
UNDECIDED = Result("a/d.png", "undecided", error="cannot be read: gone")
HOSTILE = "=cmd|'/c calc'!A1\x1b[2J\n\u202e.png"


def test_text_names_what_is_flagged_and_why():
    line = sink.to_text(BLOCKED)
    assert line.startswith("block") and line.count("\n") == 1
    assert all(part in line for part in ("a/b.png", "frame 3", "minor-exposed", "minor 0.91", "exposed 0.82"))
    assert "cannot be read: gone" in sink.to_text(UNDECIDED)


def test_text_is_silent_about_what_is_allowed():
    assert sink.to_text(ALLOWED) == ""


@pytest.mark.parametrize("result", [BLOCKED, ALLOWED, UNDECIDED, Result(None, "undecided", error="x")])
def test_jsonl_holds_every_attribute(result):
    line = sink.to_jsonl(result)
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(json.dumps(result.to_dict()))


def test_csv_rows_match_their_header():
    table = sink.HEADERS["csv"] + sink.to_csv(BLOCKED) + sink.to_csv(ALLOWED) + sink.to_csv(UNDECIDED)
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["verdict"] for row in rows] == ["block", "allow", "undecided"]
    assert (rows[0]["reasons"], rows[0]["minor"], rows[0]["frame"]) == ("minor-exposed", "0.91", "3")
    assert rows[2]["error"] == "cannot be read: gone" and rows[2]["minor"] == ""


def test_a_hostile_name_cannot_steer_the_terminal():
    hostile = Result(HOSTILE, "undecided", error=HOSTILE)
    for line in (sink.to_text(hostile).rstrip("\n"), *sink.describe(hostile)):
        assert line.isprintable()


def test_a_hostile_name_is_no_formula_and_stays_whole():
    (row,) = csv.DictReader(io.StringIO(sink.HEADERS["csv"] + sink.to_csv(Result(HOSTILE, "allow"))))
    assert row["path"] == "'" + HOSTILE
    assert json.loads(sink.to_jsonl(Result(HOSTILE, "allow")))["path"] == HOSTILE


def test_a_name_that_is_not_utf8_survives():
    name = os.fsdecode(b"caf\xe9.png")
    assert json.loads(sink.to_jsonl(Result(name, "allow")))["path"] == name
    assert sink.printable(name).isprintable()


def test_a_description_says_everything_that_is_known():
    text = "\n".join(sink.describe(BLOCKED))
    assert all(part in text for part in ("block", "minor-exposed", "frame", "0.820", "0.910", "0.990", "00ff"))
    assert "cannot be read: gone" in "\n".join(sink.describe(UNDECIDED))


def test_a_carriage_return_in_a_name_stays_in_its_cell():
    rows = list(csv.reader(io.StringIO(sink.to_csv(Result("a\rb.png", "allow")), newline="")))
    assert len(rows) == 1 and rows[0][0] == "a\rb.png"
