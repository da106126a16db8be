"""An evaluation of whatever was labelled: a table for which pictures or rules are lacking is left out."""

import csv

import pytest
from click.testing import CliRunner

from imgsafety.errors import ModelError
from imgsafety.session import shipped_model
from tests.drawn import write_labelled
from tests.test_manifest import SETTINGS
from training.evaluate import main

RULE = '[[rules]]\nname = "{name}"\nverdict = "review"\nwhen = {{ {score} = 0.5 }}\n'
RANKING, FLAGGED, LEVELS = "Minimal attire: ranking", "Minimal attire: flagged", "Attire levels: what is answered"
FACES, SCENES, SMALL = "Minor: faces with an exact age", "Minor: clothed people in scenes", "Minor: the same people, small"
CHANGED, PASTED, EDITS = "Robustness", "Small people and collages", "Edits: the rule"
ALL = {RANKING, FLAGGED, LEVELS, FACES, SCENES, SMALL, CHANGED, PASTED, EDITS, "Calibration", "Policy `", "Cascade"}
OF_ATTIRE = {RANKING, FLAGGED, LEVELS, EDITS}


def everything(_line):
    return True


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate the shipped model on the drawn pictures that are kept; return the run."""
    try:
        shipped_model()
    except ModelError as problem:
        pytest.skip(str(problem))
    data = write_labelled(tmp_path / "data", per_label=1)

    def evaluated(keep, *options, fold="test"):
        with (data / "manifest.csv").open(newline="") as file:
            lines = [line | {"fold": fold} for line in csv.DictReader(file) if keep(line)]
        with (data / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        (tmp_path / "split.csv").touch()
        words = ["--data", data, "--split", tmp_path / "split.csv", "--settings", SETTINGS.with_name("smoke.toml")]
        return CliRunner().invoke(main, [*map(str, words), "--changed-rows", "1", *options], catch_exceptions=False)

    return evaluated


def tables(ran):
    """Which of the tables an evaluation printed."""
    assert ran.exit_code == 0, ran.output
    assert "nan" not in ran.output.split("|")
    titles = [line.removeprefix("### ") for line in ran.output.splitlines() if line.startswith("### ")]
    return {name for name in ALL if any(title.startswith(name) for title in titles)}


@pytest.mark.parametrize(
    ("keep", "lacking"),
    [
        (everything, set()),
        (lambda line: line["framing"] != "face", {FACES}),
        (lambda line: line["framing"] == "face", {*OF_ATTIRE, SCENES, SMALL, PASTED}),
        (lambda line: line["age_min"] == "9", {*OF_ATTIRE, SCENES, SMALL, PASTED}),
        (lambda line: line["attire"] != "minimal", {RANKING, EDITS}),
        (lambda line: line["attire"] != "no_person", {SMALL, PASTED}),
        (lambda line: line["attire"] == "no_person", {RANKING, EDITS, FACES, SCENES, SMALL}),
        (lambda line: line["attire"] == "minimal", {EDITS, FACES, SCENES, SMALL, PASTED}),
        (lambda line: line["attire"] != "clothed", {EDITS, SCENES, SMALL}),
        (lambda line: line["age_max"] == "17" or line["attire"] == "no_person", {RANKING, EDITS, FACES}),
    ],
    ids=["all", "no faces", "faces", "minors' faces", "no minimal", "no nobody", "nobody", "minimal", "no clothed", "no adults"],
)
def test_tables_that_lack_their_pictures_are_left_out(evaluate, keep, lacking):
    assert tables(evaluate(keep)) == ALL - lacking


@pytest.mark.parametrize(
    ("rules", "lacking"),
    [
        ({"minimal-attire": "minimal_attire"}, {FACES, SCENES, SMALL, EDITS, "Cascade"}),
        ({"minor-exposed": "minor"}, {FLAGGED, EDITS, "Cascade"}),
        ({"my-own": "exposed"}, {FLAGGED, FACES, SCENES, SMALL, CHANGED, PASTED, EDITS, "Cascade"}),
        ({"minimal-attire": "exposed", "undressed": "exposed"}, {FLAGGED, FACES, SCENES, SMALL, CHANGED, PASTED, "Cascade"}),
    ],
    ids=["attire", "minors", "others", "other scores"],
)
def test_tables_that_lack_their_rule_are_left_out(evaluate, tmp_path, rules, lacking):
    text = "".join(RULE.format(name=name, score=score) for name, score in rules.items())
    (tmp_path / "own.toml").write_text(f'name = "own"\nmodel = "imgsafety 1.0"\n{text}')
    assert tables(evaluate(everything, "--policy", str(tmp_path / "own.toml"))) == ALL - lacking


def test_columns_of_changed_pictures_are_those_that_have_pictures_and_a_rule(evaluate):
    ran = evaluate(lambda line: line["attire"] != "minimal" and line["age_min"] != "40")
    assert "| change | others flagged | minors missed |" in ran.output


@pytest.mark.parametrize("options", [["--left-out", "drawn_faces"], ["--thorough"], ["--quick"]], ids=str)
def test_other_evaluations_leave_out_what_is_lacking_too(evaluate, options):
    assert tables(evaluate(lambda line: line["framing"] == "face", *options)) <= ALL - OF_ATTIRE


def test_an_empty_fold_is_refused(evaluate):
    ran = evaluate(everything, fold="train")
    assert ran.exit_code == 1 and "no picture to the test fold" in ran.output


@pytest.mark.parametrize(("option", "value"), [("--policy", "none.toml"), ("--model", __file__), ("--split", "none.csv")])
def test_files_that_cannot_be_used_are_named(evaluate, option, value):
    ran = evaluate(everything, option, value)
    assert ran.exit_code in (1, 2) and value in ran.output
