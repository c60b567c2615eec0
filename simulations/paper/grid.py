"""Grids of settings for one device: some fixed, some varied -> the cells to run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from client.coreset import STUDENT_FREE
from client.selection import first_scored_epoch
from common.config import Config, pool_factor, selection_interval
from common.errors import UserError
from common.settings import Scalar

WITHOUT_EFFECT: dict[tuple[str, Scalar], tuple[str, ...]] = {
    ("training.correction", "none"): ("training.beta", "training.beta-schedule"),
    ("coreset.selection", "full"): ("coreset.fraction",),
}
"""Setting and value -> settings that then have no effect: such cells are one cell."""

STUDENT_PASS_COST = 0.25
"""Of scoring an image, relative to training on it: one forward pass of two, none backward. The
teacher's outputs are there: all cells share them."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is varied: choices by label."""

    name: str
    choices: Mapping[str, Mapping[str, Scalar]]
    """Label -> settings."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: a choice on every axis, and a seed."""

    labels: Mapping[str, str]
    """Axis -> label."""
    seed: int
    settings: Mapping[str, Scalar]
    """All settings that the grid or the command line gives, flat, without those of no effect."""
    config: Config

    @property
    def work(self) -> float:
        """How long it takes in relation to other cells: passes over the whole training set."""
        return self.work_done(1.0)

    def work_done(self, share: float) -> float:
        """Of `work`, what is done after a share of the epochs; selections precede theirs."""
        coreset, epochs = self.config.coreset, self.config.training.local_epochs
        trained = share * epochs
        part = 1.0 if coreset.selection == "full" else coreset.fraction
        if coreset.selection in STUDENT_FREE:
            return trained * part
        scored = min(1.0, pool_factor(coreset) * coreset.fraction) or 1.0
        first, interval = first_scored_epoch(coreset), selection_interval(coreset)
        num_selections = math.ceil(max(0, epochs - first) / interval)
        num_made = max(0, math.floor((trained - first) / interval + 1e-6) + 1)
        return trained * part + STUDENT_PASS_COST * min(num_made, num_selections) * scored


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All cells, and the form of their table."""

    name: str
    title: str
    protocol: str
    """The file's head of comments, below the title."""
    settings: Mapping[str, Scalar]
    """The same in every cell."""
    axes: tuple[Axis, ...]
    rows: tuple[str, ...]
    """Axes whose choices are the table's rows."""
    columns: str | None
    """The axis whose choices are the table's columns."""
    reference: str | None
    """Label of the row that the others are compared with."""

    def choices(self, name: str) -> Mapping[str, Mapping[str, Scalar]]:
        """Those of one axis."""
        return next(axis.choices for axis in self.axes if axis.name == name)

    def cells(self, seeds: Iterable[int]) -> list[Cell]:
        """All cells, seed by seed, so that an interrupted grid has whole tables of few seeds.

        Raises:
            UserError: for settings that contradict each other.
        """
        return [
            self._cell(dict(choice), seed)
            for seed in seeds
            for choice in itertools.product(
                *[[(axis.name, label) for label in axis.choices] for axis in self.axes]
            )
        ]

    def _cell(self, labels: Mapping[str, str], seed: int) -> Cell:
        settings = dict(self.settings)
        for axis in self.axes:
            settings.update(axis.choices[labels[axis.name]])
        for (key, value), idle in WITHOUT_EFFECT.items():
            if settings.get(key) == value:
                for name in idle:
                    settings.pop(name, None)
        try:
            config = Config.from_flat({**settings, "run.seed": seed})
        except UserError as error:
            where = ", ".join(labels.values())
            raise UserError(f"grid {self.name}, cell {where}: {error}") from error
        return Cell(labels=labels, seed=seed, settings=settings, config=config)


def title(cells: Sequence[Cell]) -> str:
    """``quarc, 10 %, seed 0``; of cells with the same settings all labels: ``full, 5 % / 10 %``."""
    names = cells[0].labels
    labels = [" / ".join(dict.fromkeys(cell.labels[name] for cell in cells)) for name in names]
    return ", ".join([*labels, f"seed {cells[0].seed}"])


def select_cells(grid: Grid, cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that ``only`` names: ``axis=label`` or ``setting=value``.

    Several values of one name are alternatives, several names must all hold.

    Raises:
        UserError: for a name or value that no cell has, or values that no cell has together.
    """
    wanted: dict[str, list[str]] = {}
    for text in only:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise UserError(f"--only {text!r}: expected axis=label or setting=value")
        known = _values_of(cells, name)
        if not known:
            names = [axis.name for axis in grid.axes]
            raise UserError(
                f"--only {text!r}: expected one of {', '.join(names)}, or a setting of the grid"
            )
        if value not in known:
            choices = ", ".join(f"'{name}={label}'" for label in known)
            raise UserError(f"--only {text!r}: expected one of {choices}")
        wanted.setdefault(name, []).append(value)
    chosen = [
        cell
        for cell in cells
        if all(_value_of(cell, name) in values for name, values in wanted.items())
    ]
    if not chosen:
        raise UserError(f"--only {' '.join(map(repr, only))}: no cell has all of these")
    return chosen


def _value_of(cell: Cell, name: str) -> str | None:
    value = cell.labels.get(name, cell.settings.get(name))
    return None if value is None else str(value)


def _values_of(cells: Iterable[Cell], name: str) -> list[str]:
    values = (_value_of(cell, name) for cell in cells)
    return list(dict.fromkeys(value for value in values if value is not None))
