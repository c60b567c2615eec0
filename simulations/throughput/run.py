"""The comparison: both sides one after the other for each number of devices, and a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.extras import import_extra
from server.records.summary import versions
from simulations.runner import PROJECT_FOLDER
from simulations.throughput.process_tree import tree_bytes
from simulations.throughput.task import Timing

OWN, STOCK = "simulations.throughput.own", "simulations.throughput.stock"
MAIN = """
import dataclasses, json, pathlib, sys
from {module} import run
*numbers, result = sys.argv[1:]
pathlib.Path(result).write_text(json.dumps(dataclasses.asdict(run(*map(int, numbers)))))
"""
"""Not a module's own ``__main__``, which every worker process would import again."""

SAMPLE_SECONDS = 1.0
"""Between two looks at the memory."""

FEWEST_FITS = 200
"""Fits that the rounds which are measured have at least, where devices are few."""

HEADER = (
    "| devices | rounds measured | local engine | Flower on Ray | ratio | local engine, CPU "
    "| Flower on Ray, CPU | ratio | local engine, peak | Flower on Ray, peak |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One side at one number of devices."""

    fits_per_second: float
    """After the first round, in which processes start and load."""
    cpu_seconds_per_fit: float
    """Processor time of all processes, after the first round."""
    peak_bytes: int
    """Of all processes together."""


def compare(numbers: Sequence[int], num_workers: int, tell: Callable[[str], None]) -> None:
    """Measure both sides and tell a Markdown table, a line at a time.

    Args:
        numbers: of devices.
        num_workers: devices that train at the same time, one thread each.
        tell: called with every line.

    Raises:
        UserError: if Ray is not installed, or a side failed.
    """
    import_extra("ray", needed_for="Flower's own simulation")
    told = versions()
    tell(f"{num_workers} workers, one thread each; torch {told['torch']}, Flower {told['flwr']}\n")
    tell(HEADER.rstrip())
    for num_devices in numbers:
        num_measured = max(1, min(10, FEWEST_FITS // num_devices))
        own, stock = (
            measure(module, num_devices, 1 + num_measured, num_workers) for module in (OWN, STOCK)
        )
        tell(table_row(num_devices, num_measured, own, stock))


def table_row(num_devices: int, num_rounds: int, own: Measurement, stock: Measurement) -> str:
    """One line of the table."""
    return (
        f"| {num_devices:,} | {num_rounds} | {own.fits_per_second:.1f} fits/s "
        f"| {stock.fits_per_second:.1f} fits/s "
        f"| {own.fits_per_second / stock.fits_per_second:.1f} "
        f"| {1e3 * own.cpu_seconds_per_fit:.1f} ms/fit "
        f"| {1e3 * stock.cpu_seconds_per_fit:.1f} ms/fit "
        f"| {stock.cpu_seconds_per_fit / own.cpu_seconds_per_fit:.1f} "
        f"| {own.peak_bytes / 1e6:,.0f} MB | {stock.peak_bytes / 1e6:,.0f} MB |"
    )


def measure(module: str, num_devices: int, num_rounds: int, num_workers: int) -> Measurement:
    """Run one side in a process of its own.

    Raises:
        UserError: if it failed, or not every device answered in every round.
    """
    with tempfile.TemporaryDirectory(prefix="fedquarc-throughput-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        numbers = map(str, (num_devices, num_rounds, num_workers))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", MAIN.format(module=module), *numbers, str(result)],
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            try:
                peak = _peak_until_end(process)
            finally:
                process.kill()
                process.wait()
        if process.returncode or not result.exists():
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise UserError(f"{module} failed with {num_devices} devices: {lines[-1]}")
        timing = Timing(**json.loads(result.read_text(encoding="utf-8")))
    if timing.num_fits != num_devices * num_rounds:
        raise UserError(
            f"{module}: {timing.num_fits} answers of {num_devices} devices in {num_rounds} rounds"
        )
    num_fits = num_devices * (num_rounds - 1)
    return Measurement(
        fits_per_second=num_fits / _after_the_first(timing.ended),
        cpu_seconds_per_fit=_after_the_first(timing.cpu_seconds) / num_fits,
        peak_bytes=peak,
    )


def _after_the_first(round_ends: Sequence[float]) -> float:
    return round_ends[-1] - round_ends[0]


def _peak_until_end(process: subprocess.Popen[bytes]) -> int:
    """The most memory that the process and its descendants were seen to have."""
    peak, is_over = 0, threading.Event()

    def watch() -> None:
        process.wait()
        is_over.set()

    threading.Thread(target=watch, daemon=True).start()
    while not is_over.wait(SAMPLE_SECONDS):
        peak = max(peak, tree_bytes(process.pid))
    return peak


def _environment(folder: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(PROJECT_FOLDER), os.environ.get("PYTHONPATH", "")])
        ),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
    }
