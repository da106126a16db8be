"""The settings TOML to frozen values; the file's comments say what each one does."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from training.heads import BORROWED, HEAD_NAMES

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)  # of an option that names a file to read
# Settings that name heads, and which ones they may name.
OF_HEADS = ("heads", "frozen_heads", "steady_heads", "grafted", "last_layers", "sharpness", "evidence_decay")
NAMING = {**dict.fromkeys(OF_HEADS, HEAD_NAMES), "borrowed": tuple(BORROWED)}


class SettingsError(click.ClickException, ValueError):
    """The settings cannot be used. The message names the file, or what does not fit; a command that meets it prints it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`examples` augmented pictures at `size` pixels; `shares` replaces some shares of the settings."""

    size: int
    examples: int
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides how a model comes out, except the data and the initial weights."""

    name: str
    version: str
    seed: int
    backbone: str
    size: int
    first_size: int
    dropout: float
    frozen_layers: int
    batch_size: int
    threads: int
    workers: int
    learning_rate: float
    weight_decay: float
    average: float
    save_every: int
    stages: tuple[Stage, ...]
    age_error_weight: float
    minor_weight: float
    shares: dict[str, float]
    trust: dict[str, float]
    licences: dict[str, str]
    plain_faces: float = 0.6
    plain_scenes: float = 0.0
    stylised: float = 0.0
    first_every: int = 0
    warm_up: int = 200
    trunk: str = ""
    own_layers: int = 0
    teacher_weight: float = 0.0
    encoder_weight: float = 0.0
    frozen_heads: tuple[str, ...] = ()
    grafted: tuple[str, ...] = ()
    heads: tuple[str, ...] = HEAD_NAMES
    steady_heads: tuple[str, ...] = ()
    steady_labels: float = 0.0
    steady_way: float = 1.0
    evidence_decay: dict[str, float] = field(default_factory=dict)
    last_layers: dict[str, int] = field(default_factory=dict)
    sharpness: dict[str, float] = field(default_factory=dict)
    borrowed: dict[str, float] = field(default_factory=dict)
    finder_layer: int = 0
    other_share: float = 0.0


def load_settings(path: Path) -> Settings:
    """Read a settings file; one that names a `base`, as seen from its folder, changes some settings of that file.

    Raises `SettingsError` that names a missing or unknown setting, or a head that a setting cannot be about.
    """
    flat = _flat(path)
    try:
        flat["stages"] = tuple(Stage(**stage) for stage in flat.get("stages", ()))
        settings = Settings(**flat)
    except TypeError as problem:
        raise SettingsError(f"{path}: {problem}") from problem
    for setting, heads in NAMING.items():
        if unknown := set(getattr(settings, setting)).difference(heads):
            raise SettingsError(f"{path}: {setting} names {sorted(unknown)[0]!r}, not one of {', '.join(sorted(heads))}")
    if settings.trunk and (settings.trunk not in HEAD_NAMES or settings.grafted):
        raise SettingsError(f"{path}: trunk is {settings.trunk!r}; it must be a head, and nothing can be grafted beside it")
    return settings


def _flat(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:  # ValueError: no TOML, or no UTF-8
        raise SettingsError(f"{path}: cannot be read: {problem}") from problem
    base = _flat(path.parent / table.pop("base")) if "base" in table else {}
    settings = {key: value for key, value in table.items() if key not in ("model", "train")}
    merged: dict[str, Any] = base | settings | table.get("model", {}) | table.get("train", {})
    merged["shares"] = base.get("shares", {}) | table.get("shares", {})
    return merged
