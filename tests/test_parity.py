"""The exported file says what the network says, and says it for every kind of item."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from imgsafety import Policy, Scanner
from imgsafety.policy import Rule
from imgsafety.session import MODEL_FILE, Session
from imgsafety.spec import ModelSpec

GOLDEN = Path(__file__).parent / "golden"
STILL = [GOLDEN / name for name in ("rgb.png", "rgb_bmp.bmp", "grey_jpeg.jpg", "palette.png", "cmyk.jpg", "exif6_png.png")]
SIDE, TOLERANCE = 64, 1e-4


def make_network(**options):
    """A network with batch norms that are not the identity."""
    import torch

    from training.model import build

    network = build("mobilenet_v2", None, 0.0, pretrained=False, **options)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    for layer in network.evidence.values():
        torch.nn.init.normal_(layer.weight, std=0.5)
    return network


@pytest.fixture(scope="module", params=[False, True], ids=["one-network", "another-for-first-looks"])
def exported(tmp_path_factory, request):
    """The network for each side, and the file made from them."""
    torch = pytest.importorskip("torch", reason="the network needs torch")
    from training.export import export
    from training.heads import HEADS

    torch.manual_seed(0)
    network = make_network(own_layers=3, last_layers={"attire": 18}, sharpness={"attire": 2.0})
    first = make_network(own_layers=8, last_layers={"age": 14}) if request.param else None
    path = tmp_path_factory.mktemp("export") / "small.onnx"
    assert export(network, ModelSpec("small", "1", SIDE, HEADS, SIDE // 2), path, first) < TOLERANCE
    return {SIDE: network, SIDE // 2: first or network}, Session(path)


@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_file_answers_what_the_network_answers(exported, batch, side):
    import torch

    networks, session = exported
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    with torch.no_grad():
        attire, age = (answer.numpy() for answer in networks[side].answer(torch.from_numpy(pixels))[:2])
    scores = session.run(pixels)
    assert np.ptp(attire, axis=1).min() > 0.01  # a network that says nothing would agree with anything
    assert np.abs(attire - [list(one.heads["attire"].values()) for one in scores]).max() < TOLERANCE
    assert np.abs(age - [list(one.heads["age"].values()) for one in scores]).max() < TOLERANCE


def test_a_file_of_a_network_without_a_finder_promises_none(exported):
    assert not exported[1].finds_people


def test_the_maps_of_the_file_add_up_to_its_scores(exported):
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    for scores in exported[1].run(pixels, maps=True):
        for name, plane in scores.maps.items():
            assert np.sum(plane) == pytest.approx(scores.named[name], abs=TOLERANCE)


@pytest.fixture(scope="module")
def shipped():
    """A scanner on the model in weights/, whichever it is."""
    path = Path(__file__).parents[1] / "weights" / MODEL_FILE
    if not path.is_file():
        pytest.skip("weights/ holds no model")
    return Scanner(path, Policy("scores only", Session(path).spec.identity, (Rule("any", "label", {"minor": 0.0}),)))


def forms(path):
    """One picture as path, bytes, file, PIL image, byte array and float arrays."""
    with Image.open(path) as opened:
        image = opened.copy()
    array, data = np.asarray(ImageOps.exif_transpose(image).convert("RGB")), path.read_bytes()
    return [path, str(path), data, io.BytesIO(data), image, array, array / 255, array.astype(np.float32) / 255]


def scores_of(result):
    assert result.error is None
    return np.array([p for labels in result.scores.values() for p in labels.values()])


@pytest.mark.parametrize("path", STILL, ids=lambda path: path.name)
def test_every_form_of_a_golden_picture_has_the_same_scores(shipped, path):
    scores = [scores_of(result) for result in shipped.scan(forms(path))]
    assert np.abs(np.array(scores) - scores[0]).max() < 1e-5


@pytest.mark.parametrize("name", ["rgb.png", "exif6_png.png"])
def test_a_tensor_of_a_golden_picture_has_the_same_scores(shipped, name):
    torch = pytest.importorskip("torch", reason="tensors need torch")
    planes = torch.from_numpy(np.load((GOLDEN / name).with_suffix(".npy"))[0]).permute(2, 0, 1)
    expected = scores_of(shipped.check(GOLDEN / name))
    for tensor in (planes.float() / 255, planes, planes[None].float() / 255):
        assert np.abs(scores_of(shipped.check(tensor)) - expected).max() < 1e-5


def test_the_shipped_file_promises_what_policies_name(shipped):
    named = shipped.session.run(np.zeros((1, shipped.session.spec.size, shipped.session.spec.size, 3), np.uint8))[0].named
    assert {"minimal_attire", "exposed", "minor", "under_25"} <= set(named)


def test_the_shipped_policies_fit_the_shipped_model(shipped):
    from imgsafety.policy import shipped_policies

    for name in shipped_policies():
        assert Scanner(shipped.session.path, name).policy.name == name
