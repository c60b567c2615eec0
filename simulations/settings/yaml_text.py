"""YAML by its 1.2 core schema: ``1e-3`` is a number, ``no`` and ``12:30`` are strings, no dates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError


def read_yaml(path: Path, kind: str) -> Any:
    """What a YAML file holds; ``kind`` is what messages call it.

    Raises:
        UserError: if it cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {path} is not YAML: {_one_line(error)}") from error
    return parse_yaml(text, f"{kind} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """What YAML text says; ``where`` is what messages call it.

    Raises:
        UserError: if it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """``mapping values are not allowed here (line 3, column 8)``."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, no key twice, and nothing that holds itself."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's way to have none)

    def construct_document(self, node: yaml.Node) -> Any:
        # Inner nodes at once, not after outer ones: PyYAML then refuses an alias of an outer one.
        self.deep_construct = True
        return super().construct_document(node)  # type: ignore[no-untyped-call]

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
