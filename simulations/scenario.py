"""Scenarios: YAML files of settings, and settings from the command line, checked as one Config.

A scenario may nest its settings by section or name them flat (``section.key``). It is read by the
YAML 1.2 core schema: ``1e-3`` is a number, ``no`` and ``12:30`` are strings, nothing is a date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.config import DEFAULT_KEYS, Config
from common.errors import UserError
from common.settings import Scalar, refuse_unknown

SCENARIO_FOLDER = Path(__file__).parent / "scenarios"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A named set of settings."""

    name: str
    """The file's name without its ending."""
    settings: Mapping[str, Scalar]
    """What the file and the command line set, flat; every other setting has its default."""
    config: Config
    """All settings, checked."""


def load_scenario(name_or_path: str, overrides: Iterable[str] = ()) -> Scenario:
    """A scenario with ``key=value`` overrides.

    Args:
        name_or_path: The name of a shipped scenario, or the path of a YAML file.
        overrides: Settings that replace those of the file; values are YAML scalars.

    Raises:
        UserError: if there is no such scenario, or for anything wrong in it or in ``overrides``.
    """
    path = find_scenario(name_or_path)
    settings = {**read_scenario(path), **parse_overrides(overrides)}
    return Scenario(name=path.stem, settings=settings, config=Config.from_flat(settings))


def shipped_scenarios() -> dict[str, str]:
    """Name -> what it is for: the first line of comment in the file."""
    described = {}
    for path in sorted(SCENARIO_FOLDER.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        described[path.stem] = next((line[1:].strip() for line in lines if line[:1] == "#"), "")
    return described


def find_scenario(name_or_path: str) -> Path:
    """The file of a scenario.

    Raises:
        UserError: if there is none, naming those that there are.
    """
    shipped = SCENARIO_FOLDER / f"{name_or_path}.yaml"
    if Path(name_or_path).name == name_or_path and shipped.is_file():
        return shipped
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise UserError(
        f"unknown scenario {name_or_path!r}: expected one of {', '.join(shipped_scenarios())}, or "
        f"the path of a {' or '.join(SUFFIXES)} file"
    )


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
    settings: dict[str, Scalar] = {}
    for key, value in flatten_settings(content):
        if key in settings:
            raise UserError(f"scenario {path}: {key} is set twice")
        settings[key] = value
    refuse_unknown(settings, DEFAULT_KEYS)
    return settings


def read_yaml(path: Path, kind: str) -> Any:
    """What a YAML file holds; ``kind`` is what messages call it.

    Raises:
        UserError: if it cannot be read or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{kind} {path} is not YAML: {_one_line(error)}") from error


def parse_overrides(overrides: Iterable[str]) -> dict[str, Scalar]:
    """``["data.alpha=0.1"]`` -> ``{"data.alpha": 0.1}``; an empty value is an empty string.

    Raises:
        UserError: if one is not ``key=value``, is unknown or comes twice.
    """
    settings: dict[str, Scalar] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"{override!r}: expected key=value, for example data.alpha=0.1")
        refuse_unknown([key], DEFAULT_KEYS)
        if key in settings:
            raise UserError(f"{key} is set twice on the command line")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise UserError(f"{override!r} is not YAML: {_one_line(error)}") from error
        settings[key] = "" if value is None and not text else value
    return settings


def flatten_settings(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``section.key`` entries; those that are flat already stay as they are."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _one_line(error: Exception) -> str:
    """``mapping values are not allowed here (line 3, column 8)``."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's way to have none)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not a name", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is set twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_DIGITS = [*"-+.0123456789"]
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", ["t", "T", "f", "F"]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", _DIGITS),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", _DIGITS),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _DIGITS),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )
