"""Settings files: every one that ships can be read, and a file may build on another."""

from pathlib import Path

import pytest

from training.settings import load_settings

FOLDER = Path(__file__).parents[1] / "training"


@pytest.mark.parametrize("name", ["settings.toml", "faces.toml", "smoke.toml"])
def test_shipped_settings_can_be_read(name: str) -> None:
    assert load_settings(FOLDER / name).stages


def test_a_file_with_a_base_changes_only_what_it_names() -> None:
    base, faces = load_settings(FOLDER / "settings.toml"), load_settings(FOLDER / "faces.toml")
    assert faces.stages != base.stages
    assert (faces.shares, faces.licences, faces.size) == (base.shares, base.licences, base.size)


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text((FOLDER / "smoke.toml").read_text() + "\n[train.typo]\n")
    with pytest.raises(ValueError, match="typo"):
        load_settings(tmp_path / "wrong.toml")
