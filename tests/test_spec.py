"""What a model promises, as text and back."""

import json
from dataclasses import FrozenInstanceError, asdict

import pytest

from imgsafety import ModelError
from imgsafety.spec import FORMAT, Head, ModelSpec, from_json, to_json
from tests.toy import AGE, ATTIRE, SPEC


def changed(**fields):
    return json.dumps({**json.loads(to_json(SPEC)), **fields})


def test_a_spec_survives_being_written_and_read():
    spec = ModelSpec("x", "1.2", 224, (Head("attire", "classes", ("a", "b"), temperature=1.3), AGE), 96)
    assert from_json(to_json(spec)) == spec


def test_a_spec_that_names_no_first_look_has_none():
    fields = json.loads(to_json(SPEC))
    del fields["first_size"]
    assert from_json(json.dumps(fields)).first_size == 0


def test_identity_is_name_and_version():
    assert SPEC.identity == "toy 1"


def test_a_spec_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SPEC.size = 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        changed(surprise=1),
        changed(heads=[]),
        changed(heads=None),
        changed(size=None),
        changed(size=0),
        changed(size=10**9),
        changed(first_size=SPEC.size),
        changed(first_size=8),
        changed(first_size="small"),
        changed(heads=[asdict(ATTIRE), asdict(ATTIRE)]),
        changed(heads=[{"name": "attire"}]),
        changed(heads=[{**asdict(ATTIRE), "labels": ["one"]}]),
        changed(heads=[{**asdict(ATTIRE), "labels": ["one", "one"]}]),
        changed(heads=[{**asdict(ATTIRE), "kind": "colours"}]),
        changed(heads=[{**asdict(ATTIRE), "edges": [0, 1]}]),
        changed(heads=[{**asdict(AGE), "edges": [0, 12, 18, 25]}]),
        changed(heads=[{**asdict(AGE), "edges": [0, 18, 12, 25, 100]}]),
        changed(heads=[{**asdict(AGE), "temperature": "warm"}]),
    ],
)
def test_a_malformed_spec_is_a_model_error(text):
    with pytest.raises(ModelError):
        from_json(text)


def test_a_newer_format_says_what_to_do():
    with pytest.raises(ModelError, match="update imgsafety"):
        from_json(changed(format=FORMAT + 1))
