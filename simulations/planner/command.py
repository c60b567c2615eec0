"""``python -m simulations plan``."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.arguments import add_settings_argument, at_least


def add_plan_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``plan`` to a command line."""
    plan = commands.add_parser(
        "plan",
        help="what rounds would cost on a very large fleet, without training",
        description="Emulates rounds in virtual time without training anything: who is there, who "
        "is late or breaks off, how long a round takes, what the server's line has to carry, and "
        "energy. Message sizes and operations are measured on the configured model.",
    )
    plan.add_argument("--fleet", metavar="FLEET", required=True, help="a shipped fleet, or a file")
    plan.add_argument(
        "--devices", metavar="N", type=at_least(1), help="default: the fleet's or the scenario's"
    )
    plan.add_argument("--rounds", metavar="N", type=at_least(1), help="default: the scenario's")
    plan.add_argument(
        "--samples",
        metavar="N",
        type=at_least(1),
        default=500,
        help="training images of a device (default: 500)",
    )
    plan.add_argument(
        "--scenario", metavar="SCENARIO", default="cifar100", help="default: cifar100"
    )
    add_settings_argument(plan, "settings, for example fleet.deadline=60 federation.fraction=0.01")
    plan.add_argument(
        "--out", metavar="DIR", type=Path, help="write rounds.csv and rounds.png there"
    )
    plan.add_argument("--debug", action="store_true", help="show tracebacks")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    # Imported late: `--help` and the other commands need none of it.
    from simulations.planner.run import run_plan

    run_plan(
        options.fleet,
        options.scenario,
        options.settings,
        num_devices=options.devices,
        num_rounds=options.rounds,
        num_samples=options.samples,
        out=options.out,
    )
    return 0
