"""Labels and the weights over them that a manifest value teaches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsafety.spec import ModelSpec, from_json, to_json
from training.heads import AGE, ATTIRE, HEADS, OLDEST, age_distribution, age_target, attire_target, most_exposed

MANIFEST_ATTIRE = ("", "not_minimal", *ATTIRE.labels)


def labels(weights, head=ATTIRE):
    return {label for label, weight in zip(head.labels, weights, strict=True) if weight}


def test_attire_is_ordered_from_least_to_most():
    assert ATTIRE.labels == ("no_person", "clothed", "revealing", "minimal")


def test_every_line_that_the_law_draws_is_an_edge():
    assert {12.0, 15.0, 18.0, 21.0, 25.0} <= set(AGE.edges)


def test_heads_travel_in_a_spec():
    spec = ModelSpec("x", "1", 224, HEADS)
    assert from_json(to_json(spec)).heads == HEADS


def test_an_attire_teaches_its_set_of_labels():
    assert labels(attire_target("revealing")) == {"revealing"}
    assert labels(attire_target("not_minimal")) == {"no_person", "clothed", "revealing"}
    assert labels(attire_target("")) == set(ATTIRE.labels)


def test_a_range_of_ages_teaches_the_bins_it_touches():
    minor = labels(age_target(0, 17), AGE)
    assert "17" in minor and "18" not in minor
    adult = labels(age_target(18, OLDEST), AGE)
    assert "18" in adult and "17" not in adult and minor | adult == set(AGE.labels)


@given(st.floats(0, 150))
def test_an_exact_age_teaches_a_distribution_around_it(age):
    weights = age_distribution(age)
    assert weights.sum() == pytest.approx(1, abs=1e-5) and (weights >= 0).all()
    middles = np.add(AGE.edges[:-1], AGE.edges[1:]) / 2
    assert weights @ middles == pytest.approx(min(age, OLDEST), abs=10)  # half the widest bin, and a little


def test_an_exact_age_is_likeliest_in_its_own_year():
    for age in range(14, 28):
        assert AGE.labels[int(age_distribution(age).argmax())] == str(age)


@given(st.sampled_from(MANIFEST_ATTIRE), st.sampled_from(MANIFEST_ATTIRE))
def test_a_joint_picture_is_as_exposed_as_its_most_exposed_part(first, second):
    joined = labels(most_exposed(attire_target(first), attire_target(second)))
    order = ATTIRE.labels.index
    expected = {max(one, other, key=order) for one in labels(attire_target(first)) for other in labels(attire_target(second))}
    assert joined == expected
