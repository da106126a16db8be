"""The figures are what their names say, on numbers small enough to check by hand."""

import numpy as np
import pytest

from training.measure import auroc, both_text, calibration_error, rate, recall_at


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    assert auroc(np.array([0.9, 0.4]), np.array([0.5, 0.1])) == pytest.approx(3 / 4)


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.5]), np.array([0.5])) == pytest.approx(0.5)


def test_recall_at_counts_positives_above_the_allowed_false_positives() -> None:
    negatives = np.linspace(0, 1, 101)
    assert recall_at(np.array([0.97, 0.94, 0.99]), negatives, 0.05).hits == 2


def test_rate_prints_share_interval_and_counts() -> None:
    assert str(rate(np.array([True, False, False, False]))) == "25.0% (4.6% to 69.9%; 1/4)"


def test_rate_of_nothing_is_none() -> None:
    assert str(rate(np.array([], dtype=bool))) == "none"


def test_pairs_are_as_uncertain_as_their_two_sides() -> None:
    first, second = np.array([True] * 8 + [False] * 2), np.array([True, False] * 5)
    assert both_text(first, second).startswith("40.0% (") and both_text(first, second).endswith("; 10 with each of 10)")
    assert both_text(first[:8], second[:0]) == "none"


def test_calibration_error_is_the_gap_between_score_and_frequency() -> None:
    scores = np.full(1000, 0.8)
    truth = np.arange(1000) % 2 == 0
    assert calibration_error(scores, truth, bins=1) == pytest.approx(0.3)
