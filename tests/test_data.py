"""Rows to training examples: who may share a canvas with whom, and what each picture teaches."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.drawn import LABELS, write_labelled

torch = pytest.importorskip("torch", reason="training needs torch")

from tests.test_manifest import SETTINGS  # noqa: E402
from training.data import Example, Examples, draw_rows, join, read_example, targets  # noqa: E402
from training.heads import AGE, ATTIRE, OLDEST, attire_target  # noqa: E402
from training.manifest import Row, load_manifest  # noqa: E402
from training.settings import load_settings  # noqa: E402

SMOKE = load_settings(SETTINGS.with_name("smoke.toml"))
CANVAS = Image.new("RGB", (8, 8))
MINIMAL = Example(CANVAS, attire_target("minimal"), (18, OLDEST), exposed=True)
CHILD = Example(CANVAS, attire_target("clothed"), (9, 9))
ADULT = Example(CANVAS, attire_target("clothed"), (40, 40))
UNKNOWN = Example(CANVAS, attire_target(""), (0, OLDEST))
NOBODY = Example(CANVAS, attire_target("no_person"), (OLDEST, OLDEST))


def labels(weights, head):
    return {label for label, weight in zip(head.labels, weights, strict=True) if weight}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_labelled(tmp_path_factory.mktemp("data"), per_label=6)
    return folder, load_manifest(folder / "manifest.csv", SMOKE.licences)


@pytest.mark.parametrize("other", [CHILD, UNKNOWN, replace(ADULT, age=(17, 40))], ids=["child", "unknown", "may be 17"])
def test_an_exposed_picture_never_joins_somebody_who_may_be_under_18(other):
    for pair in ((MINIMAL, other), (other, MINIMAL)):
        with pytest.raises(ValueError, match="only with adults or nobody"):
            join(*pair, CANVAS)


@pytest.mark.parametrize("other", [ADULT, NOBODY, MINIMAL], ids=["adult", "nobody", "exposed adult"])
def test_an_exposed_picture_may_join_adults_or_nobody(other):
    joined = join(other, MINIMAL, CANVAS)
    assert joined.exposed and labels(joined.attire, ATTIRE) == {"minimal"}


def test_a_joint_picture_is_as_young_as_its_youngest():
    assert join(ADULT, CHILD, CANVAS).age == (9, 9)
    assert join(NOBODY, CHILD, CANVAS).age == (9, 9)


def test_exposed_pictures_teach_no_age():
    for example in (MINIMAL, join(MINIMAL, ADULT, CANVAS), join(NOBODY, MINIMAL, CANVAS)):
        assert (targets(example)[1] == 1).all()


def test_nobody_teaches_that_nobody_is_young():
    assert "17" not in labels(targets(NOBODY)[1], AGE) and labels(targets(NOBODY)[0], ATTIRE) == {"no_person"}


def test_exact_ages_teach_a_distribution_and_ranges_a_set():
    assert targets(CHILD)[1].sum() == pytest.approx(1, abs=1e-5)
    assert set(np.unique(targets(replace(CHILD, age=(0, 17)))[1])) == {0, 1}


def test_a_face_teaches_at_most_that_it_is_not_minimal(data):
    folder, rows = data
    face = next(row for row in rows if row.framing == "face")
    assert labels(read_example(face, folder, 64).attire, ATTIRE) == {"no_person", "clothed", "revealing"}


def everybody(_row):
    return True


def examples(data, chosen, count, seed=0):
    folder, rows = data
    indices = [index for index, row in enumerate(rows) if chosen(row)]
    draws = np.resize(np.array(indices), count)
    return Examples(rows, draws, folder, 48, seed, {"drawn_scenes": 0.75})


def test_exposed_rows_are_composed_lawfully_and_never_teach_age(data):
    """`join` raises for an unlawful canvas; 300 draws paste, tile and collage among scenes with children."""
    _, rows = data
    assert any(row.framing == "scene" and not row.adults_or_nobody for row in rows)
    drawn = examples(data, lambda row: row.exposed, 300)
    for _, _, attire, age, _, row in (drawn[index] for index in range(300)):
        assert (age == 1).all() and row == -1
        assert labels(attire.numpy(), ATTIRE) <= {"revealing", "minimal"}


def test_the_ground_under_an_exposed_figure_shows_adults_or_nobody(data):
    drawn = examples(data, lambda row: row.exposed, 1)
    assert drawn.adult_ground and all(row.adults_or_nobody and not row.exposed for row in drawn.adult_ground)
    assert len(drawn.any_ground) > len(drawn.adult_ground)


def test_examples_are_what_the_scanner_would_show(data):
    pixels, before, attire, age, trust, _ = examples(data, everybody, 5)[3]
    assert pixels.shape == before.shape == (48, 48, 3) and pixels.dtype == before.dtype == torch.uint8
    assert not torch.equal(pixels, before)
    assert attire.shape == (len(ATTIRE.labels),) and age.shape == (len(AGE.labels),) and trust == 1.0


def test_an_example_names_its_row_unless_it_joins_several(data):
    drawn = examples(data, lambda row: not row.exposed, 100)
    named = [drawn[index][5] for index in range(100)]
    assert all(row in (-1, int(drawn.draws[index])) for index, row in enumerate(named))
    assert -1 in named and len(set(named)) > 2


def test_an_example_depends_on_seed_and_index_alone(data):
    first, again, other = (examples(data, everybody, 30, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[index][0], again[index][0]) for index in (29, 3, 11))
    assert not all(torch.equal(first[index][0], other[index][0]) for index in range(30))


def test_doubtful_labels_of_minors_are_trusted_less(data):
    drawn = examples(data, lambda row: row.age == (0, 17), 3)
    assert [drawn[index][4] for index in range(3)] == [0.75] * 3


def test_sources_get_their_shares_of_draws(data):
    _, rows = data
    draws = draw_rows(rows, SMOKE.shares, 20_000, seed=0)
    keys = [f"{rows[index].source}/{rows[index].attire}" for index in draws]
    assert keys.count("drawn_figures/minimal") / 20_000 == pytest.approx(0.15, abs=0.02)
    assert sum(key.startswith("drawn_faces") for key in keys) / 20_000 == pytest.approx(0.3, abs=0.02)


def test_a_source_without_a_share_is_named(data):
    with pytest.raises(ValueError, match="no share for 'elsewhere'"):
        draw_rows([*data[1], Row("x.png", "elsewhere", "CC0")], SMOKE.shares, 5, seed=0)


def test_sources_that_no_share_names_get_one_each_divided_among_their_attires(data):
    elsewhere = [Row(f"{index}.png", "elsewhere", "CC0", attire="clothed" if index else "minimal") for index in range(9)]
    farther = [Row("x.png", "farther", "CC0")]
    rows = [*data[1], *elsewhere, *farther]
    drawn = np.bincount(draw_rows(rows, SMOKE.shares, 20_000, seed=0, other_share=0.5), minlength=len(rows))
    one, clothed, other = drawn[len(data[1])], drawn[len(data[1]) + 1 : -1].sum(), drawn[-1]
    assert one == pytest.approx(clothed, rel=0.1) and one + clothed == pytest.approx(other, rel=0.1)
    assert other == pytest.approx(20_000 * 0.5 / (sum(SMOKE.shares.values()) + 1), rel=0.1)


def test_made_up_labels_hold_what_the_tests_need():
    assert {attire for _, _, attire, *_ in LABELS} >= {"minimal", "revealing", "clothed", "no_person"}


def test_only_changed_pictures_are_stylised(data):
    """Of one face: nearly as it is, it stays the same whatever the share; changed, it does not."""
    folder, rows = data
    face = [row for row in rows if row.framing == "face"][:1]

    def pixels(plain, stylised):
        return Examples(face, np.zeros(1, int), folder, 64, 5, {}, plain_faces=plain, stylised=stylised)[0][0]

    assert torch.equal(pixels(1.0, 0.0), pixels(1.0, 1.0))
    assert not torch.equal(pixels(0.0, 0.0), pixels(0.0, 1.0))
