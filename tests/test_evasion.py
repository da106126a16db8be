"""The black-box search of training.evasion, on the toy model."""

import numpy as np
import pytest

from training.evasion import search

RED = (255, 0, 0)


def flat(colour):
    return np.full((32, 32, 3), colour, np.uint8)


def test_the_search_lowers_a_score_that_small_changes_can_lower(scanner):
    edge = flat((135, 0, 0))
    (start,) = (one.scores[0].named["minimal_attire"] for one in scanner.score([edge]))
    (lowest,) = search(scanner, [edge], "minimal_attire", start, 16, 50)
    assert lowest < start


def test_pictures_that_are_not_flagged_are_left_out_and_strong_ones_stay_flagged(scanner):
    assert search(scanner, [flat(RED), flat((0, 255, 0))], "minimal_attire", 0.5, 4, 30) == pytest.approx([1], abs=0.01)


def test_no_channel_changes_by_more_than_is_allowed(scanner, monkeypatch):
    changes, score = [], scanner.score

    def watched(pictures):
        changes.extend(int(np.abs(picture.astype(int) - (135, 3, 250)).max()) for picture in pictures)
        return score(pictures)

    monkeypatch.setattr(scanner, "score", watched)
    search(scanner, [flat((135, 3, 250))], "minor", 0.01, 8, 40)
    assert max(changes) == 8
