"""Settings files: every one that ships can be read, and a file may build on another."""

from pathlib import Path

import pytest

from training.settings import load_settings

FOLDER = Path(__file__).parents[1] / "training"


@pytest.mark.parametrize("name", sorted({path.name for path in FOLDER.glob("*.toml")} - {"recipes.toml", "packages.toml"}))
def test_shipped_settings_can_be_read(name: str) -> None:
    assert load_settings(FOLDER / name).stages


def test_a_file_with_a_base_changes_only_what_it_names() -> None:
    base, faces = load_settings(FOLDER / "settings.toml"), load_settings(FOLDER / "faces.toml")
    assert faces.stages != base.stages
    assert (faces.shares, faces.licences, faces.size) == (base.shares, base.licences, base.size)


def test_shares_that_a_file_does_not_name_are_those_of_its_base() -> None:
    base, towers = load_settings(FOLDER / "faces.toml"), load_settings(FOLDER / "towers.toml")
    assert towers.shares["coco_flickr"] != base.shares["coco_flickr"]
    assert towers.shares.keys() == base.shares.keys() and towers.shares["hands_digits"] == base.shares["hands_digits"]


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text((FOLDER / "smoke.toml").read_text() + "\n[train.typo]\n")
    with pytest.raises(ValueError, match="typo"):
        load_settings(tmp_path / "wrong.toml")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("sharpness = { attir = 2.0 }", "sharpness names 'attir'"),
        ("frozen_heads = ['hair']", "frozen_heads names 'hair'"),
        ("borrowed = { age = 0.5 }", "borrowed names 'age', not one of attire"),
        ("trunk = 'hair'", "trunk is 'hair'"),
        ("trunk = 'attire'\ngrafted = ['age']", "nothing can be grafted"),
    ],
)
def test_a_head_that_a_setting_cannot_be_about_is_named(tmp_path: Path, line: str, error: str) -> None:
    (tmp_path / "settings.toml").write_text((FOLDER / "settings.toml").read_text())
    (tmp_path / "wrong.toml").write_text(f'base = "settings.toml"\n[model]\n{line}\n')
    with pytest.raises(ValueError, match=error):
        load_settings(tmp_path / "wrong.toml")
