"""All benchmarks, one after the other."""

from __future__ import annotations

import os
import time

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from simulations.bench import data, deltas, eden, memory, optimisations, packing, selection, steps
from simulations.bench.report import Report
from simulations.bench.rows import Row
from simulations.bench.sizes import Sizes
from simulations.display.terminal import live_progress

THREADS = 1
"""A device's default, and that of a simulation's worker: what is slow on one core is seen best."""

GROUPS = (steps, optimisations, selection, data, packing, deltas, eden, memory)


def run_benchmarks(sizes: Sizes, command: str, console: Console) -> Report:
    """Run all benchmarks, and say where it is."""
    started, load = time.monotonic(), os.getloadavg()[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    benchmarks = [each for group in GROUPS for each in group.benchmarks(sizes)]
    try:
        with live_progress(
            console,
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ) as progress:
            task = progress.add_task("", total=len(benchmarks))
            for benchmark in benchmarks:
                progress.update(task, description=benchmark.title)
                began = time.monotonic()
                rows += benchmark.run()
                progress.advance(task)
                progress.console.print(
                    f"{benchmark.title}: {time.monotonic() - began:.1f} s", markup=False
                )
    finally:
        torch.set_num_threads(threads)
    return Report(
        command=command,
        threads=THREADS,
        load=load,
        seconds=time.monotonic() - started,
        rows=rows,
    )
