"""``python -m simulations paper``."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.arguments import add_settings_argument, seed_list


def add_paper_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``paper`` to a command line."""
    paper = commands.add_parser(
        "paper",
        help="run a grid of experiments on one device, and make its table",
        description="Runs the cells of a grid that are not finished yet, on one device and without "
        "a federation, and writes its table as CSV, Markdown and PNG. An interrupted grid goes on "
        "where it stopped; several processes may share one folder.",
    )
    paper.add_argument(
        "--table", metavar="NAME", required=True, help="a shipped grid, or a YAML file"
    )
    paper.add_argument(
        "--seeds", metavar="LIST", type=seed_list, default=[0, 1, 2], help="default: 0,1,2"
    )
    paper.add_argument("--out", metavar="DIR", help="results folder (default: runs/paper/NAME)")
    add_settings_argument(
        paper, "settings of every cell, for example quantization.activation-bits=4"
    )
    paper.add_argument(
        "--only",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="only these cells: axis=label or setting=value; several values of one key are "
        "alternatives",
    )
    paper.add_argument(
        "--device", metavar="NAME", help="torch device (default: cuda if there is one, else cpu)"
    )
    paper.add_argument("--debug", action="store_true", help="show tracebacks")
    paper.set_defaults(command=_paper)


def _paper(options: argparse.Namespace) -> int:
    # Imported late: `--help` and the other commands need none of it.
    from rich.console import Console

    from common.extras import import_extra
    from simulations.engines.terminated import end_cleanly_when_told
    from simulations.paper.folder import ResultFolder, cell_key
    from simulations.paper.grid import select_cells
    from simulations.paper.grid_file import load_grid
    from simulations.paper.plot import NEEDED_FOR
    from simulations.paper.run import (
        command_line,
        default_folder,
        run_cells,
        table_cells,
        write_tables,
    )
    from simulations.results.files import GOES_ON
    from simulations.torch_device import torch_device

    grid = load_grid(options.table, options.settings)
    chosen = select_cells(grid, grid.cells(options.seeds), options.only)
    device = torch_device(options.device)
    # Noticed now rather than after hours of cells.
    import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    folder = ResultFolder(Path(options.out) if options.out else default_folder(grid), grid)
    console = Console()

    def report() -> None:
        keys = {cell_key(cell) for cell in chosen}
        all_cells = table_cells(grid, options.seeds, folder)
        others = [cell for cell in all_cells if cell_key(cell) not in keys]
        # Where the table holds what earlier calls chose, too, --only would not make it again.
        is_of_this_call = all(folder.load(cell) is None for cell in others)
        only = options.only if is_of_this_call else []
        seeds = sorted({cell.seed for cell in all_cells})
        command = command_line(options.table, seeds, options.settings, only)
        write_tables(grid, all_cells, folder, command, console)

    end_cleanly_when_told()
    try:
        run_cells(chosen, folder, device, console)
    except (KeyboardInterrupt, SystemExit) as stop:
        report()
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted{GOES_ON}") from None
        raise
    report()
    return 0
