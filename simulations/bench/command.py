"""``python -m simulations bench``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common.errors import UserError

DEFAULT_FOLDER = Path("docs/results")


def add_bench_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``bench`` to a command line."""
    bench = commands.add_parser(
        "bench",
        help="measure how fast the project is, beside its peers",
        description="Times training steps, selection, augmentation, packing and updates beside "
        "their peers, and the memory of a device, on synthetic data. Writes bench.json and "
        "bench.md. Leave the machine to it: it takes minutes.",
    )
    bench.add_argument(
        "--quick", action="store_true", help="only check that every benchmark runs: tiny sizes"
    )
    bench.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f"where to (default: {DEFAULT_FOLDER}; with --quick: nowhere)",
    )
    bench.add_argument("--debug", action="store_true", help="show tracebacks")
    bench.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    # Imported late: `--help` and the other commands need none of it.
    from rich.console import Console

    from simulations.bench.report import JSON_FILE, MARKDOWN_FILE
    from simulations.bench.run import run_benchmarks
    from simulations.bench.sizes import FULL, QUICK

    command = "python -m simulations bench" + (" --quick" if options.quick else "")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="fedquarc-bench-") as temporary:
        if options.out is not None or not options.quick:
            folder = options.out or DEFAULT_FOLDER
        else:
            folder = Path(temporary)
        _require_folder(folder)
        report = run_benchmarks(QUICK if options.quick else FULL, command, console)
        report.write(folder)
        if options.quick:
            console.print("Every benchmark runs; figures of such small sizes mean nothing.")
        else:
            report.show(console)
            console.print(f"{folder / JSON_FILE} and {folder / MARKDOWN_FILE} are written.")
    return 0


def _require_folder(folder: Path) -> None:
    """Make it before minutes are spent.

    Raises:
        UserError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made: {error.strerror}") from error
