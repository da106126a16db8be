"""What is public is listed, and says what it is."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import imgsafety

PUBLIC = [getattr(imgsafety, name) for name in imgsafety.__all__]


def test_all_lists_exactly_what_is_public():
    names = {name for name, value in vars(imgsafety).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert names == set(imgsafety.__all__)
    assert len(imgsafety.__all__) == len(set(imgsafety.__all__))


@pytest.mark.parametrize("value", PUBLIC, ids=imgsafety.__all__)
def test_public_names_have_docstrings(value):
    # A dataclass without a docstring gets its signature as one.
    assert value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(")


@pytest.mark.parametrize("value", [value for value in PUBLIC if inspect.isclass(value)], ids=lambda value: value.__name__)
def test_public_methods_have_docstrings(value):
    members = {name: member for name, member in vars(value).items() if callable(member) or isinstance(member, property)}
    assert [name for name, member in members.items() if not name.startswith("_") and not member.__doc__] == []


def test_every_error_has_one_parent():
    errors = [value for value in PUBLIC if inspect.isclass(value) and issubclass(value, Exception)]
    assert errors and all(issubclass(error, imgsafety.ImgSafetyError) for error in errors)


def test_version_is_a_release_number():
    assert all(part.isdigit() for part in imgsafety.__version__.split("."))


def test_naming_the_package_waits_for_nothing_heavy():
    code = "import imgsafety, sys; print([name for name in ('numpy', 'PIL', 'onnxruntime') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_all_that_is_public_is_there_at_once():
    code = "from imgsafety import *; import imgsafety; print(set(imgsafety.__all__) <= set(dir()) & set(dir(imgsafety)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'imgsafety' has no attribute 'numpy'"):
        imgsafety.numpy  # noqa: B018


def test_modules_of_public_names_are_attributes_from_the_start():
    code = "import imgsafety; assert imgsafety.errors.ImgSafetyError and imgsafety.policy.Policy"
    subprocess.run([sys.executable, "-c", code], check=True)
