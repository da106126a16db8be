"""What training may learn from, decided before any pixel is read."""

import csv
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.manifest import AGES_BY_EYE, BY_EYE, ManifestError, load_manifest
from training.settings import load_settings

SETTINGS = Path(__file__).parents[1] / "training" / "settings.toml"
LICENCES = {"drawn": "CC0"}


@pytest.fixture
def manifest(tmp_path):
    """Write a manifest of the given rows; none of its pictures exists."""

    def write(*rows):
        columns = list(dict.fromkeys(["path", "source", *(name for row in rows for name in row)]))
        with (tmp_path / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({"path": f"{number}.jpg", "source": "drawn", **row} for number, row in enumerate(rows))
        return tmp_path / "manifest.csv"

    return write


def test_a_lawful_row_is_read_whole(manifest):
    path = manifest({"attire": "minimal", "age_min": "18", "age_max": "99", "framing": "figure", "gender": "female", "group": "a"})
    (row,) = load_manifest(path, LICENCES)
    assert (row.path, row.source, row.licence, row.attire, row.age) == ("0.jpg", "drawn", "CC0", "minimal", (18, 99))
    assert row.exposed and row.adults_or_nobody
    with pytest.raises(FrozenInstanceError):
        row.attire = "clothed"


@pytest.mark.parametrize("attire", ["minimal", "revealing"])
@pytest.mark.parametrize("ages", [("", ""), ("17", "17"), ("17.9", "30"), ("0", "99"), ("5", "8")])
def test_exposed_attire_with_an_age_that_can_be_under_18_is_refused(manifest, attire, ages):
    forbidden = {"attire": attire, "age_min": ages[0], "age_max": ages[1]}
    with pytest.raises(ManifestError, match=r"line 3: 1\.jpg joins attire .* age that can be under 18"):
        load_manifest(manifest({"attire": "clothed"}, forbidden), LICENCES)


def test_exposed_attire_in_a_manifest_without_ages_is_refused(manifest):
    with pytest.raises(ManifestError, match="unknown"):
        load_manifest(manifest({"attire": "minimal"}), LICENCES)


@pytest.mark.parametrize("attire", ["clothed", "no_person", "not_minimal", ""])
@pytest.mark.parametrize("ages", [{}, {"age_min": "3", "age_max": "3"}], ids=["no age", "age 3"])
def test_other_attire_may_have_any_age(manifest, attire, ages):
    (row,) = load_manifest(manifest({"attire": attire, "framing": "" if attire else "face", **ages}), LICENCES)
    assert not row.exposed


@pytest.mark.parametrize("framing", ["scene", "figure", ""])
def test_an_age_under_18_with_an_unknown_attire_is_refused_but_for_faces(manifest, framing):
    with pytest.raises(ManifestError, match="with no attire"):
        load_manifest(manifest({"framing": framing, "age_min": "5", "age_max": "30"}), LICENCES)


def test_one_file_by_two_names_stands_twice(manifest):
    rows = {"path": "a.jpg", "attire": "minimal", "age_min": "18", "age_max": "99"}, {"path": "./a.jpg", "attire": "clothed"}
    with pytest.raises(ManifestError, match="stands twice"):
        load_manifest(manifest(*rows), LICENCES)


def train(folder, settings):
    pytest.importorskip("torch", reason="training needs torch")
    from training.train import main

    words = ["--data", folder, "--output", folder / "run", "--settings", settings, "--no-pretraining", "--device", "cpu"]
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def settings(tmp_path):
    smoke = SETTINGS.with_name("smoke.toml").read_text()
    (tmp_path / "settings.toml").write_text(smoke.replace("[licences]", '[licences]\ndrawn = "CC0"'))
    return tmp_path / "settings.toml"


def test_a_forbidden_row_stops_training_before_any_pixel_is_read(manifest, settings):
    """The pictures do not exist: with the row, the manifest is what fails; without it, the first picture."""
    lawful, forbidden = {"attire": "clothed"}, {"attire": "minimal", "age_min": "10", "age_max": "30"}
    stopped = train(manifest(lawful, forbidden).parent, settings)
    assert stopped.exit_code == 1 and "line 3" in stopped.output
    unread = train(manifest(lawful).parent, settings)
    assert unread.exit_code == 1 and "0.jpg cannot be read" in unread.output


MALFORMED = [
    ({"path": ""}, "column 'path' is empty"),
    ({"source": ""}, "column 'source' is empty"),
    ({"source": "elsewhere"}, "source 'elsewhere' names no licence"),
    ({"path": "/etc/passwd"}, "must stay below"),
    ({"path": "a/../../b.jpg"}, "must stay below"),
    ({"attire": "naked"}, "attire 'naked' is not one of"),
    ({"attire": "Minimal"}, "attire 'Minimal' is not one of"),
    ({"age_min": "5"}, "must both be numbers"),
    ({"age_max": "5"}, "must both be numbers"),
    ({"age_min": "five", "age_max": "six"}, "must both be numbers"),
    ({"age_min": "9", "age_max": "8"}, "not a range"),
    ({"age_min": "-1", "age_max": "8"}, "not a range"),
    ({"age_min": "nan", "age_max": "nan"}, "not a range"),
    ({"age_min": "18", "age_max": "inf"}, "not a range"),
    ({"path": "0.jpg"}, "stands twice"),
    ({"framing": "portrait"}, "framing 'portrait' is not one of scene, figure, face, object or empty"),
    ({"medium": "drawing"}, "medium 'drawing' is not one of photo, generated, drawn, mixed or empty"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED, ids=lambda value: str(value)[:50])
def test_a_malformed_row_is_refused_with_its_line(manifest, row, message):
    with pytest.raises(ManifestError, match=f"line 3: .*{message}"):
        load_manifest(manifest({}, row), LICENCES)


@pytest.mark.parametrize("text", ["", "path,source\n", "source\ndrawn\n", "path,source\na.jpg,drawn,surplus\n", '"path,source\n'])
def test_a_malformed_file_is_refused(tmp_path, text):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ManifestError):
        load_manifest(tmp_path / "manifest.csv", LICENCES)


@pytest.mark.parametrize("name", ["Attire", " attire", "FOLD", "age_min "])
def test_a_column_that_is_nearly_a_known_one_is_refused(manifest, name):
    with pytest.raises(ManifestError, match=f"column '{name}' must be written '{name.strip().lower()}'"):
        load_manifest(manifest({name: ""}), LICENCES)


def test_a_column_of_ones_own_is_left_alone(manifest):
    assert load_manifest(manifest({"Photographer": "somebody"}), LICENCES)[0].path == "0.jpg"


def test_a_mark_before_the_first_column_is_no_part_of_its_name(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,source\na.jpg,drawn\n", encoding="utf-8-sig")
    assert load_manifest(tmp_path / "manifest.csv", LICENCES)[0].path == "a.jpg"


def test_a_header_with_other_separators_is_shown(tmp_path):
    (tmp_path / "manifest.csv").write_text("path;source\na.jpg;drawn\n")
    with pytest.raises(ManifestError, match=r"has no column 'path'.*'path;source'"):
        load_manifest(tmp_path / "manifest.csv", LICENCES)


@pytest.mark.parametrize(("last", "problem"), [("b.jpg,", "column 'source' is empty"), ("a.jpg,drawn", "stands twice")])
def test_blank_lines_count(tmp_path, last, problem):
    (tmp_path / "manifest.csv").write_text(f"path,source\n\na.jpg,drawn\n\n\n{last}\n")
    with pytest.raises(ManifestError, match=f"line 6: .*{problem}"):
        load_manifest(tmp_path / "manifest.csv", LICENCES)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"path,source\n\xff\xfe,drawn\n")
    for name in ("nowhere.csv", "binary.csv"):
        with pytest.raises(ManifestError, match="cannot be read"):
            load_manifest(tmp_path / name, LICENCES)


def test_a_licence_column_names_the_licence(manifest):
    (row,) = load_manifest(manifest({"source": "mine", "licence": "my own"}), {})
    assert row.licence == "my own"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"attire": "no_person"}, True),
        ({"attire": "clothed", "age_min": "18", "age_max": "99"}, True),
        ({"attire": "clothed"}, False),
        ({"attire": "not_minimal"}, False),
        ({"attire": "clothed", "age_min": "17", "age_max": "40"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_only_adults_or_nobody_may_stand_beside_an_exposed_row(manifest, row, expected):
    assert load_manifest(manifest(row), LICENCES)[0].adults_or_nobody is expected


def seen_by_eye():
    with AGES_BY_EYE.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("letter", sorted(BY_EYE))
def test_an_age_by_eye_replaces_that_of_the_manifest(manifest, letter):
    source, path, _ = next(line for line in seen_by_eye() if line[2] == letter)
    named = {"path": path, "source": source, "attire": "clothed", "age_min": "40", "age_max": "40"}
    (row,) = load_manifest(manifest(named), {source: "its own"})
    assert row.age == BY_EYE[letter]
    (row,) = load_manifest(manifest(named | {"source": "drawn"}), LICENCES)
    assert row.age == (40, 40)


@pytest.mark.parametrize(("letter", "ages"), [("M", ("18", "99")), ("A", ("12", "12"))], ids=["seen so", "said so"])
def test_an_exposed_row_of_a_minor_is_refused_whether_that_was_seen_or_said(manifest, letter, ages):
    source, path, _ = next(line for line in seen_by_eye() if line[2] == letter)
    row = {"path": path, "source": source, "attire": "revealing", "age_min": ages[0], "age_max": ages[1]}
    with pytest.raises(ManifestError, match="age that can be under 18"):
        load_manifest(manifest(row), {source: "its own"})


def test_ages_by_eye_belong_to_pictures_that_are_there(shared_data):
    settings = load_settings(SETTINGS)
    known = {(row.source, row.path): row for row in load_manifest(shared_data / "manifest.csv", settings.licences)}
    seen = seen_by_eye()
    assert len({(source, path) for source, path, _ in seen}) == len(seen) > 1000
    assert not any(known[source, path].exposed for source, path, _ in seen)


def test_the_real_manifest_is_lawful(shared_data):
    settings = load_settings(SETTINGS)
    rows = load_manifest(shared_data / "manifest.csv", settings.licences)
    assert len(rows) > 1000 and all(row.adults_or_nobody for row in rows if row.exposed)
