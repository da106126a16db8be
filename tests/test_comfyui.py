"""The node folder against ComfyUI's interface: loaded as ComfyUI loads it, called as ComfyUI calls it."""

import importlib.util
import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest

from imgsafety import FlaggedError, SetupError
from tests.toy import write_toy_model

torch = pytest.importorskip("torch", reason="ComfyUI hands over torch tensors; torch is not installed")

FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui"
COLOURS = {"minimal": (1.0, 0.0, 0.0), "clothed": (0.0, 1.0, 0.0), "broken": (float("nan"),) * 3, "overshot": (-0.2, 1.2, -0.2)}


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The module, from a copy of the folder under `custom_nodes`, imported by its place as ComfyUI does."""
    place = shutil.copytree(FOLDER, tmp_path / "custom_nodes" / "imgsafety-check")
    spec = importlib.util.spec_from_file_location("custom_nodes_imgsafety_check", place / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(nodes, toy_path, toy_policy_path):
    """Call the node by the names that it declares."""
    (node,) = nodes.NODE_CLASS_MAPPINGS.values()
    made = node()

    def called(images, on_flagged="blank", before=None, **others):
        settings = {"model": str(toy_path), "policy_file": str(toy_policy_path), "policy": "default", **others}
        optional = {} if before is None else {"before": before}
        return getattr(made, node.FUNCTION)(images=images, on_flagged=on_flagged, **optional, **settings)

    return called


def batch(*kinds):
    return torch.tensor([COLOURS[kind] for kind in kinds])[:, None, None, :].repeat(1, 24, 32, 1)


def test_the_folder_declares_nodes_as_comfyui_expects(nodes):
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert node.RETURN_TYPES == ("IMAGE", "STRING", "STRING") and len(node.RETURN_NAMES) == 3 and node.CATEGORY


def test_every_input_is_an_argument_of_the_function_and_every_choice_has_its_default(nodes):
    (node,) = nodes.NODE_CLASS_MAPPINGS.values()
    inputs = node.INPUT_TYPES()
    declared = {**inputs["required"], **inputs["optional"]}
    assert set(declared) == set(inspect.signature(getattr(node, node.FUNCTION)).parameters) - {"self"}
    assert all(options[0]["default"] in kind for kind, *options in declared.values() if isinstance(kind, list))


def test_a_flagged_picture_is_blanked_and_the_others_are_untouched(check):
    images = batch("clothed", "minimal")
    kept, verdict, _ = check(images)
    assert verdict == "review" and not kept[1].any()
    assert torch.equal(kept[0], images[0]) and torch.equal(images, batch("clothed", "minimal"))


def test_harmless_pictures_pass_as_they_are(check):
    kept, verdict, _ = check(batch("clothed", "clothed"))
    assert verdict == "allow" and torch.equal(kept, batch("clothed", "clothed"))


def test_the_json_has_each_result_with_its_reasons(check):
    results = json.loads(check(batch("clothed", "minimal"))[2])
    assert [[reason["rule"] for reason in result["reasons"]] for result in results] == [[], ["minimal-attire"]]


def test_a_marked_picture_passes_with_its_verdict(check):
    kept, verdict, _ = check(batch("minimal"), on_flagged="mark")
    assert verdict == "review" and torch.equal(kept, batch("minimal"))


def test_raise_stops_the_workflow(check):
    with pytest.raises(FlaggedError, match="1 of 2 pictures are not allowed"):
        check(batch("minimal", "clothed"), on_flagged="raise")


@pytest.mark.parametrize(("before", "verdict"), [("clothed", "block"), ("minimal", "review")])
def test_an_edit_that_undresses_is_blocked(check, before, verdict):
    assert check(batch("minimal"), before=batch(before))[1] == verdict


def test_several_pictures_made_from_one_are_each_an_edit_of_it(check):
    results = json.loads(check(batch("minimal", "clothed"), before=batch("clothed"))[2])
    assert [result["verdict"] for result in results] == ["block", "allow"]


def test_a_broken_picture_is_undecided_and_blanked(check):
    kept, verdict, _ = check(batch("broken", "overshot"))
    assert verdict == "undecided" and not kept[0].any() and torch.equal(kept[1], batch("overshot")[0])


def test_no_picture_is_no_verdict(check):
    assert check(torch.zeros(0, 24, 32, 3))[1:] == ("undecided", "[]")


def test_a_damaged_model_stops_the_workflow(check, tmp_path):
    with pytest.raises(SetupError, match="self-test failed"):
        check(batch("clothed"), model=str(write_toy_model(tmp_path / "nan.onnx", factor=float("nan"))))


def test_one_picture_without_a_batch_stops_the_workflow(check):
    with pytest.raises(SetupError, match="dimensions"):
        check(batch("minimal")[0])
    with pytest.raises(SetupError, match="dimensions"):
        check(batch("minimal"), before=batch("clothed")[0])


def test_pictures_on_which_a_gradient_hangs_are_judged(check):
    images = batch("minimal", "clothed").requires_grad_()
    kept, verdict, _ = check(images)
    assert verdict == "review" and not kept.requires_grad and torch.equal(kept[1], images[1].detach())
