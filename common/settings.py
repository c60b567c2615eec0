"""Checked settings: frozen dataclass sections <-> Flower's flat run config.

Flower's run config is flat (``section.key``), untyped and silent about what it ignores, so every
key, type and range is checked here, before anything starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, get_type_hints

from common.errors import UserError

Scalar = bool | int | float | str
SectionT = TypeVar("SectionT")


def setting(
    default: Scalar,
    *,
    choices: Iterable[Scalar] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its default and the values that are allowed.

    ``minimum`` and ``maximum`` are inclusive, ``above`` is exclusive.
    """
    limits = {
        "choices": None if choices is None else tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
    }
    return dataclasses.field(default=default, metadata=limits)


def check_section(section: object, section_name: str) -> None:
    """Check the type and range of every field of a section.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    types = _field_types(type(section))  # type: ignore[arg-type]
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        key = f"{section_name}.{kebab(field.name)}"
        _check_value(key, getattr(section, field.name), types[field.name], field.metadata)


@cache
def _field_types(section_type: type) -> dict[str, Any]:
    """Evaluated once: a simulation builds its settings for every message to a device."""
    return get_type_hints(section_type)


def _check_value(key: str, value: Any, kind: type, limits: Mapping[str, Any]) -> None:
    wrong_type = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    is_wrong = wrong_type or (isinstance(value, float) and not math.isfinite(value))
    is_wrong = is_wrong or (
        (limits.get("choices") is not None and value not in limits["choices"])
        or (limits.get("minimum") is not None and value < limits["minimum"])
        or (limits.get("maximum") is not None and value > limits["maximum"])
        or (limits.get("above") is not None and value <= limits["above"])
    )
    if is_wrong:
        raise UserError(f"{key} = {value!r}: expected {describe_allowed(kind, limits)}")


def describe_allowed(kind: type, limits: Mapping[str, Any]) -> str:
    """What a setting takes, in words: ``one of 'iid', 'shard'`` or ``int, >= 1``."""
    if limits.get("choices") is not None:
        return "one of " + ", ".join(repr(choice) for choice in limits["choices"])
    parts = [{bool: "true or false", str: "a string"}.get(kind, kind.__name__)]
    for name, sign in (("above", ">"), ("minimum", ">="), ("maximum", "<=")):
        if limits.get(name) is not None:
            parts.append(f"{sign} {limits[name]}")
    return ", ".join(parts)


def kebab(name: str) -> str:
    """``weight_bits`` -> ``weight-bits``."""
    return name.replace("_", "-")


def flatten(section: object, section_name: str) -> dict[str, Scalar]:
    """A section as flat ``section.key`` entries."""
    return {
        f"{section_name}.{kebab(field.name)}": getattr(section, field.name)
        for field in dataclasses.fields(section)  # type: ignore[arg-type]
    }


def build_section(
    section_type: type[SectionT], section_name: str, flat: Mapping[str, Scalar]
) -> SectionT:
    """A section from the entries of ``flat`` that belong to it; absent keys keep their defaults.

    An int is taken where a float is expected; nothing else is converted.
    """
    types = _field_types(section_type)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section_type):  # type: ignore[arg-type]
        key = f"{section_name}.{kebab(field.name)}"
        if key in flat:
            value = flat[key]
            is_plain_int = isinstance(value, int) and not isinstance(value, bool)
            values[field.name] = (
                float(value) if types[field.name] is float and is_plain_int else value
            )
    return section_type(**values)


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Refuse the first key that no section has; ``where`` is what the message begins with.

    Raises:
        UserError: naming the key and the nearest known ones, those of its section, or all sections.
    """
    known_keys = sorted(known)
    for key in keys:
        if key not in known_keys:
            near = difflib.get_close_matches(key, known_keys, n=3, cutoff=0.5)
            section = key.split(".")[0]
            siblings = [name for name in known_keys if name.startswith(f"{section}.")]
            sections = sorted({re.sub(r"\..*", ".*", name) for name in known_keys})
            expected = ", ".join(near or siblings or sections)
            raise UserError(f"{where}unknown setting {key!r}: expected one of {expected}")
