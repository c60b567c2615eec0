"""``python -m simulations compare`` and ``python -m simulations report``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.arguments import add_settings_argument, percentage, seed_list
from simulations.engine_options import add_engine_options, check_with, prepare_process, run_with


def add_compare_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``compare`` to a command line."""
    compare = commands.add_parser(
        "compare",
        help="run scenarios, sweeps and seeds, and report them side by side",
        description="Runs every scenario with every seed; a setting that is a list stands for "
        "each of its values. Finished runs are kept, an interrupted one goes on. Writes "
        "report.html (one file, opens offline), table.csv and table.md.",
    )
    compare.add_argument(
        "scenarios", metavar="SCENARIO", nargs="+", help="a name from `list`, or a YAML file"
    )
    compare.add_argument(
        "--seeds", metavar="LIST", type=seed_list, help="as 0,1,2 (default: the scenario's)"
    )
    add_settings_argument(
        compare, "settings of all scenarios, for example 'coreset.selection=[quarc, random]'"
    )
    compare.add_argument(
        "--out", metavar="DIR", required=True, type=Path, help="new folder, or to go on with"
    )
    _add_report_options(compare)
    compare.add_argument(
        "--report-only", action="store_true", help="run nothing, report what is finished"
    )
    add_engine_options(compare)
    compare.set_defaults(command=_compare)


def add_report_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``report`` to a command line."""
    report = commands.add_parser(
        "report",
        help="compare finished runs: tables and pictures in one HTML file",
        description="Reads run folders, takes those together that differ in their seed only, and "
        "writes report.html (one file, opens offline), table.csv and table.md.",
    )
    report.add_argument("folders", metavar="RUN_FOLDER", nargs="+", type=Path)
    report.add_argument("--out", metavar="DIR", required=True, type=Path, help="where it goes")
    _add_report_options(report)
    report.add_argument("--debug", action="store_true", help="show tracebacks")
    report.set_defaults(command=_report)


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--title", metavar="TEXT", help="of the report")
    parser.add_argument(
        "--target",
        metavar="PERCENT",
        type=percentage,
        help="also show what it took to reach this Top-1",
    )


def _compare(options: argparse.Namespace) -> int:
    # Imported late: `--help` and the other commands need none of it.
    from rich.console import Console

    from common.extras import import_extra
    from simulations.comparison.folder import ComparisonFolder
    from simulations.comparison.plots import NEEDED_FOR
    from simulations.comparison.run import check_missing, read_finished, run_missing
    from simulations.comparison.sweep import load_sweep, plan_runs
    from simulations.display.terminal import print_line
    from simulations.results.files import GOES_ON

    sweeps = [load_sweep(name, options.settings, options.seeds) for name in options.scenarios]
    runs = plan_runs(sweeps)
    # Noticed now rather than after hours of runs.
    import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    folder = ComparisonFolder(options.out, sweeps)
    console = Console()
    words = ["compare", *options.scenarios]
    words += [] if options.seeds is None else ["--seeds", ",".join(map(str, options.seeds))]
    words += ["--set", *options.settings] if options.settings else []
    words += ["--out", str(options.out)]

    def report() -> None:
        records, missing = read_finished(runs, folder)
        if records or options.report_only:
            notes = [f"Not finished: {', '.join(missing)}"] if missing else []
            _write(records, options, words, notes, console)

    failures = []
    if not options.report_only:
        prepare_process(options)
        check_missing(runs, folder, partial(check_with, options))
        try:
            with folder.claim():
                failures = run_missing(
                    runs,
                    folder,
                    partial(run_with, options),
                    console,
                    # Flower's runtime keeps its devices' states to itself: they would be lost.
                    goes_on=options.engine == "local",
                )
        except (KeyboardInterrupt, SystemExit) as stop:
            report()
            if isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt(f"interrupted{GOES_ON}") from None
            raise
    report()
    for failure in failures:
        print_line(console, f"failed: {failure}")
    return 1 if failures else 0


def _report(options: argparse.Namespace) -> int:
    # Imported late: `--help` and the other commands need none of it.
    from rich.console import Console

    from simulations.comparison.report import read_runs

    records, unfinished = read_runs(options.folders)
    notes = [f"Not finished, left out: {', '.join(map(str, unfinished))}"] if unfinished else []
    words = ["report", *map(str, options.folders), "--out", str(options.out)]
    _write(records, options, words, notes, Console())
    return 0


def _write(
    records: Sequence[Any],
    options: argparse.Namespace,
    words: Sequence[str],
    notes: Sequence[str],
    console: Any,
) -> None:
    from simulations.comparison.measures import was_reached
    from simulations.comparison.report import write_report
    from simulations.comparison.tables import Origin
    from simulations.display.terminal import print_line

    if options.target is not None and records and not was_reached(options.target, records):
        notes = [*notes, f"No run reached {options.target:g} %"]
    words = ["python", "-m", "simulations", *words]
    words += ["--title", options.title] if options.title else []
    words += ["--target", f"{options.target:g}"] if options.target is not None else []
    for note in notes:
        print_line(console, note)
    origin = Origin(
        title=options.title or "", command=shlex.join(words), notes=notes, target=options.target
    )
    write_report(records, options.out, origin, console)
