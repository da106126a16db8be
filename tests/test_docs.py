"""README and docs against the program: their examples compile, their names and options exist."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from imgsafety import load_policy
from imgsafety.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
FENCES = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in FENCES if language == "python"]
# Every piece of code, fenced or in line, with continued lines joined.
CODE = [code.replace("\\\n", " ") for _, code in FENCES] + re.findall(r"`([^`\n]+)`", TEXT)
PROGRAM = re.compile(r"(?:^|&& )(imgsafety|python -m training\.\w+)(?![\w.\-/:])([^|;&#\n]*)", re.MULTILINE)


def programs() -> Iterator[tuple[str, list[str]]]:
    """Each command line that the pages show: the program, and its words."""
    for code in CODE:
        for program, rest in PROGRAM.findall(code):
            yield program, rest.split()


def command_of(program: str, words: list[str]) -> click.Command:
    if program != "imgsafety":
        command = importlib.import_module(program.removeprefix("python -m ")).main
        assert isinstance(command, click.Command)
        return command
    named = words[0] if words and not words[0].startswith("-") else None
    command = cli.commands[named] if named else cli
    return command.commands.get(words[1], command) if isinstance(command, click.Group) and len(words) > 1 else command


def options_of(command: click.Command) -> set[str]:
    return {name for option in command.get_params(click.Context(command)) for name in option.opts}


def option_words(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def test_pages_show_python_and_commands():
    assert PYTHON and [words for program, words in programs() if program == "imgsafety" and words]


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_compile_and_their_imports_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "imgsafety":
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize(("program", "words"), [(p, w) for p, w in programs() if w], ids=lambda value: str(value)[:60])
def test_commands_and_their_options_exist(program, words):
    if program != "imgsafety":
        pytest.importorskip("torch", reason="the training programs need torch")
    assert option_words(words) <= options_of(command_of(program, words))


def test_options_that_stand_alone_exist_somewhere():
    known = {name for command in cli.commands.values() for name in options_of(command)} | options_of(cli)
    alone = {word for code in CODE if code.startswith("--") for word in option_words(code.split())}
    assert alone <= known


def test_named_files_exist():
    named = set(re.findall(r"\b(?:imgsafety|training|tests|docs|benchmarks|\.ci)/[\w./]*\w", "\n".join(CODE)))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_command_and_option_has_a_help_text():
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == [] and all(command.help for command in cli.commands.values())


def lowest(requirements):
    """The least version of each package that requirements allow."""
    found = [Requirement(entry) for entry in requirements]
    return {entry.name: min(Version(one.version) for one in entry.specifier if one.operator in (">=", "==")) for entry in found}


@pytest.mark.parametrize(
    ("file", "core", "extras"),
    [
        ("lowest.txt", True, ("fast", "parquet", "report", "serve", "watch")),
        ("lowest-torch.txt", False, ("diffusers", "parquet", "ray", "train")),
    ],
)
def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed(file, core, extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [entry for name in extras for entry in project["optional-dependencies"][name]]
    allowed = optional + (project["dependencies"] if core else [])
    tested = (ROOT / ".ci" / file).read_text(encoding="utf-8").splitlines()
    assert lowest(line for line in tested if not line.startswith("#")) == lowest(allowed)


def test_the_thresholds_beside_the_rules_are_those_of_the_default_policy():
    lines = {line.split("`")[1]: line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")}
    for rule in load_policy().rules:
        for value in (*rule.when.values(), *rule.before_below.values()):
            assert f"{value:.2f}" in lines[rule.name], (rule.name, value)
