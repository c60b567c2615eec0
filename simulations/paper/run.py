"""Run the cells of a grid that are not finished yet, and write its table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from common.config import DataConfig, ModelConfig
from common.errors import UserError
from common.units import format_duration
from simulations.display.progress import TrainingProgress
from simulations.display.terminal import print_line
from simulations.paper.cell import Workbench, find_teacher, run_cell
from simulations.paper.folder import (
    DATA_SETTINGS,
    TEACHER_SETTINGS,
    CellResult,
    ResultFolder,
    cell_key,
)
from simulations.paper.grid import Cell, Grid, title
from simulations.paper.plot import to_png
from simulations.paper.table import collect, text_tables, to_csv, to_markdown
from simulations.results.files import write_atomically


def run_cells(
    cells: Sequence[Cell],
    folder: ResultFolder,
    device: torch.device,
    console: Console,
) -> None:
    """Run what is not finished; every cell is kept as soon as it is.

    Raises:
        UserError: data or teacher are missing or are others than those of the finished cells, or
            the disk is full.
    """
    by_key: dict[str, list[Cell]] = {}
    for cell in cells:
        by_key.setdefault(cell_key(cell), []).append(cell)
    waiting = [alike for alike in by_key.values() if folder.load(alike[0]) is None]
    left = [
        (f"[{number}/{len(waiting)}] {title(alike)}", alike[0])
        for number, alike in enumerate(waiting, start=1)
    ]
    for _, cell in left:
        find_teacher(cell.config.data, cell.config.model)
    workbench = Workbench(device)
    checked: set[tuple[DataConfig, ModelConfig]] = set()
    with TrainingProgress(console, sum(cell.work for _, cell in left)) as progress:
        if num_kept := len(by_key) - len(waiting):
            progress.note(f"{num_kept} finished already, {len(waiting)} to run")
        # Cells that another process has are left for later: it may have finished them by then.
        for wait in (False, True):
            postponed = []
            for name, cell in left:
                named = (cell.config.data, cell.config.model)
                if named not in checked:
                    _check_same_data(cell, folder, workbench)
                    _check_same_teacher(cell, folder, workbench)
                    checked.add(named)
                if wait and folder.load(cell) is None:
                    progress.note(f"{name}: waiting for the process that runs it")
                with folder.claim(cell, wait=wait) as is_free:
                    if not is_free:
                        postponed.append((name, cell))
                        continue
                    result = folder.load(cell)
                    progress.begin(name, cell.work, cell.config.training.local_epochs)
                    if result is None:
                        tell = partial(_advance, progress, cell)
                        result = run_cell(cell.config, workbench, tell)
                        folder.save(cell, result)
                    progress.end(f"{name}: {describe_result(result)}")
            left = postponed


def _advance(progress: TrainingProgress, cell: Cell, share: float) -> None:
    progress.advance(share, cell.work_done(share) / cell.work)


def _check_same_data(cell: Cell, folder: ResultFolder, workbench: Workbench) -> None:
    """Refuse to mix results of two data sets that have one name."""
    beside = folder.results_beside(cell, DATA_SETTINGS)
    recorded = {result.data_fingerprint for result in beside} - {""}
    if not recorded:
        return
    mine = workbench.data_fingerprint(cell.config.data)
    others = recorded - {mine}
    if others:
        raise UserError(
            f"results folder {folder.path} was made with other images under the same name "
            f"({cell.config.data.dataset}): {min(others)[:12]} there and {mine[:12]} here; "
            f"give another folder with --out"
        )


def _check_same_teacher(cell: Cell, folder: ResultFolder, workbench: Workbench) -> None:
    """Refuse to mix results of two teachers that were kept under one name."""
    mine = workbench.teacher(cell.config.data, cell.config.model).content_hash
    beside = folder.results_beside(cell, TEACHER_SETTINGS)
    others = {result.teacher_hash for result in beside} - {mine}
    if others:
        raise UserError(
            f"results folder {folder.path} was made with another teacher under the same name "
            f"({cell.config.model.teacher}): {min(others)[:12]} there and {mine[:12]} here; "
            f"give another folder with --out"
        )


def describe_result(result: CellResult) -> str:
    """``63.21 %, training 152 s, selection 75 s``."""
    if result.accuracy is None:
        return f"diverged ({result.diverged})"
    return (
        f"{result.accuracy:.2f} %, training {format_duration(result.train_seconds)}, "
        f"selection {format_duration(result.select_seconds)}"
    )


def table_cells(grid: Grid, seeds: Sequence[int], folder: ResultFolder) -> list[Cell]:
    """The cells of some seeds, and of every other seed of which the folder has a finished one.

    Raises:
        UserError: a finished cell is of other settings.
    """
    others = [
        seed
        for seed in folder.finished_seeds() - set(seeds)
        if any(folder.load(cell) is not None for cell in grid.cells([seed]))
    ]
    return grid.cells(sorted([*seeds, *others]))


def write_tables(
    grid: Grid, cells: Sequence[Cell], folder: ResultFolder, command: str, console: Console
) -> None:
    """Print the table of the finished cells, and write it as CSV, Markdown and PNG.

    Rows and columns without any are left out, and a line says how many cells are missing. Where
    there is none at all nothing is written.

    Raises:
        UserError: a file cannot be written, or matplotlib is not installed.
    """
    found = {cell_key(cell): folder.load(cell) for cell in cells}
    results = {key: result for key, result in found.items() if result is not None}
    if not results:
        return
    entries = collect(grid, cells, results)
    for table in text_tables(grid, entries):
        table.print(console)
    num_missing = len(found) - len(results)
    note = f"Not run yet: {num_missing} of {len(found)} cells." if num_missing else ""
    if note:
        print_line(console, note)
    picture = f"{grid.name}.png"
    markdown = to_markdown(grid, entries, command=command, picture=picture, note=note)
    write_atomically(folder.path / f"{grid.name}.csv", to_csv(grid, entries).encode())
    write_atomically(folder.path / f"{grid.name}.md", markdown.encode())
    write_atomically(folder.path / picture, to_png(grid, entries))
    print_line(console, f"results: {folder.path}")


def command_line(
    table: str, seeds: Sequence[int], settings: Sequence[str], only: Sequence[str]
) -> str:
    """The command that makes the same table again (in the default folder)."""
    words = ["python", "-m", "simulations", "paper", "--table", table]
    words += ["--seeds", ",".join(map(str, seeds))]
    for option, values in (("--set", settings), ("--only", only)):
        if values:
            words += [option, *values]
    return shlex.join(words)


def default_folder(grid: Grid) -> Path:
    """Where a grid's results are kept: the same folder every time, so that it can go on."""
    return Path("runs") / "paper" / grid.name
