"""Grid files: YAML -> grids.

A grid has a head of comments (its title and protocol) and three parts::

    settings:              # the same in every cell, as in a scenario
      model: {name: resnet20, teacher: shipped}
    axes:                  # every combination of one choice of each is a cell
      method: {setting: coreset.selection, values: [random, quarc]}
      data:                # choices by name, where one takes several settings
        1 %: {coreset: {fraction: 0.01}, training: {local-epochs: 60}}
        10 %: {coreset: {fraction: 0.1}, training: {local-epochs: 15}}
    table:
      rows: [method]       # axes
      columns: data        # one axis, or left out
      reference: ...       # a row that the others' times are compared with, or left out

On one device ``training.local-epochs`` is the number of epochs of the whole training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import DEFAULT_KEYS
from common.errors import UserError
from common.settings import Scalar, refuse_unknown
from simulations.paper.grid import Axis, Grid
from simulations.settings.scenario import PLACES, flatten_settings, parse_overrides
from simulations.settings.shipped import GRIDS
from simulations.settings.yaml_text import read_yaml

FEDERATED_SECTIONS = (
    *("federation", "strategy", "fleet", "warmup", "attack", "privacy", "evaluation"),
)
FEDERATED_KEYS = frozenset(
    {
        "run.seed",
        "run.out",
        "run.resume",
        "run.tensorboard",
        "data.num-devices",
        "data.partition",
        "data.alpha",
        "data.classes-per-device",
        "data.shards-per-device",
        "data.min-samples",
        "data.holdout-fraction",
        "coreset.adaptive",
        "coreset.adaptive-floor",
        "coreset.adaptive-cap",
        "training.partial-work",
    }
)
"""Settings that mean nothing on one device, or that the command line has an option for."""


def load_grid(name_or_path: str, overrides: Iterable[str] = ()) -> Grid:
    """A grid with ``key=value`` overrides of its fixed settings.

    Args:
        name_or_path: the name of a shipped grid, or the path of a YAML file.
        overrides: settings for every cell; values are YAML scalars.

    Raises:
        UserError: if there is no such grid, or for anything wrong in it or in ``overrides``.
    """
    path = GRIDS.find(name_or_path)
    content = read_yaml(path, "grid")
    try:
        return _parse(path, content, parse_overrides(overrides))
    except UserError as error:
        message = str(error)
        raise UserError(
            message if message.startswith("grid ") else f"grid {path.stem}: {message}"
        ) from error


def _parse(path: Path, content: Any, overrides: Mapping[str, Scalar]) -> Grid:
    parts = _parts(content, "the file", ("settings", "axes", "table"))
    axes = tuple(_axis(name, axis) for name, axis in _mapping(parts.get("axes"), "axes").items())
    varied = _check_axes(axes)
    settings = _settings(parts.get("settings") or {}, "settings")
    for key in settings:
        if key in varied:
            raise UserError(f"{key} is in settings and in axis {varied[key]}")
    for key in overrides:
        if key in varied:
            raise UserError(f"{key} is varied by axis {varied[key]}: choose cells with --only")
    _refuse_federated(overrides)
    rows, columns, reference = _table(parts.get("table") or {}, axes)
    title, protocol = _head(path)
    return Grid(
        name=path.stem,
        title=_with_changes(title or path.stem, overrides),
        protocol=protocol,
        settings={**settings, **overrides},
        axes=axes,
        rows=rows,
        columns=columns,
        reference=reference,
    )


def _head(path: Path) -> tuple[str, str]:
    """First line and the rest of the comments that the file begins with."""
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()
    )
    head = [line[1:].removeprefix(" ").rstrip() for line in lines]
    return (head[0] if head else ""), "\n".join(head[1:]).strip()


def _with_changes(title: str, overrides: Mapping[str, Scalar]) -> str:
    """The title says what the file does; what the command line changes belongs to it."""
    changes = [f"{key}={value}" for key, value in overrides.items() if key not in PLACES]
    return f"{title}; {', '.join(changes)}" if changes else title


def _axis(name: str, content: Any) -> Axis:
    choices = _mapping(content, f"axis {name}")
    if set(choices) == {"setting", "values"}:
        key, values = choices["setting"], choices["values"]
        if not isinstance(key, str):
            raise UserError(f"axis {name}: expected the name of a setting, not {key!r}")
        refuse_unknown([key], DEFAULT_KEYS)
        if not isinstance(values, list) or not values:
            raise UserError(f"axis {name}: expected a list of values, not {values!r}")
        bundles = {str(value): {key: value} for value in values}
        if len(bundles) != len(values):
            raise UserError(f"axis {name}: a value is there twice")
        _refuse_federated([key])
    else:
        bundles = {
            label: _settings(bundle or {}, f"axis {name}, {label}")
            for label, bundle in choices.items()
        }
    if not bundles:
        raise UserError(f"axis {name}: expected at least one choice")
    return Axis(name=name, choices=bundles)


def _check_axes(axes: Sequence[Axis]) -> dict[str, str]:
    """Setting -> the one axis that varies it."""
    varied: dict[str, str] = {}
    for axis in axes:
        if axis.name in DEFAULT_KEYS:
            raise UserError(f"axis {axis.name}: an axis may not be called like a setting")
        for key in {key for bundle in axis.choices.values() for key in bundle}:
            if varied.setdefault(key, axis.name) != axis.name:
                raise UserError(f"{key} is varied by axes {varied[key]} and {axis.name}")
    return varied


def _settings(content: Any, where: str) -> dict[str, Scalar]:
    settings = flatten_settings(_mapping(content, where), where)
    refuse_unknown(settings, DEFAULT_KEYS)
    _refuse_federated(settings)
    return settings


def _refuse_federated(keys: Iterable[str]) -> None:
    for key in keys:
        if key == "run.seed":
            raise UserError("run.seed: the seeds are given by --seeds")
        if key in FEDERATED_KEYS or key.split(".")[0] in FEDERATED_SECTIONS:
            raise UserError(f"{key} has no effect on one device")


def _table(content: Any, axes: Sequence[Axis]) -> tuple[tuple[str, ...], str | None, str | None]:
    parts = _parts(content, "table", ("rows", "columns", "reference"))
    names = [axis.name for axis in axes]
    columns, reference = (
        None if parts.get(name) is None else str(parts[name]) for name in ("columns", "reference")
    )
    rows = parts.get("rows", [name for name in names if name != columns])
    rows = [str(row) for row in (rows if isinstance(rows, list) else [rows])]
    shown = [*rows, *([] if columns is None else [columns])]
    if not rows or sorted(shown) != sorted(names):
        raise UserError(
            f"table: rows and columns are {', '.join(shown) or 'missing'}; expected "
            f"every axis once, and at least one as rows: {', '.join(names)}"
        )
    if reference is not None:
        labels = [axis.choices for axis in axes if [axis.name] == rows]
        if columns is not None or not labels or reference not in labels[0]:
            raise UserError(f"table: reference {reference!r} is no row of a table without columns")
    return tuple(rows), columns, reference


def _parts(content: Any, where: str, names: Sequence[str]) -> dict[str, Any]:
    parts = _mapping(content, where)
    for key in parts:
        if key not in names:
            raise UserError(f"{where}: unknown part {key!r}: expected {', '.join(names)}")
    return parts


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected names with what belongs to them, not {content!r}")
    return content
