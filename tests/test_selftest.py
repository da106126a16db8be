"""The self-test passes on what is whole and names what is not."""

import dataclasses
import shutil

import numpy as np
import pytest
from onnx import helper, numpy_helper

from imgsafety import Scanner, SetupError
from imgsafety.cli import main
from imgsafety.policy import parse_policy
from imgsafety.selftest import draw_frames, run_selftest
from tests.toy import POLICY, SPEC, toy_model, write_toy_model
from training.onnx_file import join_looks, write_model

ALWAYS = 'name = "odd"\nmodel = "toy 1"\n[[rules]]\nname = "{}"\nverdict = "block"\nwhen = {{ minor = 0.3 }}\n{}'


def steps(scanner):
    report = run_selftest(scanner.session, scanner.policy, scanner.check, scanner.check_edit)
    return {step.name: step for step in report.steps}


def test_a_whole_scanner_passes_every_step(scanner):
    report = scanner.selftest()
    assert report.passed and report.failures == ()
    assert [step.name for step in report.steps][:4] == ["model", "scores", "deterministic", "batch"]


def test_the_report_is_frozen(scanner):
    with pytest.raises(dataclasses.FrozenInstanceError):
        scanner.selftest().steps = ()


def test_a_report_without_steps_has_not_passed(scanner):
    assert not dataclasses.replace(scanner.selftest(), steps=()).passed


def test_the_drawn_frames_are_the_same_every_time():
    first, second = draw_frames(), draw_frames()
    assert [frame.tobytes() for frame in first.values()] == [frame.tobytes() for frame in second.values()]


def test_a_model_that_answers_nan_fails(tmp_path, toy_policy):
    damaged = Scanner(write_toy_model(tmp_path / "nan.onnx", factor=float("nan")), toy_policy)
    with pytest.raises(SetupError, match="scores: no verdict for a drawn frame"):
        damaged.selftest()


def test_a_first_look_that_answers_a_constant_fails(tmp_path):
    path = tmp_path / "joined.onnx"
    write_model(join_looks(toy_model(), toy_model(factor=0.0)), path)
    cascade = parse_policy(POLICY + "[cascade]\nexposed = 0.2\nminimal_attire = 0.2\n")
    with pytest.raises(SetupError, match="first look: 7 frames of 16 pixels"):
        Scanner(path, cascade, cascade=True).selftest()
    assert Scanner(path, parse_policy(POLICY)).selftest().passed  # nobody would take that look


def test_a_model_that_answers_a_constant_fails(tmp_path, toy_policy):
    collapsed = Scanner(write_toy_model(tmp_path / "flat.onnx", factor=0.0), toy_policy)
    assert "same scores" in steps(collapsed)["scores"].detail
    assert not steps(collapsed)["scores"].passed


def test_a_model_file_that_changed_under_a_running_scanner_fails(tmp_path, toy_path, toy_policy):
    path = shutil.copy(toy_path, tmp_path / "model.onnx")
    running = Scanner(path, toy_policy)
    write_toy_model(tmp_path / "model.onnx", factor=2.0)
    assert "no longer the file" in steps(running)["model"].detail


def test_a_model_file_that_is_gone_fails(tmp_path, toy_path, toy_policy):
    path = shutil.copy(toy_path, tmp_path / "model.onnx")
    running = Scanner(path, toy_policy)
    (tmp_path / "model.onnx").unlink()
    assert not steps(running)["model"].passed


def test_a_model_whose_batch_differs_from_single_pictures_fails(tmp_path, toy_policy):
    model = toy_model(SPEC)
    scaled = next(node for node in model.graph.node if node.output[0] == "unit")
    scaled.output[0] = "alone"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "rows"))
    model.graph.node.insert(2, helper.make_node("ReduceMean", ["alone", "rows"], ["others"]))
    model.graph.node.insert(3, helper.make_node("Add", ["alone", "others"], ["unit"]))
    (tmp_path / "mixing.onnx").write_bytes(model.SerializeToString())
    assert not steps(Scanner(tmp_path / "mixing.onnx", toy_policy))["batch"].passed


def test_a_rule_that_can_never_fire_fails(toy_path):
    never = parse_policy(ALWAYS.format("never", "before_below = { minor = 0.0 }"))
    assert "'never' does not fire" in steps(Scanner(toy_path, never))["policy"].detail


def test_every_shipped_rule_is_tried(scanner):
    assert f"each of {len(scanner.policy.rules)} rules fires" in steps(scanner)["policy"].detail


def test_unreadable_bytes_and_half_an_edit_are_never_allowed(scanner):
    found = steps(scanner)
    assert found["unreadable"].detail.endswith("undecided")
    assert found["edit"].detail.endswith("undecided, undecided")


def test_a_scanner_that_cannot_judge_the_frames_fails(toy_path, toy_policy):
    blind = Scanner(toy_path, toy_policy, max_pixels=1)
    assert {name for name, step in steps(blind).items() if not step.passed} >= {"scores", "edit"}


def test_the_command_lists_the_steps_and_exits_0(toy_path, toy_policy_path, capsys):
    assert main(["selftest", "--model", str(toy_path), "--policy", str(toy_policy_path)]) == 0
    assert capsys.readouterr().out.count("ok ") == 8


def test_the_command_exits_2_when_a_step_fails(tmp_path, toy_policy_path, capsys):
    path = write_toy_model(tmp_path / "nan.onnx", factor=float("nan"))
    assert main(["selftest", "--model", str(path), "--policy", str(toy_policy_path)]) == 2
    assert "FAILED  scores" in capsys.readouterr().out


def test_the_command_exits_2_when_the_checksum_does_not_fit(tmp_path, toy_policy_path, capsys):
    path = write_toy_model(tmp_path / "altered.onnx")
    path.write_bytes(toy_model(SPEC, 2.0).SerializeToString())
    assert main(["selftest", "--model", str(path), "--policy", str(toy_policy_path)]) == 2
    assert "SHA-256" in capsys.readouterr().err
