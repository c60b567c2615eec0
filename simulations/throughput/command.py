"""``python -m simulations throughput``."""

from __future__ import annotations

import argparse
import sys

from common.arguments import at_least
from simulations.engine_options import prepare_process


def add_throughput_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``throughput`` to a command line."""
    throughput = commands.add_parser(
        "throughput",
        help="emulated devices a second, against Flower's own simulation",
        description="Trains the same float model on the same batches with this project's engine "
        "and with a plain Flower app on Ray, one after the other, and prints a table: devices "
        "trained a second, after a first round in which processes start, and the peak memory of "
        "all processes.",
    )
    throughput.add_argument(
        "--devices",
        metavar="N",
        type=at_least(2),
        nargs="+",
        default=[10, 100, 1000],
        help="numbers of devices (default: 10 100 1000)",
    )
    throughput.add_argument(
        "--workers",
        metavar="N",
        type=at_least(1),
        help="devices that train at the same time (default: every CPU)",
    )
    throughput.add_argument("--debug", action="store_true", help="show tracebacks")
    throughput.set_defaults(command=_throughput)


def _throughput(options: argparse.Namespace) -> int:
    prepare_process(options)

    # Imported late: other commands need neither Flower nor this.
    from simulations.runner import default_workers
    from simulations.throughput.run import compare

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    compare(options.devices, options.workers or default_workers(), tell)
    return 0
