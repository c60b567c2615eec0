"""Every setting as commented TOML: what pyproject.toml holds for Flower, and a user can look up.

The comments are the strings under the fields of common/config and the values that are allowed.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import get_type_hints

from common.config import SECTION_TYPES, Section
from common.settings import describe_allowed, kebab

HEADING = "# Every setting, its default and what it may be (python -m simulations settings)."
PREFIX = "tool.flwr.app.config"
WIDTH = 98


def settings_toml() -> str:
    """All sections as the TOML tables that Flower reads an app's run config from."""
    lines = [HEADING]
    for name, section_type in SECTION_TYPES.items():
        lines += ["", *_section(name, section_type)]
    return "\n".join(lines) + "\n"


def _section(name: str, section_type: type[Section]) -> Iterator[str]:
    yield from _comment(inspect.getdoc(section_type) or "")
    yield f"[{PREFIX}.{name}]"
    docstrings = _docstrings(section_type)
    types = get_type_hints(section_type)
    for field in dataclasses.fields(section_type):  # type: ignore[arg-type]
        yield from _comment(docstrings[field.name])
        allowed = describe_allowed(types[field.name], field.metadata)
        if allowed != "a string":
            yield from _comment(f"Allowed: {allowed}.")
        yield f"{kebab(field.name)} = {json.dumps(field.default)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _docstrings(section_type: type[Section]) -> dict[str, str]:
    """Field -> the string under it."""
    (node,) = ast.parse(inspect.getsource(section_type)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[field.target.id] = str(below.value.value)
    return found
