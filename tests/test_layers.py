"""Imports go down only, and importing the package is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imgsafety

PACKAGE = Path(imgsafety.__file__).parent
# A module may import from earlier lines, never from its own or a later one.
LAYERS = (
    {"errors", "resample"},
    {"result"},
    {"spec", "archive", "png", "where"},
    {"preprocess"},
    {"source", "decode", "session", "policy", "flagged", "sink", "audit_log", "store", "prevalence"},
    {"tensor", "batching", "isolate", "selftest", "report"},
    {"scan", "page"},
    {"runs", "watch"},
    {"integrations", "terminal"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def layer_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_imports(path: Path) -> Iterator[str]:
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "imgsafety" and LEVEL.get(parts[1], 0) >= LEVEL.get(layer_name(path), 0) and parts[1] in LEVEL:
            yield f"{path.name} imports {name}"


def test_every_module_has_a_layer():
    assert {layer_name(path) for path in PACKAGE.rglob("*.py")} <= set(LEVEL)


def test_imports_go_down_only():
    assert [line for path in PACKAGE.rglob("*.py") for line in upward_imports(path)] == []


def test_training_is_never_imported_by_the_package():
    used = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imported(path)}
    assert not used & {"training", "tests", "benchmarks"}


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout.split())


def test_import_loads_neither_torch_nor_a_runtime_nor_an_integration():
    modules = loaded_after("import imgsafety")
    assert not {name.split(".")[0] for name in modules} & {"torch", "onnxruntime", "scipy", "rich", "click", "imagecodecs"}
    assert not [name for name in modules if name.startswith("imgsafety.integrations")]


def test_judging_a_picture_does_not_load_torch(toy_path, toy_policy_path):
    scanner = f"imgsafety.Scanner({str(toy_path)!r}, {str(toy_policy_path)!r})"
    modules = loaded_after(f"import imgsafety, numpy; {scanner}.check(numpy.zeros((8, 8, 3), numpy.uint8))")
    assert "onnxruntime" in modules and "torch" not in modules
