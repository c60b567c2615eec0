"""Small grids and results for the tests of simulations.paper."""

from __future__ import annotations

from pathlib import Path

from simulations.paper.folder import CellResult
from simulations.paper.grid import Grid
from simulations.paper.grid_file import load_grid

GRID = """\
# A small grid
#
# Digits, for tests.
# As small as can be.
settings:
  data: {dataset: digits}
  model: {name: resnet8, teacher: shipped}
  training: {batch-size: 32}
axes:
  method: {setting: coreset.selection, values: [random, res]}
  share:
    5 %: {coreset: {fraction: 0.05}, training: {local-epochs: 2}}
    10 %: {coreset: {fraction: 0.1}, training: {local-epochs: 1}}
table:
  rows: method
  columns: share
"""


def write_grid(folder: Path, text: str = GRID, name: str = "small") -> Path:
    """A grid file."""
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def make_grid(folder: Path, text: str = GRID, overrides: tuple[str, ...] = ()) -> Grid:
    """A grid, read from a file."""
    return load_grid(str(write_grid(folder, text)), overrides)


def make_result(
    accuracy: float | None = 60.0,
    *,
    train_seconds: float = 10.0,
    select_seconds: float = 1.0,
    teacher_hash: str = "0" * 64,
    data_fingerprint: str = "",
) -> CellResult:
    """A result; None for an accuracy: the training diverged. Processor time is twice the wall's."""
    return CellResult(
        accuracy=accuracy,
        diverged="" if accuracy is not None else "loss is nan in step 3",
        teacher_accuracy=66.0,
        teacher_hash=teacher_hash,
        mean_loss=1.0,
        coreset_size=50,
        num_selections=2,
        num_seen=100,
        select_seconds=select_seconds,
        train_seconds=train_seconds,
        select_cpu_seconds=2 * select_seconds,
        train_cpu_seconds=2 * train_seconds,
        device="cpu",
        versions={"torch": "2", "python": "3"},
        data_fingerprint=data_fingerprint,
    )
