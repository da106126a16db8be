"""The built wheel holds what the package needs, and works where the repository is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from imgsafety import __version__
from imgsafety.session import MODEL_FILE

ROOT = Path(__file__).parents[1]


def run(*words, **options):
    result = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not (ROOT / "weights" / MODEL_FILE).is_file():
        pytest.skip("weights/ holds no model to put into the wheel")
    pytest.importorskip("build", reason="needs the packages build and hatchling")
    pytest.importorskip("hatchling", reason="needs the packages build and hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_the_same_sources_make_the_same_wheel(wheel, tmp_path):
    """Built once more from a copy elsewhere, whose files are younger."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("imgsafety", "weights"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, copy_function=shutil.copyfile, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / "copy" / name)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tmp_path / "copy")
    (again,) = tmp_path.glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder into which the wheel was installed, without the libraries that are here already."""
    folder = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder, wheel)
    return folder


def imgsafety(installed, tmp_path, *words):
    return run("-m", "imgsafety", *words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})


def test_the_wheel_holds_model_and_policies_and_nothing_of_the_rest(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"imgsafety/weights/{MODEL_FILE}", f"imgsafety/weights/{MODEL_FILE}.sha256"} <= set(names)
    assert {f"imgsafety/policies/{name}.toml" for name in ("default", "strict", "audit")} <= set(names)
    assert {name.split("/")[0] for name in names} == {"imgsafety", f"imgsafety-{__version__}.dist-info"}


def test_the_model_in_the_wheel_is_the_one_in_the_repository(wheel):
    inside = zipfile.ZipFile(wheel).read(f"imgsafety/weights/{MODEL_FILE}")
    assert inside == (ROOT / "weights" / MODEL_FILE).read_bytes()


def test_the_installed_command_uses_its_own_model(installed, tmp_path):
    output = imgsafety(installed, tmp_path, "info")
    assert str(installed / "imgsafety" / "weights" / MODEL_FILE) in output


def test_the_installed_command_judges_a_picture(installed, tmp_path, draw):
    draw("nobody").save(tmp_path / "a.png")
    code = "import imgsafety; print(imgsafety.__file__, imgsafety.Scanner(policy='audit').check('a.png').verdict)"
    output = run("-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    assert output.split() == [str(installed / "imgsafety" / "__init__.py"), "allow"]


def test_the_command_is_installed_by_name(installed):
    assert [path.name for path in (installed / "bin").iterdir()] == ["imgsafety"]
