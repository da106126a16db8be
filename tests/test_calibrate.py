"""Thresholds that keep their promise, and a policy written from labelled pictures."""

import tomllib

import numpy as np
import pytest
from click import UsageError
from click.testing import CliRunner
from PIL import Image

from imgsafety import Scanner, load_policy
from imgsafety.scan import together
from tests.drawn import write_labelled
from training.calibrate import TooFewRowsError, affordable_threshold, certified_threshold, load_recipe, main, read_rows
from training.calibrate import calibrate as calibrated
from training.predict import open_scanner

# Labels of folders and the colour from which their pictures shade off; the toy model knows red, green and blue.
FOLDERS = {"minimal": (250, 0, 0), "clothed": (0, 250, 0), "no_person": (0, 0, 0), "minor": (0, 60, 250), "adult": (0, 250, 0)}


def random_scores(random, count):
    """Uniform scores: the true miss rate of a threshold is the threshold itself."""
    return random.uniform(0, 1, count)


@pytest.mark.parametrize(("cases", "target", "confidence"), [(60, 0.1, 0.95), (300, 0.05, 0.9), (300, 0.2, 0.95)])
def test_the_promise_holds_as_often_as_it_says(cases, target, confidence):
    random = np.random.default_rng(0)
    broken = np.mean([certified_threshold(random_scores(random, cases), target, confidence) > target for _ in range(4000)])
    assert broken <= 1 - confidence + 0.01  # three standard errors
    assert broken > (1 - confidence) / 4  # no more cautious than whole numbers of cases force it to be


def test_the_threshold_is_the_highest_that_keeps_the_promise():
    # 59 cases are the fewest that promise 5 % with 95 % confidence, and only if none of them is missed.
    assert certified_threshold(np.arange(59.0), 0.05, 0.95) == 0.0
    assert certified_threshold(np.arange(93.0), 0.05, 0.95) == 1.0


@pytest.mark.parametrize("cases", [0, 1, 58])
def test_too_few_cases_are_refused_with_the_number_needed(cases):
    with pytest.raises(TooFewRowsError, match=rf"{cases} labelled cases .* at least 59 are needed"):
        certified_threshold(np.ones(cases), 0.05, 0.95)


def test_copies_of_a_picture_are_one_case(tmp_path, toy_path):
    for label, colour in FOLDERS.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(60):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "data" / label / f"{number}.png")
    ran, _ = calibrate(tmp_path / "data", toy_path, "--target-miss", "0.05")
    assert ran.exit_code == 1 and "1 labelled cases" in ran.output and "at least 59 are needed" in ran.output


def test_equal_scores_are_never_missed():
    scores = np.full(200, 0.7)
    assert (scores < certified_threshold(scores, 0.1, 0.95)).sum() == 0


@pytest.fixture
def labelled(tmp_path):
    """A folder per label, forty pictures in each, no two with the same score or alike."""
    random = np.random.default_rng(5)
    for label, colour in FOLDERS.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(40):
            shade = tuple(int(level * random.uniform(0.55, 1)) for level in colour)
            draw_squares(shade, random).save(tmp_path / "data" / label / f"{number}.png")
    return tmp_path / "data"


def draw_squares(colour, random):
    """Nine of sixteen squares in a colour, the last four among them: as much as a place of the toy model's first look sees."""
    squares = np.ones((4, 4, 1))
    squares.flat[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13]] = random.permutation([1] * 5 + [0] * 7)
    return Image.fromarray((np.kron(squares, np.ones((8, 8, 1))) * colour).astype(np.uint8))


def calibrate(data, model, *options):
    output = data.parent / "policy.toml"
    return CliRunner().invoke(main, ["--data", str(data), "--model", str(model), "--output", str(output), *options]), output


def test_a_plain_folder_gives_a_policy_that_the_scanner_takes(labelled, toy_path):
    ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 0, ran.output
    scanner = Scanner(toy_path, output)
    flagged = [result.flagged for result in scanner.scan(sorted((labelled / "minimal").iterdir()))]
    assert np.mean(flagged) >= 0.9


def test_each_threshold_is_written_with_its_promise(labelled, toy_path):
    _, output = calibrate(labelled, toy_path, "--target-miss", "0.1", "--recipe", "strict")
    table, policy = tomllib.loads(output.read_text()), load_policy(output)
    promised = {(one["condition"], one["score"]): one for one in table["calibration"]["promise"]}
    for rule in policy.rules:
        for condition in ("when", "before_below"):
            for score, threshold in getattr(rule, condition).items():
                promise = promised[condition, score]
                assert promise["threshold"] == threshold and promise["target_miss"] == 0.1
                assert promise["cases"] == 40 and promise["missed"] <= 0.1 * 40
    assert policy.name == "strict" and len(table["calibration"]["model_sha256"]) == 64


def test_zooms_and_turns_have_thresholds_that_few_other_pictures_reach(labelled, toy_path):
    _, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert set(load_policy(output).thorough) == {"turn", "negative"} and load_policy(output).zoom
    with_others, alone = (Scanner(toy_path, output, thorough=thorough) for thorough in (True, False))
    paths = sorted((labelled / "clothed").iterdir())
    more = sum(one.flagged for one in with_others.scan(paths)) - sum(one.flagged for one in alone.scan(paths))
    assert 0 <= more <= 3 * 0.01 * 120  # of 120 pictures that show nothing minimal


def test_a_threshold_is_for_what_both_looks_say_together(labelled, toy_path):
    random = np.random.default_rng(0)

    def write_small(path, side):  # on a ground of its own, but for the place of what is small
        blue = np.zeros((4, 4, 3))
        blue[..., 2].flat[1:] = random.uniform(0, 90, 15)
        image = Image.fromarray(np.kron(blue, np.ones((80, 80, 1))).astype(np.uint8))
        image.paste((255, 0, 0), (0, 0, side, side))
        image.save(path)

    for number, path in enumerate(sorted((labelled / "minimal").iterdir())):
        write_small(path, 41 + number // 4)
    for path in sorted((labelled / "clothed").iterdir())[:10]:  # as many as keep the threshold above their own score
        write_small(path, 40)
    ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 0, ran.output
    value = next(rule.when["minimal_attire"] for rule in load_policy(output).rules if rule.name == "minimal-attire")
    scored = list(Scanner(toy_path, output).score(sorted((labelled / "minimal").iterdir())))
    alone, joint = (np.array([one.scores[0].named["minimal_attire"] for one in some]) for some in (scored, map(together, scored)))
    assert np.mean(joint >= value) >= 0.9 and np.mean(alone >= value) < 0.5


def test_a_first_look_settles_less_than_its_promise_allows_where_second_looks_are_few(labelled, toy_path):
    for number in range(20):  # clothed, somewhat like minimal
        Image.new("RGB", (16, 16), (155 + 2 * number, 90, 0)).save(labelled / "clothed" / f"more {number}.png")
    _, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    promises = [one for one in tomllib.loads(output.read_text())["calibration"]["promise"] if one["condition"] == "cascade"]
    assert {one["score"]: one["threshold"] for one in promises} == load_policy(output).cascade
    for promise in promises:
        left = float(promise["flagged_others"].split("%")[0])
        assert promise["missed"] == 0 and 5 <= left <= 10  # a rule of this recipe flags 2 %


def test_a_rule_about_edits_fires_later_where_edits_that_undress_nobody_look_like_it(labelled, toy_path):
    def thresholds():
        ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
        assert ran.exit_code == 0, ran.output
        when = {rule.name: rule.when["minimal_attire"] for rule in load_policy(output).rules if "minimal_attire" in rule.when}
        return when["undressed"], when["minimal-attire"]

    undressed, minimal = thresholds()
    assert undressed == minimal
    for number in range(5):  # clothed, until somebody makes the colours stronger
        Image.new("RGB", (16, 16), (220, 70, 60)).save(labelled / "clothed" / f"{number}.png")
    undressed, minimal = thresholds()
    assert undressed > 0.5 > minimal


def test_too_few_pictures_are_refused_and_nothing_is_written(labelled, toy_path):
    ran, output = calibrate(labelled, toy_path, "--target-miss", "0.01")
    assert ran.exit_code == 1 and "at least 299 are needed" in ran.output
    assert not output.exists()


def test_all_that_is_lacking_is_named_at_once(labelled, toy_path):
    for label in ("minimal", "minor"):
        for path in list((labelled / label).iterdir())[20:]:
            path.unlink()
    ran, _ = calibrate(labelled, toy_path, "--target-miss", "0.1")
    lacking = [line.partition(" labelled cases")[0] for line in ran.output.splitlines() if "at least 29 are needed" in line]
    assert lacking == ["Error: when minor: 20", "when exposed: 20", "when under_25: 20", "when minimal_attire: 20"]


def test_what_a_cascade_lacks_is_named_with_the_rest(labelled, toy_path):
    ran, _ = calibrate(labelled, toy_path)
    assert ran.exit_code == 1 and "when minimal_attire: 40" not in ran.output
    assert "cascade minimal_attire: 40 labelled cases" in ran.output and "at least 59 are needed" in ran.output


def test_unreadable_pictures_are_no_cases(labelled, toy_path):
    for path in (labelled / "minimal").iterdir():
        path.write_bytes(b"not a picture")
    ran, _ = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 1 and "0 labelled cases" in ran.output


def test_a_folder_that_is_named_for_no_label_is_refused(labelled, toy_path):
    (labelled / "minimal").rename(labelled / "minimal-attire")
    ran, _ = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 1 and "'minimal-attire' is not named for a label" in ran.output


def test_an_unknown_recipe_names_those_that_are_there(labelled, toy_path):
    ran, _ = calibrate(labelled, toy_path, "--recipe", "mild")
    assert ran.exit_code == 2 and "default, strict, audit" in ran.output


def test_a_manifest_is_calibrated_on_like_a_folder(tmp_path, toy_path):
    from tests.test_manifest import SETTINGS

    data = write_labelled(tmp_path / "data", per_label=30)
    # To the toy model half of the minors are as old as can be.
    ran, output = calibrate(data, toy_path, "--target-miss", "0.8", "--settings", str(SETTINGS.with_name("smoke.toml")))
    assert ran.exit_code == 0, ran.output
    assert load_policy(output).model == "toy 1"


def test_affordable_threshold_flags_no_more_than_the_share() -> None:
    scores = np.linspace(0, 1, 100)
    assert (scores >= affordable_threshold(scores, 0.05, np.repeat("one", 100))).sum() == 5


@pytest.mark.parametrize(
    ("origins", "flagged"),
    [
        (["small"] * 20 + ["large"] * 80, 8),  # the large one has all the high scores: 8 of 80 and 0 of 20 are 5 % on average
        (["large"] * 80 + ["small"] * 20, 5),  # the small one has them: 5 of 20 would be 12.5 % on average, but are 5 % of all
    ],
)
def test_false_alarms_are_the_smaller_of_their_share_and_its_mean_over_origins(origins: list[str], flagged: int) -> None:
    scores = np.linspace(0, 1, 100)
    assert (scores >= affordable_threshold(scores, 0.05, np.array(origins))).sum() == flagged


def test_false_alarms_that_cannot_be_had_are_not() -> None:
    scores, origins = np.linspace(0, 1, 10), np.repeat("one", 10)
    assert (scores >= affordable_threshold(scores, 0.05, origins)).sum() == 0
    assert affordable_threshold(scores, 1.0, origins) == -np.inf and affordable_threshold(scores[:0], 0.05, origins[:0]) == np.inf


def test_a_left_out_source_is_not_calibrated_on(tmp_path, toy_path):
    from tests.test_manifest import SETTINGS

    data = write_labelled(tmp_path / "data", per_label=30)
    words = ["--target-miss", "0.2", "--settings", str(SETTINGS.with_name("smoke.toml")), "--leave-out"]
    ran, _ = calibrate(data, toy_path, *words, "drawn_figures")
    assert ran.exit_code == 1 and "0 labelled cases" in ran.output  # all minimal attire is of that source
    ran, _ = calibrate(data, toy_path, *words, "sports")
    assert ran.exit_code == 1 and "no source sports to leave out" in ran.output
    ran, output = calibrate(data, toy_path, *words, "drawn_scenes")
    assert ran.exit_code == 0 and tomllib.loads(output.read_text())["calibration"]["left_out"] == ["drawn_scenes"]


def test_one_picture_that_is_exposed_and_a_minor_is_refused(labelled, toy_path):
    (labelled / "minor" / "copy.png").write_bytes((labelled / "minimal" / "0.png").read_bytes())
    ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 1 and "are one picture" in ran.output and not output.exists()


def test_one_picture_that_a_manifest_calls_exposed_and_a_minor_is_refused(tmp_path, toy_path):
    from tests.test_manifest import SETTINGS

    data = write_labelled(tmp_path / "data", per_label=30)
    (data / "drawn_faces" / "5_0.png").write_bytes((data / "drawn_figures" / "0_0.png").read_bytes())
    ran, _ = calibrate(data, toy_path, "--target-miss", "0.2", "--settings", str(SETTINGS.with_name("smoke.toml")))
    assert ran.exit_code == 1 and "are one picture" in ran.output


def test_a_threshold_that_everything_reaches_is_refused(labelled, toy_path):
    for number, path in enumerate(sorted((labelled / "minor").iterdir())[:10]):  # to the toy model, as old as can be
        draw_squares((0, 150 + 10 * number, 0), np.random.default_rng(number)).save(path)
    ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 1 and "would have to be 0" in ran.output and "minor" in ran.output and not output.exists()


def test_a_threshold_that_most_other_pictures_reach_is_written_with_a_warning(labelled, toy_path):
    ran, _ = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 0 and "warning" not in ran.stderr
    for number, path in enumerate(sorted((labelled / "clothed").iterdir())):  # redder than the palest of the minimal ones
        draw_squares((255, 0, 0), np.random.default_rng(100 + number)).save(path)
    for path in (labelled / "no_person").iterdir():
        path.unlink()
    ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert ran.exit_code == 0, ran.output
    assert output.exists() and ran.stderr.count("warning: when minimal_attire") == 1 and "warning: when under_25" not in ran.stderr


def test_what_identifies_the_data_is_what_is_in_it(labelled, toy_path):
    def identified():
        ran, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
        assert ran.exit_code == 0, ran.output
        table = tomllib.loads(output.read_text())["calibration"]
        return table["data_sha256"], table["rows"], table["unreadable"]

    digest, rows, unreadable = identified()
    assert (rows, unreadable) == (200, 0) and identified()[0] == digest
    (labelled / "adult" / "more.png").write_bytes(b"no picture")
    (labelled / "adult" / ".DS_Store").write_bytes(b"no picture either, and nobody says that it is one")
    assert identified() == (digest, 200, 1)
    with Image.open(labelled / "adult" / "0.png") as image:
        image.point(lambda level: level + 1).save(labelled / "adult" / "0.png")
    assert identified()[0] != digest


def test_a_manifest_is_identified_by_its_pictures_too(tmp_path, toy_path):
    from tests.test_manifest import SETTINGS

    data = write_labelled(tmp_path / "data", per_label=30)
    found = []
    for _ in range(2):
        ran, output = calibrate(data, toy_path, "--target-miss", "0.8", "--settings", str(SETTINGS.with_name("smoke.toml")))
        assert ran.exit_code == 0, ran.output
        found.append(tomllib.loads(output.read_text())["calibration"]["data_sha256"])
        picture = data / "drawn_scenes" / "4_0.png"
        picture.write_bytes((data / "drawn_scenes" / "4_1.png").read_bytes())
    assert found[0] != found[1]


def test_files_that_are_left_out_are_named(labelled, toy_path):
    for number in range(7):
        (labelled / "adult" / f"broken {number}.png").write_bytes(b"no picture")
    ran, _ = calibrate(labelled, toy_path, "--target-miss", "0.1")
    assert "left out: 7 files" in ran.stderr and "adult/broken 0.png" in ran.stderr and "and 2 more" in ran.stderr


def test_the_folder_of_the_policy_is_made_before_anything_is_judged(labelled, toy_path):
    output = labelled.parent / "nowhere" / "yet" / "policy.toml"
    words = ["--data", labelled, "--model", toy_path, "--output", output, "--target-miss", "0.1"]
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 0
    assert load_policy(output).model == "toy 1"


def test_a_split_that_is_not_there_is_not_made(tmp_path, toy_path):
    data = write_labelled(tmp_path / "data", per_label=4)
    ran, _ = calibrate(data, toy_path, "--split", str(tmp_path / "split.scv"))
    assert ran.exit_code == 2 and "does not exist" in ran.output and not (tmp_path / "split.scv").exists()


def test_a_score_with_dots_in_its_name_can_be_calibrated(labelled, toy_path):
    recipe = load_recipe("default")
    rules = [{"name": "young", "verdict": "review", "when": {"age.under_25": 0.1, "minimal_attire": 0.1}}]
    recipe = {"about": "x", "false_alarms": recipe["false_alarms"], "rules": rules}
    text = calibrated(open_scanner(toy_path), read_rows(labelled, None, {}), labelled, "young", recipe, None, 0.95)
    (labelled.parent / "policy.toml").write_text(text)
    assert set(load_policy(labelled.parent / "policy.toml").rules[0].when) == {"age.under_25", "minimal_attire"}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"when": {"attire.clothed": 0.1}}, "no label says which pictures are its cases"),
        ({"when": {"minimal_attire": 0.1}, "before_below": {"minor": 0.1}}, "no label says which pictures are its cases"),
        ({"when": {"age.under_21": 0.1}}, "gives no score 'age.under_21'"),
        ({"when": {"minimal": 0.1}}, "gives no score 'minimal'"),
    ],
)
def test_a_score_without_cases_is_refused_before_anything_is_judged(labelled, toy_path, table, problem):
    recipe = {"about": "x", "false_alarms": 0.1, "rules": [{"name": "a", "verdict": "review", **table}]}
    with pytest.raises(UsageError, match=problem):
        calibrated(open_scanner(toy_path), read_rows(labelled, None, {}), labelled, "a", recipe, None, 0.95)


def test_a_promise_that_two_rules_come_to_is_written_once(labelled, toy_path):
    _, output = calibrate(labelled, toy_path, "--target-miss", "0.1")
    promises = [tuple(one.items()) for one in tomllib.loads(output.read_text())["calibration"]["promise"]]
    assert len(promises) == len(set(promises)) > 4
