"""Scenarios: YAML files of settings, and settings from the command line, checked as one Config.

A scenario may nest its settings by section or name them flat (``section.key``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.arguments import split_settings
from common.config import DEFAULT_KEYS, Config
from common.errors import UserError
from common.settings import Scalar, refuse_unknown
from simulations.settings.shipped import SCENARIOS
from simulations.settings.yaml_text import parse_yaml, read_yaml

PLACES = frozenset({"data.root", "run.out", "run.resume"})
"""Settings that say where things are, not what is done."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A set of settings."""

    settings: Mapping[str, Scalar]
    """What the file and the command line set, flat; every other setting has its default."""
    config: Config
    """All settings, checked."""


def load_scenario(
    name_or_path: str,
    overrides: Iterable[str] = (),
    fit: Callable[[Mapping[str, Scalar]], Mapping[str, Scalar]] = dict,
) -> Scenario:
    """A scenario with ``key=value`` overrides.

    Args:
        name_or_path: The name of a shipped scenario, or the path of a YAML file.
        overrides: Settings that replace those of the file; values are YAML scalars.
        fit: Completes the settings before they are checked together, by what a fleet fixes.

    Raises:
        UserError: if there is no such scenario, or for anything wrong in it or in ``overrides``.
    """
    path = SCENARIOS.find(name_or_path)
    settings = fit({**read_scenario(path), **parse_overrides(overrides)})
    return Scenario(settings=settings, config=Config.from_flat(settings))


def read_scenario(path: Path) -> dict[str, Scalar]:
    """The flat settings of a scenario file.

    Raises:
        UserError: if it cannot be read, is not YAML, sets something unknown or sets it twice.
    """
    content = read_yaml(path, "scenario")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"scenario {path}: expected settings by section, not {content!r}")
    settings = flatten_settings(content, f"scenario {path}")
    refuse_unknown(settings, DEFAULT_KEYS)
    return settings


def parse_overrides(overrides: Iterable[str]) -> dict[str, Scalar]:
    """``["data.alpha=0.1"]`` -> ``{"data.alpha": 0.1}``; an empty value is an empty string.

    Raises:
        UserError: if one is not ``key=value``, is unknown or comes twice.
    """
    settings: dict[str, Scalar] = {}
    for key, text in split_settings(overrides).items():
        value = parse_yaml(text, repr(f"{key}={text}"))
        settings[key] = "" if value is None and not text else value
    return settings


def flatten_settings(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Nested settings as ``section.key``; those that are flat already stay as they are.

    Raises:
        UserError: one is set twice; ``where`` says in what.
    """
    settings: dict[str, Any] = {}
    for key, value in _flat_entries(content, ""):
        if key in settings:
            raise UserError(f"{where}: {key} is set twice")
        settings[key] = value
    return settings


def _flat_entries(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat_entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
