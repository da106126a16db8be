"""Pixels to scores on a real runtime; what is refused."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from imgsafety import ModelError, SetupError
from imgsafety.session import PEOPLE_MAP, PROVIDERS, Session, score_names
from imgsafety.spec import METADATA_KEY, Head
from tests.toy import AGE, ATTIRE, SIZE, SPEC, add_people, toy_model, write_toy_model

NAN, RED, GREEN, BLUE = float("nan"), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def session(toy_path):
    return Session(toy_path)


def pixels(*colours):
    return np.stack([np.full((SIZE, SIZE, 3), colour, np.uint8) for colour in colours])


def test_one_opinion_per_row_in_order(session):
    scores = session.run(pixels(RED, GREEN, BLUE))
    assert [max(one.heads["attire"], key=one.heads["attire"].get) for one in scores] == ["minimal", "clothed", "no_person"]


def test_every_head_is_a_distribution(session):
    for scores in session.run(pixels(RED, GREEN, BLUE, (90, 90, 90))):
        assert [sum(labels.values()) for labels in scores.heads.values()] == pytest.approx([1, 1])
        assert all(0 <= value <= 1 for value in scores.named.values())


def test_named_scores_are_sums_of_labels(session):
    (scores,) = session.run(pixels((200, 60, 90)))
    attire, age = scores.heads["attire"], scores.heads["age"]
    assert scores.named["minimal_attire"] == attire["minimal"]
    assert scores.named["exposed"] == pytest.approx(attire["minimal"] + attire["revealing"])
    assert scores.named["minor"] == scores.named["age.under_18"] == pytest.approx(age["0-11"] + age["12-17"])
    assert scores.named["under_25"] == pytest.approx(1 - age["25+"], abs=1e-6)


def test_a_policy_may_name_exactly_what_a_session_gives(session):
    (scores,) = session.run(pixels(RED))
    assert score_names(SPEC) == set(scores.named)


def test_the_age_lies_inside_its_interval(session):
    frame = pixels(GREEN)
    frame[0, :, 16:] = (0, 0, 140)
    (scores,) = session.run(frame)
    assert 0 <= scores.age_low <= scores.age <= scores.age_high <= 100


def test_nobody_has_no_age(session):
    (scores,) = session.run(pixels((0, 0, 0)))
    assert scores.age is scores.age_low is scores.age_high is None


def test_the_rest_of_a_batch_changes_no_score(session):
    together = session.run(pixels(RED, GREEN, BLUE, RED))
    alone = [session.run(pixels(colour))[0] for colour in (RED, GREEN, BLUE, RED)]
    for first, second in zip(together, alone, strict=True):
        assert first.named == pytest.approx(second.named, abs=1e-6)


def test_maps_add_up_to_their_score_and_point_at_the_place(session):
    frame = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    frame[0, :8, 24:] = RED
    (scores,) = session.run(frame, maps=True)
    plane = np.array(scores.maps["minimal_attire"])
    assert plane.sum() == pytest.approx(scores.named["minimal_attire"], abs=1e-5)
    assert np.unravel_index(plane.argmax(), plane.shape) == (0, 3)


@pytest.mark.parametrize("shape", [(SIZE, SIZE, 3), (1, SIZE, SIZE, 4), (1, 8, 8, 3), (1, 3, SIZE, SIZE)])
def test_pixels_of_another_shape_are_refused(session, shape):
    with pytest.raises(ModelError, match="not uint8"):
        session.run(np.zeros(shape, np.uint8))


def test_pixels_of_another_type_are_refused(session):
    with pytest.raises(ModelError, match="float32"):
        session.run(np.zeros((1, SIZE, SIZE, 3), np.float32))


def test_answers_that_are_not_finite_are_refused(tmp_path):
    damaged = Session(write_toy_model(tmp_path / "nan.onnx", factor=NAN))
    with pytest.raises(ModelError, match="finite probability distribution"):
        damaged.run(pixels(RED))


def test_chances_that_are_not_finite_are_refused(tmp_path):
    damaged = Session(write_toy_model(tmp_path / "nan.onnx", people=NAN))
    assert damaged.run(pixels(RED))[0].people is None  # nobody asked
    with pytest.raises(ModelError, match="not finite chances"):
        damaged.run(pixels(RED), maps=["attire"])


@pytest.mark.parametrize(("factor", "accepted"), [(1.0001, True), (1.1, False)])
def test_chances_may_be_rounded_and_no_more(tmp_path, factor, accepted):
    # onnxruntime's own sigmoid answers 1.0000001 now and then.
    model = toy_model()
    add_people(model)
    last = next(node for node in model.graph.node if PEOPLE_MAP in node.output)
    last.output[0] = "rounded"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["rounded", "factor"], [PEOPLE_MAP]))
    session = Session(write(model, tmp_path / "toy.onnx"))
    if accepted:
        assert np.max(session.run(pixels(RED), maps=True)[0].people) == pytest.approx(factor, abs=1e-4)
    else:
        with pytest.raises(ModelError, match="not finite chances"):
            session.run(pixels(RED), maps=True)


def write(model, path, **metadata):
    if metadata:
        onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_answers_that_do_not_sum_to_one_are_refused(tmp_path):
    model = toy_model()
    softmax = next(node for node in model.graph.node if "attire" in node.output)
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]
    with pytest.raises(ModelError, match="finite probability distribution"):
        Session(write(model, tmp_path / "sigmoid.onnx")).run(pixels(GREEN))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.onnx cannot be read"):
        Session(tmp_path / "nowhere.onnx")


def test_an_altered_file_is_refused(tmp_path):
    path = write_toy_model(tmp_path / "toy.onnx")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="the file was altered"):
        Session(path)


def test_an_empty_checksum_is_refused(tmp_path):
    path = write_toy_model(tmp_path / "toy.onnx")
    (tmp_path / "toy.onnx.sha256").write_text("")
    with pytest.raises(ModelError, match="the file was altered"):
        Session(path)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="not a model that onnxruntime can load"):
        Session(tmp_path / "text.onnx")


def test_a_model_without_a_spec_is_refused(tmp_path):
    model = toy_model()
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="no imgsafety spec inside"):
        Session(write(model, tmp_path / "bare.onnx"))


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, heads=(ATTIRE, AGE, Head("mood", "classes", ("calm", "wild")))),
        replace(SPEC, heads=(AGE, replace(ATTIRE, labels=ATTIRE.labels[1:]))),
    ],
    ids=["extra head", "fewer labels"],
)
def test_a_spec_that_the_graph_does_not_keep_is_refused(tmp_path, spec):
    with pytest.raises(ModelError):
        Session(write_toy_model(tmp_path / "liar.onnx", spec))


def test_a_size_that_the_graph_does_not_take_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not uint8"):
        Session(write(toy_model(replace(SPEC, size=64), sides=(32, 32)), tmp_path / "liar.onnx"))


def test_a_first_look_that_the_graph_does_not_take_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"or \(batch, 16, 16, 3\)"):
        Session(write(toy_model(sides=(SIZE, SIZE)), tmp_path / "liar.onnx"))


def test_only_the_sides_of_the_spec_are_judged(session):
    for side in (SPEC.size, SPEC.first_size):
        assert len(session.run(np.zeros((1, side, side, 3), np.uint8))) == 1
    with pytest.raises(ModelError, match="not uint8"):
        session.run(np.zeros((1, SIZE // 2 + 1, SIZE // 2 + 1, 3), np.uint8))


def test_a_damaged_spec_is_refused(tmp_path):
    with pytest.raises(ModelError, match="spec cannot be read"):
        Session(write(toy_model(), tmp_path / "damaged.onnx", **{METADATA_KEY: "{}"}))


def test_an_unknown_provider_is_a_setup_error(toy_path):
    with pytest.raises(SetupError, match="not one of cpu, cuda, tensorrt"):
        Session(toy_path, "abacus")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_an_absent_provider_says_what_to_install(toy_path, provider):
    if PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip("it is here")
    with pytest.raises(SetupError, match="pip install onnxruntime-gpu"):
        Session(toy_path, provider)
