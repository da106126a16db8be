"""`check_tensor` says of a tensor what `check` says of the PNG that it would be saved as.

Tolerance: none for tensors in [0, 1], and none for float32 in [-1, 1]. Half precisions are compared with the PNG of the
same numbers. A pipeline that halves and shifts in half precision before saving can move a pixel by one of 255
levels; the scores may then move by `HALF_TOLERANCE`.
"""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from imgsafety import Scanner, SetupError

HALF_TOLERANCE = 0.02
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def batch():
    """Four pictures in [0, 1]: noise over black, red, green and blue."""
    grounds = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float32)[:, :, None, None]
    return (grounds + 0.3 * torch.randn(4, 3, 72, 96, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def png(picture):
    pixels = (picture.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def scores(result):
    return np.array([p for labels in result.scores.values() for p in labels.values()])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_each_picture_is_judged_as_its_png(scanner, batch, dtype, device):
    tensor = batch.to(device, dtype)
    from_files = [scanner.check(png(picture)) for picture in tensor]
    results = scanner.check_tensor(tensor)
    assert [(result.verdict, result.scores) for result in results] == [(file.verdict, file.scores) for file in from_files]


@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no CUDA device, or no runtime for it",
)
def test_what_never_leaves_the_gpu_is_judged_as_its_png(batch, toy_path, toy_policy):
    scanner = Scanner(toy_path, toy_policy, provider="cuda")
    results = scanner.check_tensor(batch.cuda())
    for result, picture in zip(results, batch, strict=True):
        saved = scanner.check(png(picture))
        assert result.verdict == saved.verdict and np.abs(scores(result) - scores(saved)).max() < 1e-5


def test_the_batch_holds_different_verdicts(scanner, batch):
    assert {result.verdict for result in scanner.check_tensor(batch)} == {"allow", "review"}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_range_from_minus_one_is_judged_as_the_png_that_a_pipeline_saves(scanner, batch, dtype):
    tensor = (batch * 2 - 1).to(dtype)
    tolerance = 0 if dtype == torch.float32 else HALF_TOLERANCE
    for result, picture in zip(scanner.check_tensor(tensor, (-1, 1)), tensor * 0.5 + 0.5, strict=True):
        saved = scanner.check(png(picture))
        assert result.verdict == saved.verdict
        assert np.abs(scores(result) - scores(saved)).max() <= tolerance


def test_a_picture_with_nan_is_undecided_and_the_others_are_judged(scanner, batch):
    whole = scanner.check_tensor(batch)
    batch[1, 0, 5, 5] = float("nan")
    results = scanner.check_tensor(batch)
    assert results[1].verdict == "undecided" and "nan" in results[1].error
    assert [results[0], *results[2:]] == [whole[0], *whole[2:]]


@pytest.mark.parametrize(
    ("value", "value_range"), [(-0.5, (0, 1)), (1.5, (0, 1)), (255.0, (0, 1)), (1.2, (-1, 1)), (float("inf"), (-1, 1))]
)
def test_a_picture_outside_the_named_range_is_undecided(scanner, value, value_range):
    result = scanner.check_tensor(torch.full((1, 3, 8, 8), value), value_range)[0]
    assert result.verdict == "undecided" and "spans" in result.error


def test_four_channels_are_judged_over_white_and_black(scanner):
    # Fully transparent red: over white and over black nobody sees it.
    clear = torch.cat([torch.ones(1, 1, 8, 8), torch.zeros(1, 3, 8, 8)], dim=1)
    assert scanner.check_tensor(clear)[0].verdict == "allow"


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8, 3), (0, 3, 8, 8), (1, 16, 8, 8)])
def test_a_tensor_of_another_layout_is_refused(scanner, shape):
    with pytest.raises(SetupError, match="is not \\(batch"):
        scanner.check_tensor(torch.zeros(shape))


@pytest.mark.parametrize("tensor", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), np.zeros((1, 3, 8, 8), np.float32), "a.png"])
def test_what_is_no_float_tensor_is_refused(scanner, tensor):
    with pytest.raises(SetupError, match="not a float tensor"):
        scanner.check_tensor(tensor)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1, 3, 8, 8, device="meta"),
        lambda: torch.zeros(1, 3, 8, 8).to_sparse(),
        lambda: torch.nested.nested_tensor([torch.zeros(3, 8, 8)]),
        lambda: torch.nested.nested_tensor([torch.zeros(3, 8, 8)], layout=torch.jagged),
    ],
)
def test_a_tensor_without_numbers_for_every_pixel_is_refused(scanner, make):
    with pytest.raises(SetupError, match="does not hold the numbers"):
        scanner.check_tensor(make())


@pytest.mark.parametrize("value_range", [(0, 255), np.array([0, 1]), torch.tensor([-1, 1]), None])
def test_another_range_is_refused(scanner, batch, value_range):
    with pytest.raises(SetupError, match="value_range"):
        scanner.check_tensor(batch, value_range)


def test_the_tensor_is_left_as_it_was(scanner, batch):
    tensor = batch.clone().requires_grad_()
    scanner.check_tensor(tensor)
    assert torch.equal(tensor, batch) and tensor.grad is None
