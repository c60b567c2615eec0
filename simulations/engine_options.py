"""How scenarios are run, as options of the command line: shared by ``run`` and ``compare``."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING

from common.arguments import at_least
from simulations.engines.terminated import end_cleanly_when_told

if TYPE_CHECKING:
    from common.config import Config
    from simulations.display.console import ConsoleReporter
    from simulations.settings.scenario import Scenario

ENGINES = ("local", "ray")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --workers and --debug."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="local: worker processes; ray: Flower's Simulation Runtime (default: local)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=at_least(0),
        help="devices emulated at the same time; 0: one, in this process (default: every CPU)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and all logs")


def prepare_process(options: argparse.Namespace) -> None:
    """Logging, signals and Flower's telemetry, once before anything runs."""
    if options.debug:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("simulations").setLevel(logging.DEBUG)
    end_cleanly_when_told()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


def run_with(options: argparse.Namespace, scenario: Scenario, reporter: ConsoleReporter) -> None:
    """Run one scenario as the options say."""
    # Imported late: what only lists or reports needs no Flower.
    from simulations.runner import default_workers, run_scenario

    run_scenario(
        scenario,
        reporter,
        engine=options.engine,
        num_workers=default_workers() if options.workers is None else options.workers,
        debug=options.debug,
    )


def check_with(options: argparse.Namespace, config: Config) -> None:
    """Refuse a run that is known to fail as the options say; see `simulations.runner.check_run`."""
    # Imported late, as above.
    from simulations.runner import check_run

    check_run(config, options.engine)
