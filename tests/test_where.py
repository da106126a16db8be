"""Where: maps sum to scores, boxes lie on what made a rule fire."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgsafety import Policy, Scanner, Scores, SetupError
from imgsafety.policy import parse_policy
from imgsafety.preprocess import LOOKS
from imgsafety.runs import decide_run, scan_run
from imgsafety.scan import Scored, judge
from imgsafety.store import open_to_write
from imgsafety.where import boxes, pool
from tests.toy import POLICY, toy_model, write_toy_model
from training.onnx_file import write_model

TOO_SMALL_RED = Image.new("RGB", (320, 320), "black")  # even half of the picture shows too little of it
TOO_SMALL_RED.paste((255, 0, 0), (240, 40, 270, 70))
SMALL_RED = Image.new("RGB", (320, 320), "black")
SMALL_RED.paste((255, 0, 0), (0, 0, 40, 40))
ZOOMS = "\n[zoom]\nminimal_attire = 0.5\n"
NOT_IN_A_ZOOM = "\n[zoom]\nminimal_attire = 1.0\nexposed = 1.0\n"
NOT_IN_A_TURN = NOT_IN_A_ZOOM.replace("zoom", "thorough.turn")


def corner_picture() -> Image.Image:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste((255, 0, 0), (48, 0, 64, 16))
    return picture


def test_maps_sum_to_their_scores(scanner: Scanner) -> None:
    result = scanner.check(corner_picture(), maps=True)
    assert result.minimal_attire == pytest.approx(np.sum(result.maps["minimal_attire"]), abs=1e-5)
    assert result.minor == pytest.approx(np.sum(result.maps["minor"]), abs=1e-5)


def test_box_lies_on_the_red_corner(scanner: Scanner) -> None:
    result = scanner.check(corner_picture(), maps=True)
    assert result.boxes["minimal_attire"] == ((0.75, 0.0, 1.0, 0.25),)


def test_boxes_belong_only_to_scores_that_fired(scanner: Scanner) -> None:
    assert scanner.check(Image.new("RGB", (64, 64), "black"), maps=True).boxes == {}


def test_places_apart_get_boxes_apart_strongest_first() -> None:
    grid = [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.4]]
    third, two_thirds = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert boxes(grid) == ((0.0, 0.0, third, third), (two_thirds, two_thirds, 1.0, 1.0))


def test_without_asking_there_are_no_maps(scanner: Scanner) -> None:
    result = scanner.check(corner_picture())
    assert result.maps == {}
    assert "maps" not in result.to_dict()


def test_a_zoom_finds_what_is_small(toy_path: Path, toy_policy: Policy) -> None:
    # The toy model needs half a place of its 4 x 4 grid in red; a zoom enlarges the patch enough.
    whole, thorough = (Scanner(toy_path, toy_policy, thorough=more) for more in (False, True))
    zooms = Scanner(toy_path, parse_policy(POLICY + ZOOMS))
    assert whole.check(SMALL_RED).verdict == "allow"
    assert zooms.check(SMALL_RED).verdict == thorough.check(SMALL_RED).verdict == "review"


def test_maps_that_told_where_to_zoom_are_not_in_the_result(toy_path: Path) -> None:
    result = Scanner(toy_path, parse_policy(POLICY + ZOOMS)).check(SMALL_RED)
    assert result.verdict == "review" and result.maps == result.boxes == {}
    assert "maps" not in result.to_dict()


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_a_zoom_finds_it_in_every_corner_on_every_way(toy_path: Path, tmp_path: Path, turn: Image.Transpose | None) -> None:
    picture = SMALL_RED if turn is None else SMALL_RED.transpose(turn)
    picture.save(tmp_path / "a.png")
    isolated = Scanner(toy_path, parse_policy(POLICY + ZOOMS), isolate=True)
    results = [*isolated.scan([tmp_path / "a.png"]), isolated.check(picture)]
    isolated.close()
    assert [result.verdict for result in results] == ["review", "review"]
    assert results[0].minimal_attire == results[1].minimal_attire


def test_maps_of_a_zoom_are_maps_of_the_whole_picture(toy_path: Path) -> None:
    result = Scanner(toy_path, parse_policy(POLICY + ZOOMS)).check(SMALL_RED, maps=True)
    grid = np.array(result.maps["minimal_attire"])
    assert grid.shape == (8, 8) and grid[4:].sum() == grid[:, 4:].sum() == 0.0
    assert result.minimal_attire == pytest.approx(grid.sum(), abs=1e-5)
    left, top, right, bottom = result.boxes["minimal_attire"][0]
    assert left == top == 0.0 and right <= 0.25 and bottom <= 0.25  # the patch ends at 0.125


def test_a_zoom_counts_from_what_the_policy_asks_of_zooms(toy_path: Path) -> None:
    loose, strict = (Scanner(toy_path, parse_policy(POLICY + more)) for more in (ZOOMS, NOT_IN_A_ZOOM))
    assert (loose.check(SMALL_RED).verdict, strict.check(SMALL_RED).verdict) == ("review", "allow")
    assert strict.check(Image.new("RGB", (64, 64), "red")).verdict == "review"  # the whole counts as it always does
    of_turns = Scanner(toy_path, parse_policy(POLICY + NOT_IN_A_TURN), thorough=True)
    assert of_turns.check(SMALL_RED).verdict == "review"


def test_both_looks_answer_for_the_whole_together(toy_path: Path) -> None:
    scanner = Scanner(toy_path, parse_policy(POLICY + NOT_IN_A_ZOOM))
    (scored,) = scanner.score([SMALL_RED])
    whole, closer = (np.array([*scores.heads["attire"].values()]) for scores in scored.scores)
    weights = whole**0.8 * np.maximum(closer, 0.01) ** 0.2
    joint, _ = judge(scanner.policy, scored)
    assert joint.minimal_attire == scanner.check(SMALL_RED).minimal_attire == pytest.approx((weights / weights.sum())[-1])
    assert whole[-1] < joint.minimal_attire < closer[-1]
    assert joint.minor == scored.scores[0].named["minor"]


def test_a_policy_about_edits_alone_asks_no_zoom(toy_path: Path) -> None:
    policy = parse_policy(POLICY + ZOOMS)
    scanner = Scanner(toy_path, replace(policy, rules=tuple(rule for rule in policy.rules if rule.before_below)))
    clothed, bare = (Image.new("RGB", (64, 64), colour) for colour in ("lime", "red"))
    pairs = [(SMALL_RED, SMALL_RED), (clothed, clothed), (clothed, bare)]
    assert [scanner.check_edit(*pair).verdict for pair in pairs] == ["allow", "allow", "block"]
    assert scanner.check(SMALL_RED).verdict == "undecided"


def test_a_decoy_that_draws_the_zoom_takes_little_from_a_sure_whole() -> None:
    pooled = pool(np.array([0.1, 0.0, 0.0, 0.9]), np.array([1.0, 0.0, 0.0, 0.0]))
    assert pooled.sum() == pytest.approx(1.0) and 0.69 < pooled[-1] < 0.9


def test_without_a_zoom_of_the_policy_the_whole_answers_alone(toy_path: Path) -> None:
    plain = parse_policy(POLICY)
    (scored,) = Scanner(toy_path, parse_policy(POLICY + ZOOMS)).score([SMALL_RED])
    assert judge(plain, scored)[0].minimal_attire == Scanner(toy_path, plain).check(SMALL_RED).minimal_attire
    result, deciding = judge(parse_policy(POLICY + NOT_IN_A_ZOOM), scored)
    assert deciding == 0 and result.minimal_attire > scored.scores[0].named["minimal_attire"]


def test_maps_of_both_looks_sum_to_their_scores(toy_path: Path) -> None:
    result = Scanner(toy_path, parse_policy(POLICY + NOT_IN_A_ZOOM)).check(SMALL_RED, maps=True)
    assert result.verdict == "allow"
    assert np.array(result.maps["exposed"]).shape == (8, 8) and np.array(result.maps["minor"]).shape == (4, 4)
    assert result.minimal_attire == pytest.approx(np.sum(result.maps["minimal_attire"]), abs=1e-5)
    assert np.array(result.maps["minimal_attire"])[:2, :2].sum() == pytest.approx(result.minimal_attire, rel=0.2)


def test_a_run_without_zooms_is_not_decided_by_a_policy_that_zooms(toy_path: Path, tmp_path: Path) -> None:
    SMALL_RED.save(tmp_path / "a.png")
    with open_to_write(tmp_path / "run.sqlite") as store:
        list(scan_run(Scanner(toy_path, parse_policy(POLICY)), store, [str(tmp_path / "a.png")]))
        with pytest.raises(SetupError, match="does not zoom"):
            decide_run(store, parse_policy(POLICY + ZOOMS))


def test_a_run_with_zooms_is_decided_as_a_scan_would(toy_path: Path, tmp_path: Path) -> None:
    # It keeps what each look said, so a policy that does not zoom, and another one that does, find what they ask for.
    SMALL_RED.save(tmp_path / "a.png")
    with open_to_write(tmp_path / "run.sqlite") as store:
        list(scan_run(Scanner(toy_path, parse_policy(POLICY + ZOOMS)), store, [str(tmp_path / "a.png")]))
        for text in (POLICY, POLICY + NOT_IN_A_ZOOM, POLICY + ZOOMS):
            decide_run(store, parse_policy(text))
            (stored,), live = store.results(), Scanner(toy_path, parse_policy(text)).check(tmp_path / "a.png")
            assert (stored.verdict, stored.minimal_attire) == (live.verdict, pytest.approx(live.minimal_attire, rel=1e-5))
            assert stored.scores["attire"] == pytest.approx(live.scores["attire"], rel=1e-5)


def test_a_cascade_says_why_it_is_not_decided_anew(toy_path: Path, tmp_path: Path) -> None:
    policy = parse_policy(POLICY + ZOOMS + "\n[cascade]\nminimal_attire = 0.0\nexposed = 0.0\n")
    SMALL_RED.save(tmp_path / "a.png")
    with open_to_write(tmp_path / "run.sqlite") as store:
        list(scan_run(Scanner(toy_path, policy, cascade=True), store, [str(tmp_path / "a.png")]))
        with pytest.raises(SetupError, match="scanned with --cascade"):
            decide_run(store, policy)


def test_the_cascade_does_not_zoom(toy_path: Path) -> None:
    policy = parse_policy(POLICY + ZOOMS + "\n[cascade]\nminimal_attire = 0.0\nexposed = 0.0\n")
    assert next(iter(Scanner(toy_path, policy, cascade=True).scan([SMALL_RED]))).verdict == "allow"


def test_a_later_decision_knows_the_looks_of_a_thorough_run(toy_path: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    SMALL_RED.save(tmp_path / "pictures" / "a.png")
    plain, strict = parse_policy(POLICY), parse_policy(POLICY + NOT_IN_A_ZOOM)
    with open_to_write(tmp_path / "run.sqlite") as store:
        found = scan_run(Scanner(toy_path, plain, thorough=True), store, [str(tmp_path / "pictures")])
        assert [result.verdict for result in found] == ["review"]
        decide_run(store, strict)
        assert [result.verdict for result in store.results()] == ["allow"]
        decide_run(store, plain)
        assert [result.verdict for result in store.results()] == ["review"]


def test_a_negative_counts_as_the_picture_that_it_is_of(toy_path: Path) -> None:
    inverted = Image.new("RGB", (64, 64), "cyan")
    policy = parse_policy(POLICY)
    assert Scanner(toy_path, policy).check(inverted).verdict == "allow"
    assert Scanner(toy_path, policy, thorough=True).check(inverted).verdict == "review"


def looked_at(*scores: tuple[float, float, float], frames: int = 1) -> Scored:
    """A thorough scan whose looks score (minimal_attire, exposed, minor); those that are not given see nothing."""
    looks = [dict(zip(("minimal_attire", "exposed", "minor"), values, strict=True)) for values in scores]
    looks += [dict.fromkeys(looks[0], 0.0)] * (len(LOOKS) * frames - len(looks))
    numbers = tuple(index // len(LOOKS) if frames > 1 else None for index in range(len(looks)))
    return Scored("a.png", None, numbers, tuple(Scores({}, named, None, None, None, {}) for named in looks), looks_taken=LOOKS)


def test_rules_that_other_looks_set_off_are_named_as_well() -> None:
    result, _ = judge(parse_policy(POLICY), looked_at((0.6, 0.6, 0.0), (0.4, 0.9, 0.9)))
    assert (result.verdict, [reason.rule for reason in result.reasons]) == ("block", ["minor-exposed", "minimal-attire"])


def test_a_zoom_that_does_not_count_says_nothing_about_the_picture() -> None:
    result, deciding = judge(parse_policy(POLICY + NOT_IN_A_ZOOM), looked_at((0.1, 0.1, 0.0), (0.9, 0.9, 0.0)))
    assert (result.verdict, result.minimal_attire, deciding) == ("allow", 0.1, 0)


def test_the_second_frame_of_a_thorough_scan_begins_with_its_whole() -> None:
    nothing = (0.0, 0.0, 0.0)
    scored = looked_at(*[nothing] * len(LOOKS), (0.6, 0.6, 0.0), frames=2)
    result, _ = judge(parse_policy(POLICY + NOT_IN_A_ZOOM.replace("zoom", "thorough.negative")), scored)
    assert (result.verdict, result.frame) == ("review", 1)


def test_scores_that_are_not_of_whole_frames_are_undecided() -> None:
    scored = looked_at((0.0, 0.0, 0.0))
    assert judge(parse_policy(POLICY), replace(scored, scores=scored.scores[:-1]))[0].verdict == "undecided"


def test_a_run_of_other_looks_is_not_decided_anew(toy_path: Path, tmp_path: Path) -> None:
    SMALL_RED.save(tmp_path / "a.png")
    with open_to_write(tmp_path / "run.sqlite") as store:
        list(scan_run(Scanner(toy_path, parse_policy(POLICY), thorough=True), store, [str(tmp_path / "a.png")]))
        store.set_facts({"settings": store.fact("settings") | {"looks": " ".join(LOOKS[:-1])}})
        with pytest.raises(SetupError, match="looks at pictures otherwise"):
            decide_run(store, parse_policy(POLICY))


def test_thorough_refuses_maps(toy_path: Path, toy_policy: Policy) -> None:
    with pytest.raises(SetupError, match="not thorough"):
        Scanner(toy_path, toy_policy, thorough=True).check(corner_picture(), maps=True)


def test_thorough_edit_of_an_exposed_picture_is_not_undressing(toy_path: Path, toy_policy: Policy) -> None:
    # A turn of the picture that came in shows as much; the whole of it is as exposed as what goes out.
    picture = Image.new("RGB", (320, 320), "black")
    picture.paste((255, 0, 0), (0, 0, 100, 100))
    result = Scanner(toy_path, toy_policy, thorough=True).check_edit(picture, picture)
    assert "undressed" not in [reason.rule for reason in result.reasons]


def test_a_thorough_edit_is_undressing_where_the_default_one_is(toy_path: Path) -> None:
    # A negative of the harmless picture that came in is red; that makes it no exposed one.
    before, after = Image.new("RGB", (64, 64), "cyan"), Image.new("RGB", (64, 64), "red")
    for thorough in (False, True):
        result = Scanner(toy_path, parse_policy(POLICY), thorough=thorough).check_edit(before, after)
        assert "undressed" in [reason.rule for reason in result.reasons]


def test_where_nothing_stands_out_the_first_look_stands_for_the_zoom(toy_path: Path) -> None:
    scanner = Scanner(toy_path, parse_policy(POLICY + ZOOMS))
    plain, small = scanner.score([Image.new("RGB", (64, 64), "red"), SMALL_RED])
    assert plain.looks == small.looks == LOOKS[:2]
    assert plain.scores[0] == plain.scores[1]
    assert small.scores[1].named["minimal_attire"] > small.scores[0].named["minimal_attire"]


def test_half_a_picture_answers_for_attire_alone(toy_path: Path) -> None:
    # What it leaves out may be the head; the age is that of the whole picture.
    picture = SMALL_RED.copy()
    picture.paste((0, 0, 255), (60, 0, 110, 55))
    (scored,) = Scanner(toy_path, parse_policy(POLICY + ZOOMS)).score([picture])
    whole, closer = scored.scores
    assert closer.heads["attire"] != whole.heads["attire"] and closer.named["exposed"] > whole.named["exposed"]
    assert closer.heads["age"] == whole.heads["age"] and closer.named["minor"] == whole.named["minor"]


def test_every_frame_has_a_zoom_of_its_own(toy_path: Path) -> None:
    black = Image.new("RGB", SMALL_RED.size, "black")
    frames = np.stack([np.asarray(picture) for picture in (black, SMALL_RED, black)])
    result = Scanner(toy_path, parse_policy(POLICY + ZOOMS)).check(frames)
    assert (result.verdict, result.frame) == ("review", 1)


def test_a_zoom_is_not_asked_about_edits(toy_path: Path) -> None:
    # It would compare a part of one picture with another part of the other; what it shows is still sent to review.
    before, after = Image.new("RGB", SMALL_RED.size, "black"), SMALL_RED
    result = Scanner(toy_path, parse_policy(POLICY + ZOOMS)).check_edit(before, after)
    assert (result.verdict, [reason.rule for reason in result.reasons]) == ("review", ["minimal-attire"])


def test_a_model_without_maps_cannot_tell_where_to_zoom(tmp_path: Path) -> None:
    model = toy_model()
    for output in [one for one in model.graph.output if one.name.endswith("_map")]:
        model.graph.output.remove(output)
    write_model(model, tmp_path / "toy.onnx")
    assert Scanner(tmp_path / "toy.onnx", parse_policy(POLICY)).check(SMALL_RED).verdict == "allow"
    with pytest.raises(SetupError, match="no map of attire"):
        Scanner(tmp_path / "toy.onnx", parse_policy(POLICY + ZOOMS))


@pytest.fixture(scope="module")
def finding_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a toy model that also tells where people are."""
    return write_toy_model(tmp_path_factory.mktemp("finding") / "toy.onnx", people=1.0)


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_a_model_that_finds_people_zooms_to_one_that_half_the_picture_hides(
    toy_path: Path, finding_path: Path, turn: Image.Transpose | None
) -> None:
    picture = TOO_SMALL_RED if turn is None else TOO_SMALL_RED.transpose(turn)
    blind, finding = (Scanner(path, parse_policy(POLICY + ZOOMS)) for path in (toy_path, finding_path))
    assert (blind.check(picture).verdict, finding.check(picture).verdict) == ("allow", "review")


def test_the_map_of_a_zoom_to_somebody_lies_where_they_are(finding_path: Path) -> None:
    result = Scanner(finding_path, parse_policy(POLICY + ZOOMS)).check(TOO_SMALL_RED, maps=True)
    assert result.minimal_attire == pytest.approx(np.sum(result.maps["minimal_attire"]), abs=1e-5)
    left, top, right, bottom = result.boxes["minimal_attire"][0]
    assert left <= 240 / 320 and right >= 270 / 320 and right - left <= 0.25
    assert top <= 40 / 320 and bottom >= 70 / 320 and bottom - top <= 0.25


@pytest.mark.parametrize(("clothed", "verdict"), [((0, 160, 80, 320), "allow"), ((0, 270, 36, 306), "review")])
def test_of_people_apart_those_with_most_evidence_are_zoomed_to(finding_path: Path, clothed: tuple[int, ...], verdict: str) -> None:
    # A crowd of clothed people has more of it than one who is small; somebody hardly larger has less, though more places.
    picture = TOO_SMALL_RED.copy()
    picture.paste((0, 255, 0), clothed)
    assert Scanner(finding_path, parse_policy(POLICY + ZOOMS)).check(picture).verdict == verdict


def test_a_half_counts_in_what_both_looks_say_and_not_by_itself(toy_path: Path, finding_path: Path) -> None:
    # Red with some blue is nobody whom the toy finds, but evidence of what it is a shade of.
    picture = Image.new("RGB", (320, 320), "black")
    picture.paste((255, 0, 89), (0, 0, 60, 60))
    blind, finding = (Scanner(path, parse_policy(POLICY + ZOOMS)) for path in (toy_path, finding_path))
    (closer,), (half,) = blind.score([picture]), finding.score([picture])
    assert (closer.looks, half.looks) == (("whole", "zoom"), ("whole", "half", "zoom"))
    assert half.scores[1] == closer.scores[1] != half.scores[0] == half.scores[2] == closer.scores[0]
    assert (blind.check(picture).verdict, finding.check(picture).verdict) == ("review", "allow")
    assert finding.check(picture).minimal_attire == judge(parse_policy(POLICY + NOT_IN_A_ZOOM), closer)[0].minimal_attire


# A place of the whole that may be, or surely is, young; a spot in the zoom that is; somebody else.
DOUBT, CHILD = ((0, 0, 144), (80, 240, 160, 320)), ((0, 0, 255), (80, 240, 160, 320))
BESIDE = ((0, 0, 255), (282, 80, 300, 100))
APART = ((0, 255, 0), (0, 270, 36, 306))


@pytest.mark.parametrize(
    ("others", "answers"),
    [((), True), ((DOUBT,), True), ((DOUBT, APART), False), ((CHILD,), False), ((BESIDE,), True), ((BESIDE, APART), True)],
)
def test_a_zoom_answers_for_age_where_it_shows_the_youngest(
    finding_path: Path, others: tuple[tuple[Any, Any], ...], answers: bool
) -> None:
    picture = TOO_SMALL_RED.copy()
    for colour, place in others:
        picture.paste(colour, place)
    scanner = Scanner(finding_path, parse_policy(POLICY + ZOOMS))
    (scored,) = scanner.score([picture])
    whole, _, closer = scored.scores
    assert whole.heads["attire"] != closer.heads["attire"]
    assert (whole.heads["age"] != closer.heads["age"]) == answers
    result = scanner.check(picture, maps=True)
    assert result.minor == closer.named["minor"] and result.apparent_age == closer.age
    assert result.minor == pytest.approx(np.sum(result.maps["minor"]), abs=1e-5)
    if DOUBT in others or CHILD in others:
        assert whole.named["minor"] > 0.1 and (closer.named["minor"] < 0.1) == answers
    elif BESIDE in others:
        assert whole.named["minor"] < 0.1 and closer.named["minor"] > 0.9


def test_a_spot_is_nobody(finding_path: Path) -> None:
    spot = Image.new("RGB", (320, 320), "black")
    spot.paste((255, 0, 0), (240, 40, 260, 60))
    scanner = Scanner(finding_path, parse_policy(POLICY + ZOOMS))
    assert scanner.check(spot).verdict == "allow" and scanner.check(TOO_SMALL_RED).verdict == "review"


def test_somebody_who_fills_the_picture_is_no_small_person(finding_path: Path) -> None:
    (scored,) = Scanner(finding_path, parse_policy(POLICY + ZOOMS)).score([Image.new("RGB", (64, 64), "red")])
    assert scored.looks == ("whole", "half", "zoom") and scored.scores[0] == scored.scores[2]


def test_a_run_of_a_model_that_finds_people_is_decided_as_a_scan_would(finding_path: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    young = TOO_SMALL_RED.copy()
    young.paste(*BESIDE)
    for name, picture in (("a", TOO_SMALL_RED), ("b", SMALL_RED), ("c", corner_picture()), ("d", young)):
        picture.save(tmp_path / "pictures" / f"{name}.png")
    with open_to_write(tmp_path / "run.sqlite") as store:
        list(scan_run(Scanner(finding_path, parse_policy(POLICY + ZOOMS)), store, [str(tmp_path / "pictures")]))
        for text in (POLICY, POLICY + NOT_IN_A_ZOOM, POLICY + ZOOMS):
            decide_run(store, parse_policy(text))
            live = Scanner(finding_path, parse_policy(text))
            for stored in store.results():
                found = live.check(stored.path)
                assert (stored.verdict, stored.minimal_attire) == (found.verdict, pytest.approx(found.minimal_attire, rel=1e-5))
                assert stored.minor == pytest.approx(found.minor, rel=1e-5)
                assert stored.apparent_age == pytest.approx(found.apparent_age)
                assert stored.scores["age"] == pytest.approx(found.scores["age"], rel=1e-5)


def test_a_thorough_scan_zooms_to_people_as_well(finding_path: Path) -> None:
    scanner = Scanner(finding_path, parse_policy(POLICY + ZOOMS), thorough=True)
    assert scanner.check(TOO_SMALL_RED).verdict == "review"
    (scored,) = scanner.score([TOO_SMALL_RED])
    assert scored.looks == ("whole", "half", *LOOKS[1:])
