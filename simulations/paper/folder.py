"""A folder of finished cells: one JSON file each, so that an interrupted grid can go on.

A cell's file is written under another name and renamed: a process killed in the middle leaves a
cell that is not there, and it is run again. Its name is a hash of the cell's settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.lock import hold
from common.settings import Scalar
from simulations.paper.grid import Cell, Grid
from simulations.results.files import GOES_ON, write_atomically
from simulations.settings.scenario import PLACES

FORMAT = 1
GRID_FILE = "grid.json"
CELL_FOLDER = "cells"
DATA_SETTINGS = ("data.dataset", "data.image-size")
"""What names a cell's images."""
TEACHER_SETTINGS = ("data.dataset", "model.name", "model.teacher")
"""What a cell's teacher is found by."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What came of one cell. Evaluation and loading are in none of the times."""

    accuracy: float | None
    """Top-1 of the quantized model after the last epoch, on the test images, percent; None: the
    training diverged."""
    diverged: str
    """What was not finite; empty: nothing."""
    teacher_accuracy: float
    """Top-1 of the float teacher, percent."""
    teacher_hash: str
    mean_loss: float | None
    """Of a training sample, over all epochs."""
    coreset_size: int
    num_selections: int
    num_seen: int
    """Training images, all epochs together."""
    select_seconds: float
    """Wall-clock time of all selections, the teacher's outputs for them included."""
    train_seconds: float
    """Wall-clock time of all training steps."""
    select_cpu_seconds: float
    """Processor time of all threads."""
    train_cpu_seconds: float
    """Processor time of all threads."""
    device: str
    """What it ran on: "cpu", or the GPU's name."""
    versions: Mapping[str, str]
    data_fingerprint: str = ""
    """See `common.data.data_fingerprint`; empty in a cell from before it was recorded."""


class ResultFolder:
    """The finished cells of one grid.

    Args:
        path: the folder; made when the first cell is claimed or kept.
        grid: what the cells are of.

    Raises:
        UserError: the folder holds another grid, other settings or other files.
    """

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UserError(f"results folder {path}: expected a folder, found a file")
        recorded = _read_grid(path / GRID_FILE)
        mine = describe_grid(grid)
        if recorded is None:
            if path.is_dir() and any(path.iterdir()):
                raise UserError(
                    f"results folder {path} is not empty and holds no {GRID_FILE}: expected a new "
                    f"or empty folder, or one of this grid"
                )
            self._to_record: dict[str, Any] | None = mine
            return
        difference = first_difference(recorded, mine)
        if difference is not None:
            raise UserError(
                f"results folder {path} was made with other settings: {difference}; "
                f"give another folder with --out"
            )
        merged = {**mine, "axes": _merge(recorded["axes"], mine["axes"])}
        self._to_record = None if merged == recorded else merged

    def load(self, cell: Cell) -> CellResult | None:
        """A cell's result; None when it is not finished or its file is damaged.

        Raises:
            UserError: the file is of a cell whose defaults were others.
        """
        path = self._file(cell)
        kept = _read_cell(path)
        if kept is None:
            return None
        recorded, result = kept
        for key, value in resolved_settings(cell).items():
            # A setting that was added since then kept the earlier behaviour as its default.
            if key in recorded and recorded[key] != value:
                raise UserError(
                    f"results folder {self.path} was made with other settings: {key} = "
                    f"{recorded[key]!r} in {path.name}, now {value!r}; give another folder "
                    f"with --out"
                )
        return result

    def finished_seeds(self) -> set[int]:
        """Of all finished cells."""
        found = map(_read_cell, (self.path / CELL_FOLDER).glob("*.json"))
        return {int(recorded["run.seed"]) for recorded, _ in filter(None, found)}

    def results_beside(self, cell: Cell, keys: Sequence[str]) -> list[CellResult]:
        """Of all finished cells, of any seed, that have these settings in common with this one."""
        settings = resolved_settings(cell)
        found = map(_read_cell, (self.path / CELL_FOLDER).glob("*.json"))
        return [
            result
            for recorded, result in filter(None, found)
            if all(recorded.get(key) == settings[key] for key in keys)
        ]

    @contextlib.contextmanager
    def claim(self, cell: Cell, *, wait: bool) -> Iterator[bool]:
        """While entered, no other process that shares the folder runs this cell.

        Args:
            cell: to be run.
            wait: until another process that has it is done or dead; False: give way to it.

        Yields:
            Whether the cell is free to be run (it may have been finished meanwhile).

        Raises:
            UserError: the folder cannot be written.
        """
        self._record_grid()
        lock = self.path / CELL_FOLDER / f".{cell_key(cell)}.lock"
        with hold(lock, wait_seconds=math.inf if wait else 0.0) as is_free:
            yield is_free

    def save(self, cell: Cell, result: CellResult) -> None:
        """Keep a finished cell.

        Raises:
            UserError: it cannot be written; the cells finished before are untouched.
        """
        self._record_grid()
        content = {
            "format": FORMAT,
            "labels": dict(cell.labels),
            "seed": cell.seed,
            "settings": resolved_settings(cell),
            "result": dataclasses.asdict(result),
        }
        _write_json(self._file(cell), content)

    def _record_grid(self) -> None:
        if self._to_record is not None:
            _write_json(self.path / GRID_FILE, self._to_record)
            self._to_record = None

    def _file(self, cell: Cell) -> Path:
        return self.path / CELL_FOLDER / f"{cell_key(cell)}.json"


def cell_key(cell: Cell) -> str:
    """16 hex digits: a hash of the settings that the grid gives, and the seed.

    Cells of different labels but the same settings have the same key, and are run once.
    """
    settings = {key: value for key, value in cell.settings.items() if key not in PLACES}
    text = json.dumps([cell.seed, sorted(settings.items())])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def resolved_settings(cell: Cell) -> dict[str, Scalar]:
    """All settings of a cell, defaults included, but for where things are."""
    return {key: value for key, value in cell.config.to_flat().items() if key not in PLACES}


def describe_grid(grid: Grid) -> dict[str, Any]:
    """What a results folder remembers of its grid."""
    return {
        "format": FORMAT,
        "grid": grid.name,
        "settings": {key: value for key, value in grid.settings.items() if key not in PLACES},
        "axes": {
            axis.name: {label: dict(bundle) for label, bundle in axis.choices.items()}
            for axis in grid.axes
        },
    }


def first_difference(recorded: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """Where two grids contradict each other, in words; None where one may only have more choices.

    An axis may gain choices: cells that are finished stay valid. A choice that both have must
    mean the same.
    """
    for name in ("format", "grid"):
        if recorded.get(name) != mine[name]:
            return f"{name} is {recorded.get(name)!r} there and {mine[name]!r} here"
    pairs = [("", recorded["settings"], mine["settings"])]
    theirs, ours = recorded["axes"], mine["axes"]
    if sorted(theirs) != sorted(ours):
        return f"its axes are {', '.join(theirs)} there and {', '.join(ours)} here"
    for axis, choices in ours.items():
        pairs += [
            (f" in {axis} {label}", theirs[axis][label], choices[label])
            for label in choices
            if label in theirs[axis]
        ]
    for where, there, here in pairs:
        for key in dict.fromkeys([*here, *there]):
            if there.get(key) != here.get(key):
                return (
                    f"{key}{where} is {there.get(key, 'not set')!r} there and "
                    f"{here.get(key, 'not set')!r} here"
                )
    return None


def _merge(
    theirs: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {axis: {**theirs[axis], **choices} for axis, choices in ours.items()}


def _read_grid(path: Path) -> dict[str, Any] | None:
    """What a folder remembers of its grid; None when there is nothing."""
    content = _read_json(path)
    if content is None and not path.exists():
        return None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), dict) for part in ("settings", "axes")
    ):
        raise UserError(f"{path} is damaged: give another folder with --out")
    return content


def _read_cell(path: Path) -> tuple[Mapping[str, Scalar], CellResult] | None:
    """Settings and result; None when there are none or they are damaged."""
    content = _read_json(path)
    try:
        if content is None or content["format"] != FORMAT:
            return None
        return dict(content["settings"]), CellResult(**content["result"])
    except (KeyError, TypeError, ValueError):
        return None


def _read_json(path: Path) -> Any:
    """The content, or None when there is none or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError:
        return None


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n", hint=GOES_ON)
