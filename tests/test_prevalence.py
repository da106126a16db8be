"""Corrected shares: right on average, and inside their intervals as often as they promise."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsafety import SetupError
from imgsafety.prevalence import (
    ErrorCounts,
    Share,
    correct,
    corrected_difference,
    corrected_share,
    difference,
    load_rates,
    raw_share,
)

MANY = 10**9
PERFECT = ErrorCounts(MANY, 0, MANY, 0)
ROUNDS = 4000


def simulated_coverage(share, sensitivity, specificity, total, labelled):
    """How often the interval holds the true share, over simulated audits; error rates from `labelled` pictures of each kind."""
    random = np.random.default_rng(7)
    apparent = share * sensitivity + (1 - share) * (1 - specificity)
    flagged = random.binomial(total, apparent, ROUNDS)
    right, wrong = random.binomial(labelled, sensitivity, ROUNDS), random.binomial(labelled, 1 - specificity, ROUNDS)
    held = 0
    for k, tp, fp in zip(flagged.tolist(), right.tolist(), wrong.tolist(), strict=True):
        found = corrected_share(k, total, ErrorCounts(tp, labelled - tp, labelled - fp, fp))
        held += found is not None and found.low <= share <= found.high
    return held / ROUNDS


@pytest.mark.parametrize(
    ("share", "sensitivity", "specificity", "total", "labelled"),
    [
        (0.53, 0.9, 0.9, 20_000, 400),
        (0.53, 0.8, 0.7, 1_000, 100),
        (0.02, 0.9, 0.95, 20_000, 400),
        (0.02, 0.7, 0.99, 2_000, 1000),
        (0.1, 0.95, 0.8, 500, 60),
        (0.9, 0.85, 0.9, 3_000, 150),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_promises(share, sensitivity, specificity, total, labelled):
    # 95 % is promised; Lang and Reiczigel report a little more near 0 and 1.
    assert 0.94 <= simulated_coverage(share, sensitivity, specificity, total, labelled) <= 0.995


def test_an_interval_that_takes_the_rates_for_certain_would_promise_too_much():
    truth = ErrorCounts(*(int(MANY * part) for part in (0.9, 0.1, 0.9, 0.1)))
    measured = simulated_coverage(0.53, 0.9, 0.9, 20_000, 100)
    naive = [corrected_share(flagged, 20_000, truth) for flagged in (10_000, 10_840)]
    honest = [corrected_share(flagged, 20_000, ErrorCounts(90, 10, 90, 10)) for flagged in (10_000, 10_840)]
    assert measured >= 0.94
    assert all(wide.high - wide.low > 5 * (narrow.high - narrow.low) for wide, narrow in zip(honest, naive, strict=True))


def test_the_estimate_undoes_the_errors():
    errors = ErrorCounts(90, 10, 95, 5)
    flagged = round(10_000 * (0.2 * 0.9 + 0.8 * 0.05))
    assert corrected_share(flagged, 10_000, errors).value == pytest.approx(0.2)


def test_a_perfect_classifier_needs_no_correction():
    raw, corrected = raw_share(53, 100), corrected_share(53, 100, PERFECT)
    assert corrected.value == raw.value == 0.53
    assert (corrected.low, corrected.high) == pytest.approx((raw.low, raw.high), abs=0.002)


def test_the_raw_interval_is_wilsons():
    stats = pytest.importorskip("scipy.stats")
    for flagged, total in ((0, 10), (3, 7), (20_000, 20_000), (400, 20_000)):
        expected = stats.binomtest(flagged, total).proportion_ci(method="wilson")
        found = raw_share(flagged, total)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_more_flags_than_the_false_alarms_alone_are_a_share_of_none():
    share = corrected_share(45, 1000, ErrorCounts(90, 10, 95, 5))
    assert share.value == share.low == 0 and 0 < share.high < 0.1


def test_far_fewer_flags_than_the_false_alarms_mean_that_the_rates_do_not_fit():
    assert corrected_share(2, 10_000, ErrorCounts(900, 100, 950, 50)) is None


def test_a_classifier_no_better_than_chance_corrects_nothing():
    assert corrected_share(5, 10, ErrorCounts(50, 50, 50, 50)) is None
    assert corrected_share(0, 0, PERFECT) is None and raw_share(0, 0) is None


@given(st.integers(1, 10**6), st.floats(0, 1), st.integers(1, 500), st.floats(0, 1), st.integers(1, 500), st.floats(0, 1))
def test_shares_stay_between_their_ends_and_in_range(total, flagged, cases, hit, others, miss):
    tp, fp = round(cases * hit), round(others * miss)
    share = corrected_share(round(total * flagged), total, ErrorCounts(tp, cases - tp, others - fp, fp))
    assert share is None or 0 <= share.low <= share.value <= share.high <= 1


def write_rates(path, **changed):
    counts = {"tp": 90, "fn": 10, "tn": 950, "fp": 50}
    path.write_text(json.dumps({"model_sha256": "abc", "policies": {"audit": {"minimal-attire": counts}}} | changed))
    return path


def test_rates_are_read_for_their_model_and_policy(tmp_path):
    assert load_rates(write_rates(tmp_path / "r.json"), "abc", "audit") == {"minimal-attire": ErrorCounts(90, 10, 950, 50)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_sha256": "other"}, "another model"),
        ({"policies": {"strict": {}}}, "no error rates at the thresholds of policy 'audit'"),
        ({"policies": {"audit": {"minimal-attire": {"tp": 1, "fn": 2, "tn": 3}}}}, "whole numbers"),
        ({"policies": {"audit": {"minimal-attire": {"tp": -1, "fn": 2, "tn": 3, "fp": 4}}}}, "whole numbers"),
        ({"policies": {"audit": {"minimal-attire": {"tp": 0, "fn": 0, "tn": 3, "fp": 4}}}}, "both kinds"),
    ],
)
def test_rates_that_do_not_fit_are_refused(tmp_path, changed, message):
    with pytest.raises(SetupError, match=message):
        load_rates(write_rates(tmp_path / "r.json", **changed), "abc", "audit")


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json"])
def test_a_file_without_rates_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(SetupError, match="cannot be read"):
        load_rates(tmp_path / "r.json", "abc", "audit")


def test_rates_of_another_text_of_that_name_or_another_kind_of_scan_are_refused(tmp_path):
    path = write_rates(tmp_path / "r.json", policy_sha256={"audit": "text"}, scan="cascade")
    assert load_rates(path, "abc", "audit", "text", "cascade")
    with pytest.raises(SetupError, match="thresholds may differ"):
        load_rates(path, "abc", "audit", "another text", "cascade")
    with pytest.raises(SetupError, match="of the kind 'cascade', this one is 'default'"):
        load_rates(path, "abc", "audit", "text")


HUGE_COUNTS = {"audit": {"minimal-attire": {"tp": 10**400, "fn": 1, "tn": 1, "fp": 1}}}


@pytest.mark.parametrize("policies", [5, ["audit"], "audit", None, HUGE_COUNTS])
def test_rates_of_a_wrong_kind_are_refused(tmp_path, policies):
    with pytest.raises(SetupError):
        load_rates(write_rates(tmp_path / "r.json", policies=policies), "abc", "audit")


def test_what_is_not_corrected_has_a_reason():
    assert "fewer are flagged" in correct(2, 10_000, ErrorCounts(900, 100, 950, 50))
    assert "more are flagged" in correct(20, 20, ErrorCounts(50, 50, 95, 5))
    assert "chance" in correct(5, 10, ErrorCounts(50, 50, 50, 50))
    assert correct(200, 10_000, ErrorCounts(900, 100, 990, 10)) == corrected_share(200, 10_000, ErrorCounts(900, 100, 990, 10))


@pytest.mark.parametrize(("people", "minors"), [(0.1, 0.5), (0.3, 0.9), (0.3, 0.1)])
def test_a_share_of_a_share_is_as_unsure_as_both(people, minors):
    random, held = np.random.default_rng(3), 0
    for _ in range(ROUNDS):
        seen = int(random.binomial(300, people))
        found = raw_share(int(random.binomial(seen, minors)), seen).of(raw_share(seen, 300))
        held += found.low <= people * minors <= found.high
    assert 0.935 <= held / ROUNDS <= 0.985  # Wilson's own, of which it is made, holds 0.93 to 0.97 of so few
    assert raw_share(0, 10).of(raw_share(5, 10)).value == 0


def test_a_difference_of_shares_that_one_classifier_counted_holds_as_often_as_it_promises():
    random, labelled, total, held, narrower = np.random.default_rng(5), 300, 20_000, 0, 0
    for _ in range(ROUNDS):
        tp, fp = int(random.binomial(labelled, 0.9)), int(random.binomial(labelled, 0.05))
        errors = ErrorCounts(tp, labelled - tp, labelled - fp, fp)
        first, second = (int(random.binomial(total, share * 0.9 + (1 - share) * 0.05)) for share in (0.03, 0.02))
        found = corrected_difference(raw_share(first, total), raw_share(second, total), errors)
        held += found.low <= 0.01 <= found.high
        apart = [corrected_share(count, total, errors) for count in (first, second)]
        narrower += None in apart or found.high - found.low < (lambda one: one.high - one.low)(difference(*apart))
    assert 0.935 <= held / ROUNDS <= 0.98 and narrower > 0.99 * ROUNDS


def test_a_difference_of_nothing_is_nothing():
    same = Share(0.1, 0.08, 0.12)
    assert corrected_difference(same, same, ErrorCounts(90, 10, 95, 5)).value == 0
