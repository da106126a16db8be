"""The shipped file keeps what its card says, on held-out pictures, through the public API. Needs the labelled pictures."""

from pathlib import Path

import numpy as np
import pytest

from imgsafety.errors import ModelError
from imgsafety.session import shipped_model
from training.measure import auroc
from training.predict import open_scanner, predict
from training.settings import load_settings
from training.split import read_fold
from training.tables import Measured

SETTINGS = Path(__file__).parents[1] / "training" / "settings.toml"


@pytest.fixture(scope="module")
def held_out(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    try:
        model = shipped_model()
    except ModelError as problem:
        pytest.skip(str(problem))
    split = tmp_path_factory.mktemp("split") / "split.csv"
    rows = read_fold(shared_data, split, "test", load_settings(SETTINGS).licences)
    return Measured(rows, predict(open_scanner(model, zoom=True), rows, shared_data))


def test_minimal_attire_is_ranked_above_everything_else(held_out: Measured) -> None:
    known = held_out.take(held_out.column("attire") != "")
    minimal = known.column("attire") == "minimal"
    assert auroc(known.minimal[minimal], known.minimal[~minimal]) >= 0.97


def test_minimal_attire_is_ranked_on_sports_photographs_alone(held_out: Measured) -> None:
    sports = held_out.take(held_out.column("source") == "sports100")
    minimal = sports.column("attire") == "minimal"
    assert auroc(sports.minimal[minimal], sports.minimal[~minimal]) >= 0.93


def test_minors_are_ranked_above_adults(held_out: Measured) -> None:
    faces = held_out.take(~np.isnan(held_out.exact_age))
    minor = faces.exact_age < 18
    assert auroc(faces.under(18)[minor], faces.under(18)[~minor]) >= 0.98


def test_apparent_age_is_near_the_labelled_age(held_out: Measured) -> None:
    faces = held_out.take(~np.isnan(held_out.exact_age))
    assert np.abs(faces.age - (faces.exact_age + 0.5)).mean() < 5.8
