"""Bounded fuzzing, the same in every run; `run.py` goes on for longer."""

import json
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import MANIFEST, fuzz_decode, fuzz_manifest, fuzz_policy, fuzz_run, fuzz_spec, make_run
from tests.hostile import ANIMATED, STILL, animation, drawing, encoded
from tests.toy import POLICY, SPEC

bounded = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FILES = [*(encoded(drawing(), name) for name in STILL), *(animation(name, [(255, 0, 0), (0, 255, 0)]) for name in ANIMATED)]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def damaged(original, at, damage):
    start = at % (len(original) + 1)
    return original[:start] + damage + original[start + len(damage) :]


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damaged files
@bounded
@given(st.sampled_from(FILES), st.integers(0, 100_000), st.binary(min_size=1, max_size=40))
def test_damaged_pictures(original, at, damage):
    fuzz_decode(damaged(original, at, damage))


@bounded
@given(st.integers(0, 10_000), st.binary(max_size=20) | st.sampled_from([b"nan", b"inf", b"[[", b"=", b'"']))
def test_damaged_policies(at, damage):
    fuzz_policy(damaged(POLICY.encode(), at, damage))


@bounded
@given(st.sampled_from(["format", "name", "version", "size", "heads"]), VALUES)
def test_specs_with_another_value(field, value):
    fuzz_spec(json.dumps({"format": 1, **asdict(SPEC), field: value}).encode())


@bounded
@given(st.sampled_from(["name", "kind", "labels", "edges", "temperature"]), VALUES)
def test_specs_with_another_value_in_a_head(field, value):
    fields = {"format": 1, **asdict(SPEC)}
    fields["heads"] = [{**fields["heads"][0], field: value}, fields["heads"][1]]
    fuzz_spec(json.dumps(fields).encode())


@bounded
@given(st.integers(0, 300), st.binary(max_size=20) | st.sampled_from([b'"', b",", b"\n", b"nan", b"minimal", b"-1", b"\0"]))
def test_damaged_manifests(at, damage):
    fuzz_manifest(damaged(MANIFEST, at, damage))


@bounded
@given(st.integers(0, 100_000), st.binary(min_size=1, max_size=40))
def test_damaged_runs(at, damage):
    fuzz_run(damaged(make_run(), at, damage))


def test_a_run_whose_damage_sqlite_quotes():
    fuzz_run(make_run().replace(b"CREATE TABLE facts", b"CREATE T\x80BLE facts"))


def test_a_run_whose_damage_asks_sqlite_for_too_much_memory():
    before_a_record = make_run().index(b"indexsqlite_autoindex_facts_1") - 8  # the lengths of its columns
    fuzz_run(damaged(make_run(), before_a_record, b"\xff" * 8))


@pytest.mark.parametrize("text", [b"a=" + b"[" * 100_000, b"a=" + b"{b=" * 100_000, b"a=" + b"9" * 5000])
def test_policies_that_broke_the_parser(text):
    fuzz_policy(text)


@pytest.mark.parametrize("text", [b"[" * 100_000, json.dumps({"format": 1, **asdict(SPEC), "size": float("inf")}).encode()])
def test_specs_that_broke_the_parser(text):
    fuzz_spec(text)
