"""The composition: order, laziness, isolation, animations, edits, and that nothing that fails is allowed."""

import io
import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from imgsafety import ModelError, PolicyError, Scanner, SetupError
from imgsafety.policy import parse_policy
from tests.toy import POLICY, toy_model, write_toy_model

KINDS = ("clothed", "nobody", "minimal", "child")
VERDICTS = {"clothed": "allow", "nobody": "allow", "minimal": "review", "child": "allow"}


def encoded(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def animated(images):
    for index, image in enumerate(images):  # writers join equal frames
        image.putpixel((index % image.width, 0), (90, 90, 90))
    return encoded(images[0], "GIF", save_all=True, append_images=images[1:], duration=50)


def beside(first, second):
    """Both pictures in one: the toy model sees both."""
    joint = Image.new("RGB", (first.width + second.width, first.height))
    joint.paste(first, (0, 0))
    joint.paste(second, (first.width, 0))
    return joint


def test_one_result_per_item_in_order(scanner, draw):
    kinds = [KINDS[index % 4] for index in range(50)]
    results = list(scanner.scan(draw(kind, (16 + index, 90 - index)) for index, kind in enumerate(kinds)))
    assert [result.verdict for result in results] == [VERDICTS[kind] for kind in kinds]


def test_paths_are_kept_as_given(scanner, folder):
    paths = [str(folder / "a.png"), folder / "deep" / "b.jpg", str(folder / "nowhere.png")]
    assert [result.path for result in scanner.scan(paths)] == [str(path) for path in paths]


def test_no_items_give_no_results(scanner):
    assert list(scanner.scan([])) == []


def test_endless_items_are_taken_as_results_are_read(scanner, draw):
    image, taken = draw("clothed"), []
    results = scanner.scan(taken.append(number) or image for number in itertools.count())
    ahead = []
    for read in range(1, 60):
        next(results)
        ahead.append(len(taken) - read)
    results.close()
    # Batches of four: two in flight for each of two workers, one more being handed out.
    assert max(ahead) < 4 * (2 * 2 + 1)


def test_a_scan_that_is_left_early_ends_its_threads(scanner, draw):
    before = threading.active_count()
    results = scanner.scan(draw("clothed") for _ in range(40))
    next(results)
    results.close()
    assert threading.active_count() <= before


def test_an_error_of_the_items_themselves_is_raised(scanner):
    def items():
        yield b"not a picture"
        raise ConnectionError("the listing broke off")

    with pytest.raises(ConnectionError):
        list(scanner.scan(items()))


def test_what_was_handed_in_before_an_error_has_its_results(scanner, draw):
    def items():
        for _ in range(30):
            yield draw("clothed")
        raise ConnectionError("the listing broke off")

    results, verdicts = scanner.scan(items()), []
    with pytest.raises(ConnectionError):
        while True:
            verdicts.append(next(results).verdict)
    assert verdicts == ["allow"] * 30


def test_whoever_leaves_a_scan_may_go_on_with_the_items(scanner, draw):
    items = (draw("clothed") for _ in range(100))
    results = scanner.scan(items)
    next(results)
    results.close()
    assert 0 < len(list(items)) < 100


def kinds_of_item(image, path):
    """The same picture in every form that needs no torch."""
    image.save(path)
    array = np.asarray(image)
    data = path.read_bytes()
    return [path, str(path), data, io.BytesIO(data), image, array, array / 255, array.astype(np.float32) / 255]


def test_every_kind_of_item_has_the_same_scores(scanner, draw, tmp_path):
    items = kinds_of_item(beside(draw("nobody"), draw("minimal")), tmp_path / "x.png")
    results = list(scanner.scan(items))
    assert {result.verdict for result in results} == {"review"}
    assert all(result.minimal_attire == pytest.approx(results[0].minimal_attire, abs=1e-6) for result in results)


def test_tensors_have_the_same_scores(scanner, draw):
    torch = pytest.importorskip("torch", reason="tensors need torch")
    image = beside(draw("nobody"), draw("minimal"))
    planes = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    expected = scanner.check(image).scores
    for tensor in (planes, planes.float() / 255, planes[None].float() / 255, (planes.double() / 255).requires_grad_()):
        assert scanner.check(tensor).scores == expected


def bad_items(draw, tmp_path):
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("hello")
    cut = encoded(draw("clothed"))[:60]
    files = [tmp_path / "zero.png", tmp_path / "text.png", tmp_path / "nowhere.png", tmp_path]
    return [b"", cut, *files, None, 7, np.zeros((2, 2, 9))]


def test_bad_items_are_undecided_and_spoil_no_others(scanner, draw, tmp_path):
    bad = bad_items(draw, tmp_path)
    results = list(scanner.scan(item for one in bad for item in (draw("minimal"), one)))
    assert [result.verdict for result in results] == ["review", "undecided"] * len(bad)
    assert all(result.error and result.flagged and not result.scores for result in results[1::2])


def test_check_never_raises_for_an_item(scanner, draw, tmp_path):
    for item in bad_items(draw, tmp_path):
        assert scanner.check(item).verdict == "undecided"


def fragile_model(path):
    """The toy model, but it answers NaN for an entirely black picture."""
    model = toy_model()
    node = onnx.helper.make_node
    scale = next(index for index, one in enumerate(model.graph.node) if "unit" in one.output)
    model.graph.node[scale].output[0] = "bright"
    axes = onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    model.graph.initializer.append(axes)
    added = [
        node("ReduceMax", ["bright", "axes"], ["most"], keepdims=1),
        node("Sub", ["most", "most"], ["zero"]),
        node("Div", ["zero", "most"], ["none"]),  # 0 / 0 for a black picture
        node("Add", ["bright", "none"], ["unit"]),
    ]
    for one in reversed(added):
        model.graph.node.insert(scale + 1, one)
    onnx.save(model, path)
    return path


def test_a_picture_that_the_model_fails_on_spoils_no_others(tmp_path, toy_policy, draw):
    scanner = Scanner(fragile_model(tmp_path / "fragile.onnx"), toy_policy, workers=2, batch_size=4)
    kinds = ["clothed", "nobody", "minimal"] * 4
    verdicts = [result.verdict for result in scanner.scan(map(draw, kinds))]
    assert verdicts == ["allow", "undecided", "review"] * 4


def test_a_damaged_model_allows_nothing(tmp_path, toy_policy, draw):
    scanner = Scanner(write_toy_model(tmp_path / "damaged.onnx", factor=float("nan")), toy_policy, workers=2)
    results = [*scanner.scan(map(draw, KINDS)), scanner.check(draw("clothed"))]
    results.append(scanner.check_edit(draw("clothed"), draw("nobody")))
    assert {result.verdict for result in results} == {"undecided"}


def test_batches_order_and_workers_change_no_score(toy_path, toy_policy):
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (int(random.integers(8, 99)), 40, 3)).astype(np.uint8) for _ in range(23)]
    settings = [{"workers": 1, "batch_size": 1}, {"workers": 1, "batch_size": 23}, {"workers": 3, "batch_size": 4}]
    runs = [list(Scanner(toy_path, toy_policy, **setting).scan(pictures)) for setting in settings]
    runs.append(list(Scanner(toy_path, toy_policy).scan(pictures[::-1]))[::-1])
    runs.append([Scanner(toy_path, toy_policy).check(picture) for picture in pictures])
    scores = np.array([[[*result.scores["attire"].values(), *result.scores["age"].values()] for result in run] for run in runs])
    assert np.ptp(scores, axis=0).max() < 1e-6


@pytest.mark.parametrize("worst", [0, 3, 6, 19])
def test_the_worst_frame_decides_and_is_named(scanner, draw, worst):
    frames = [draw("minimal" if index == worst else "clothed") for index in range(20)]
    result = Scanner(scanner.session.path, scanner.policy, frames=20).check(animated(frames))
    assert (result.verdict, result.frame) == ("review", worst)


def test_the_last_frame_counts_though_few_are_looked_at(scanner, draw):
    result = scanner.check(animated([*(draw("clothed") for _ in range(49)), draw("minimal")]))
    assert (result.verdict, result.frame) == ("review", 49)


def test_a_harmless_animation_is_allowed_and_a_still_picture_has_no_frame(scanner, draw):
    assert scanner.check(animated([draw("clothed"), draw("nobody")])).verdict == "allow"
    assert scanner.check(draw("minimal")).frame is None


def test_a_batch_given_as_one_item_is_judged_by_its_worst_picture(scanner, draw):
    batch = np.stack([np.asarray(draw(kind)) for kind in ("clothed", "minimal", "nobody")])
    assert (scanner.check(batch).verdict, scanner.check(batch).frame) == ("review", 1)
    assert [result.verdict for result in scanner.scan(batch)] == ["allow", "review", "allow"]


def test_what_hides_behind_transparency_is_seen(scanner, draw):
    hidden = draw("minimal").convert("RGBA")
    hidden.putalpha(Image.linear_gradient("L").resize(hidden.size).point(lambda level: 255 * (level > 100)))
    assert scanner.check(hidden).verdict == "review"


def test_a_block_needs_both_scores_in_one_picture(scanner, draw):
    assert scanner.check(draw("child")).verdict == "allow"
    result = scanner.check(beside(draw("child"), draw("minimal")))
    assert result.verdict == "block" and [reason.rule for reason in result.reasons] == ["minor-exposed", "minimal-attire"]


def test_an_edit_that_undresses_is_blocked(scanner, draw):
    result = scanner.check_edit(draw("clothed"), draw("minimal"))
    assert result.verdict == "block" and "undressed" in [reason.rule for reason in result.reasons]
    assert scanner.check_edit(draw("minimal"), draw("minimal")).verdict == "review"
    assert scanner.check_edit(draw("clothed"), draw("clothed")).verdict == "allow"


def test_a_policy_about_edits_alone_allows_no_picture_alone(toy_path, toy_policy, draw):
    edits = Scanner(toy_path, replace(toy_policy, rules=tuple(rule for rule in toy_policy.rules if rule.before_below)))
    for result in (edits.check(draw("clothed")), *edits.scan([draw("minimal"), draw("nobody")])):
        assert result.verdict == "undecided" and "rules about edits only" in result.error and result.scores
    assert edits.check_edit(draw("clothed"), draw("minimal")).verdict == "block"
    assert edits.check_edit(draw("clothed"), draw("clothed")).verdict == "allow"
    assert edits.selftest().passed


def test_a_policy_without_rules_allows_nothing(toy_path, toy_policy, draw):
    scanner = Scanner(toy_path, replace(toy_policy, rules=()))
    for result in (scanner.check(draw("clothed")), scanner.check_edit(draw("clothed"), draw("clothed"))):
        assert result.verdict == "undecided" and "no rules" in result.error


def test_an_edit_is_judged_against_every_frame_that_came_in(scanner, draw):
    before = animated([draw("minimal"), draw("clothed")])
    assert scanner.check_edit(before, draw("minimal")).verdict == "block"


def test_stacked_pairs_are_judged_like_single_ones(scanner, draw):
    clothed, minimal = (np.asarray(draw(kind)) for kind in ("clothed", "minimal"))
    stacked = np.stack([np.stack([clothed, minimal]), np.stack([clothed, clothed])])
    assert [result.verdict for result in scanner.check_edits(stacked)] == ["block", "allow"]
    assert [result.verdict for result in scanner.check_edits([iter((clothed, minimal))])] == ["block"]


@pytest.mark.parametrize(
    "pairs", [("a.png", "b.png"), ("ab", "cd"), [("a.png",)], [("a.png", "b.png", "c.png")], [None], np.zeros((2, 2, 8, 3))]
)
def test_what_is_no_pair_is_refused(scanner, pairs):
    with pytest.raises(SetupError):
        scanner.check_edits(pairs)


@pytest.mark.parametrize("broken", [b"", b"text", None])
def test_an_edit_with_an_unreadable_half_is_never_allowed(scanner, draw, broken):
    result = scanner.check_edit(broken, draw("clothed"))
    assert result.verdict == "undecided" and "the picture that came in" in result.error
    assert scanner.check_edit(draw("clothed"), broken).verdict == "undecided"


def test_an_edit_of_something_unreadable_keeps_its_reasons(scanner, draw):
    result = scanner.check_edit(b"", beside(draw("child"), draw("minimal")))
    assert result.verdict == "block" and "minor-exposed" in [reason.rule for reason in result.reasons]


def test_threads_may_share_a_scanner(scanner, draw):
    def judge(number):
        kind = KINDS[number % 4]
        return scanner.check(draw(kind)).verdict, [result.verdict for result in scanner.scan(draw(kind) for _ in range(5))], kind

    with ThreadPoolExecutor(8) as pool:
        for verdict, verdicts, kind in pool.map(judge, range(40)):
            assert {verdict, *verdicts} == {VERDICTS[kind]}


def test_the_pixel_limit_is_a_setting(toy_path, toy_policy, draw):
    scanner = Scanner(toy_path, toy_policy, max_pixels=100)
    assert scanner.check(draw("clothed", (10, 10))).verdict == "allow"
    assert "over the limit of 100" in scanner.check(draw("clothed", (10, 11))).error


def test_results_are_hashed_and_frozen(scanner, folder):
    result = scanner.check(folder / "a.png")
    assert len(result.sha256) == 64
    with pytest.raises(AttributeError):
        result.verdict = "allow"


def test_a_wrong_setting_says_what_to_do(toy_path, toy_policy):
    for setting in ("batch_size", "workers", "frames", "max_pixels"):
        with pytest.raises(SetupError, match=f"{setting} is 0; it must be 1 or more"):
            Scanner(toy_path, toy_policy, **{setting: 0})


def test_a_wrong_set_up_is_raised(toy_path, toy_policy):
    with pytest.raises(ModelError, match="nowhere"):
        Scanner("nowhere.onnx", toy_policy)
    with pytest.raises(PolicyError, match="neither a readable TOML file"):
        Scanner(toy_path, "nowhere")
    with pytest.raises(PolicyError, match="calibrated for model"):
        Scanner(toy_path, "default")
    with pytest.raises(PolicyError, match="does not give"):
        Scanner(toy_path, parse_policy(POLICY.replace("minimal_attire", "mood")))


def test_an_edit_of_nothing_is_never_allowed(scanner, draw):
    pictures = [draw("clothed"), draw("minimal")]
    results = scanner.check_many(pictures, [])
    assert [result.verdict for result in results] == ["undecided", "undecided"]
    assert all("there is none" in result.error for result in results)


@pytest.mark.parametrize("options", [{"max_wait": math.inf}, {"timeout": math.inf}, {"timeout": math.nan}, {"timeout": 1e12}])
def test_times_are_finite(toy_path, toy_policy, options):
    with pytest.raises(SetupError, match="it must be"):
        Scanner(toy_path, toy_policy, **options)


@pytest.mark.parametrize("one", ["pictures", b"bytes", Path("pictures")])
def test_one_item_is_not_taken_for_many(scanner, one):
    with pytest.raises(SetupError, match="is one item, not many"):
        list(scanner.scan(one))
    with pytest.raises(SetupError, match="is one item, not many"):
        scanner.check_many(one)


@pytest.mark.parametrize("call", ["check_many", "scan", "score"])
@pytest.mark.parametrize(
    "make", [np.asarray, lambda image: image, lambda _: bytearray(b"x"), lambda _: io.BytesIO(b"x"), lambda _: np.array(3)]
)
def test_one_picture_where_many_are_wanted_is_an_error(scanner, draw, call, make):
    with pytest.raises(SetupError, match=r"one item, not many|no batch of pictures"):
        list(getattr(scanner, call)(make(draw("minimal"))))
    with pytest.raises(SetupError, match="no batch of pictures"):
        scanner.check_many([draw("clothed")], before=np.asarray(draw("clothed")))


def test_a_model_that_was_replaced_under_a_scanner_is_not_taken_for_it(tmp_path, toy_policy, draw):
    path = write_toy_model(tmp_path / "toy.onnx")
    scanner = Scanner(path, toy_policy, workers=2)
    write_toy_model(path, factor=0.5)
    with pytest.raises(ModelError, match="was replaced"):
        list(scanner.scan([draw("minimal")]))


@pytest.mark.parametrize("settings", [{"batch_size": "4"}, {"batch_size": 1.5}, {"max_pixels": float("nan")}, {"workers": 0}])
def test_a_number_that_is_none_is_an_error(toy_path, toy_policy, settings):
    with pytest.raises(SetupError, match="whole number"):
        Scanner(toy_path, toy_policy, **settings)


def test_an_array_of_names_is_as_good_as_a_list(scanner, folder):
    names = np.array([str(folder / "a.png")])
    assert [result.verdict for result in scanner.scan(names)] == ["allow"] and scanner.check_many(np.array([])) == []
