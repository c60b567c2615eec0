"""Federations and experiments on this machine (python -m simulations).

Exit codes: 0 done, 1 failed, 2 bad input (nothing was written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from common.arguments import add_settings_argument, run_command
from common.errors import UserError
from common.settings import Scalar
from server.records.recorder import CONFIG_FILE
from simulations.bench.command import add_bench_command
from simulations.comparison.command import add_compare_command, add_report_command
from simulations.display.terminal import print_line
from simulations.engine_options import add_engine_options, prepare_process, run_with
from simulations.engines.allocator import keep_freed_memory
from simulations.paper.command import add_paper_command
from simulations.planner.command import add_plan_command
from simulations.pretraining.command import add_pretrain_command
from simulations.settings.scenario import load_scenario, parse_overrides
from simulations.settings.shipped import FLEETS, GRIDS, SCENARIOS
from simulations.throughput.command import add_throughput_command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    # Read when torch is loaded, later. Server and workers share the cores: a thread that spins
    # while it waits made evaluations up to a hundred times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    try:
        return run_command(options, _say)
    except Exception as error:
        if options.debug:
            raise
        _say(f"error: {type(error).__name__}: {error} (--debug shows where)")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a federation on this machine")
    run.add_argument(
        "scenario",
        metavar="SCENARIO",
        nargs="?",
        help="a name from `list`, or a YAML file (default with --resume: the run's settings)",
    )
    add_settings_argument(run, "replace settings of the scenario, for example data.alpha=0.1")
    run.add_argument("--out", metavar="DIR", help="new or empty folder for the results")
    run.add_argument(
        "--fleet",
        metavar="FLEET",
        help="emulate this hardware in virtual time: a shipped fleet or a YAML file",
    )
    run.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder that was killed"
    )
    add_engine_options(run)
    run.set_defaults(command=_run)

    add_compare_command(commands)
    add_report_command(commands)
    add_plan_command(commands)
    add_paper_command(commands)
    add_pretrain_command(commands)
    add_bench_command(commands)
    add_throughput_command(commands)

    show = commands.add_parser("list", help="list scenarios, fleets and grids")
    show.set_defaults(command=_list, debug=False)

    settings = commands.add_parser("settings", help="print every setting, its default and meaning")
    settings.set_defaults(command=_settings, debug=False)
    return parser


def _run(options: argparse.Namespace) -> int:
    overrides = [*options.settings]
    if options.out is not None:
        if "run.out" in parse_overrides(overrides):
            raise UserError("run.out is set twice: by --set and by --out")
        overrides.append(f"run.out={_quoted(options.out)}")
    if options.fleet is not None:
        # Imported late: it needs torch.
        from simulations.emulation.fleet_file import fleet_overrides

        overrides += fleet_overrides(options.fleet, parse_overrides(overrides))
    if options.resume is not None:
        if "run.resume" in parse_overrides(overrides):
            raise UserError("run.resume is set twice: by --set and by --resume")
        if not Path(options.resume).is_dir():
            raise UserError(f"--resume {options.resume}: expected the folder of a run")
        overrides.append(f"run.resume={_quoted(options.resume)}")
        if options.scenario is None and "run.out" not in parse_overrides(overrides):
            # Its settings name the folder that it was begun in.
            overrides.append("run.out=")
    scenario = load_scenario(_scenario_of(options), overrides, _fit_settings)
    prepare_process(options)

    # Imported late: `list` and bad input need no Flower.
    from simulations.display.console import ConsoleReporter

    with ConsoleReporter(Console()) as reporter:
        try:
            run_with(options, scenario, reporter)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(options, reporter.run_folder)) from None
    return 0


def _fit_settings(settings: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    if not settings.get("fleet.name"):
        return settings
    # Imported late: it needs torch.
    from simulations.emulation.fleet_file import fit_settings

    return fit_settings(settings)


def _scenario_of(options: argparse.Namespace) -> str:
    """What is to be run: of a run that goes on, by default, what it was begun with."""
    if options.scenario is not None:
        return str(options.scenario)
    if options.resume is None:
        raise UserError("run: expected a SCENARIO (`list` names them), or --resume DIR")
    settings = Path(options.resume) / CONFIG_FILE
    if not settings.is_file():
        raise UserError(f"--resume {options.resume}: there is no {CONFIG_FILE}: name its SCENARIO")
    return str(settings)


def _how_to_go_on(options: argparse.Namespace, run_folder: Path | None) -> str:
    if run_folder is None or not (run_folder / CONFIG_FILE).exists():
        return "interrupted"
    command = ["python", "-m", "simulations", "run", "--resume", str(run_folder)]
    if options.engine != "local":
        command += ["--engine", options.engine]
    return f"interrupted; to go on after the last finished round: {shlex.join(command)}"


def _list(options: argparse.Namespace) -> int:
    shipped = {
        "scenarios (run NAME)": SCENARIOS.descriptions(),
        "fleets (run SCENARIO --fleet NAME, plan --fleet NAME)": FLEETS.descriptions(),
        "grids (paper --table NAME)": GRIDS.descriptions(),
    }
    width = max(len(name) for descriptions in shipped.values() for name in descriptions)
    for title, descriptions in shipped.items():
        sys.stdout.write(f"{title}\n")
        for name, description in descriptions.items():
            sys.stdout.write(f"  {name:{width}}  {description}\n")
    return 0


def _settings(options: argparse.Namespace) -> int:
    from simulations.settings.reference import settings_toml

    sys.stdout.write(settings_toml())
    return 0


def _quoted(text: str) -> str:
    """A YAML string, whatever it looks like."""
    return "'" + text.replace("'", "''") + "'"


def _say(line: str) -> None:
    print_line(Console(stderr=True), line, style="red")
