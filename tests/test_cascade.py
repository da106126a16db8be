"""A cascade: what the first look settles stands, everything else is as without it, and what cannot be safe is refused."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image

from imgsafety import PolicyError, Scanner, SetupError
from imgsafety.policy import parse_policy, settled
from imgsafety.preprocess import shrink
from imgsafety.result import Scores
from tests.toy import POLICY, SIZE, SPEC, toy_model

CASCADE = "\n[cascade]\nexposed = 0.2\nminimal_attire = 0.2\n"


@pytest.fixture
def pair(toy_path):
    """The same scanner without and with a cascade."""
    return [Scanner(toy_path, parse_policy(POLICY + CASCADE), cascade=cascade, workers=2) for cascade in (False, True)]


def small_red(share: int) -> Image.Image:
    """Red in the first of `share` x `share` parts of a black picture."""
    picture = Image.new("RGB", (SIZE, SIZE))
    picture.paste("red", (0, 0, SIZE // share, SIZE // share))
    return picture


def test_what_is_not_settled_is_judged_as_without_a_cascade(pair, draw):
    pictures = [draw(kind, (20 + size, 40)) for size in range(20) for kind in ("minimal", "child", "clothed", "nobody")]
    plain, cascade = (list(scanner.scan(pictures)) for scanner in pair)
    assert [result.verdict for result in cascade] == [result.verdict for result in plain]
    flagged = [(first, second) for first, second in zip(plain, cascade, strict=True) if first.flagged]
    assert len(flagged) == 20
    assert all(first.minimal_attire == pytest.approx(second.minimal_attire, abs=1e-5) for first, second in flagged)


def test_the_first_look_settles_what_it_cannot_see(pair):
    # A quarter of a cell of the first look's grid, but a whole cell of the second's: the price of a cascade.
    plain, cascade = (next(scanner.scan([small_red(4)])) for scanner in pair)
    assert (plain.verdict, cascade.verdict) == ("review", "allow")
    assert cascade.minimal_attire < 0.2
    plain, cascade = (next(scanner.scan([small_red(2)])) for scanner in pair)
    assert (plain.verdict, cascade.verdict) == ("review", "review")


def test_what_is_submitted_takes_the_first_look_as_well(pair):
    for share, verdict in ((4, "allow"), (2, "review")):
        futures = [pair[1].submit(small_red(share)) for _ in range(40)]
        assert {future.result().verdict for future in futures} == {verdict}
    pair[1].close()


def test_single_calls_and_edits_look_at_all_pixels(pair):
    assert pair[1].check(small_red(4)).verdict == "review"
    assert pair[1].check_edit(Image.new("RGB", (SIZE, SIZE)), small_red(4)).verdict == "block"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (POLICY, "no \\[cascade\\] table"),
        (POLICY + "\n[cascade]\nminimal_attire = 0.2\n", "rule 'minor-exposed' can fire"),
        (POLICY + "\n[cascade]\nexposed = 0.2\n", "rule 'undressed' can fire"),
        (POLICY + "\n[cascade]\nexposed = 0.2\nminimal_attire = 0.6\n", "rule 'undressed' can fire"),
    ],
)
def test_a_policy_that_the_first_look_could_let_through_is_refused(toy_path, text, error):
    with pytest.raises(SetupError, match=error):
        Scanner(toy_path, parse_policy(text), cascade=True)


def test_cascade_values_are_checked(toy_path):
    with pytest.raises(PolicyError, match="cascade"):
        parse_policy(POLICY + "\n[cascade]\nexposed = 2\n")
    with pytest.raises(PolicyError, match="nowhere"):
        Scanner(toy_path, parse_policy(POLICY + "\n[cascade]\nnowhere = 0.1\n"))


def test_a_model_of_one_side_and_a_thorough_scan_are_refused(tmp_path, toy_path):
    policy = parse_policy(POLICY + CASCADE)
    fixed = tmp_path / "fixed.onnx"
    onnx.save(toy_model(replace(SPEC, first_size=0), sides=(SIZE, SIZE)), fixed)
    with pytest.raises(SetupError, match="one side only"):
        Scanner(fixed, policy, cascade=True)
    with pytest.raises(SetupError, match="either thorough or a cascade"):
        Scanner(toy_path, policy, cascade=True, thorough=True)


@pytest.mark.parametrize("named", [{}, {"exposed": 0.1}, {"exposed": float("nan"), "minimal_attire": 0.0}])
def test_a_score_that_is_missing_settles_nothing(named):
    policy = parse_policy(POLICY + CASCADE)
    assert not settled(policy, Scores({}, named, None, None, None, {}))
    assert settled(policy, Scores({}, {"exposed": 0.1, "minimal_attire": 0.0}, None, None, None, {}))


def test_a_first_look_sees_all_of_the_picture():
    """Every pixel of the picture counts for some pixel of the first look: none is skipped on the way down."""
    for row, column in np.ndindex(28, 28):
        pixels = np.zeros((1, 28, 28, 3), dtype=np.uint8)
        pixels[0, row, column] = 255
        seen = shrink(pixels, 12)
        assert seen.shape == (1, 12, 12, 3)
        assert seen.any()
