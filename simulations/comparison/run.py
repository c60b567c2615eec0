"""Run what is not finished of a comparison, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from common.config import Config
from common.messages import Stage
from common.units import format_duration
from simulations.comparison.fingerprints import refuse_mixture
from simulations.comparison.folder import ComparisonFolder
from simulations.comparison.records import RunRecord, read_run
from simulations.comparison.sweep import PlannedRun
from simulations.display.console import ConsoleReporter, describe_run
from simulations.display.terminal import print_line
from simulations.settings.scenario import Scenario

RunScenario = Callable[[Scenario, ConsoleReporter], object]
"""Runs a scenario, whose run folder is new or in run.resume, to its end."""


class SweepReporter(ConsoleReporter):
    """One run among many: its rounds that were evaluated, and a line at its end."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__(console)
        self._title = title

    def start(self, config: Config, run_folder: Path) -> None:
        """Say which run begins."""
        self.note(f"{self._title}: {describe_run(config)}")

    def round_done(self, stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> None:
        """Print a line for a round that was evaluated."""
        if metrics.get("accuracy") is not None:
            super().round_done(stage, round_index, metrics)
        else:
            self._progress.update(self._task, completed=round_index + 1, devices="")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print what came of it."""
        self._progress.stop()
        self._line(
            f"{self._title}: {summary['final_accuracy']:.2f} % Top-1, "
            f"{format_duration(summary['wall_seconds'])}",
            style="bold",
        )


def check_missing(
    runs: Iterable[PlannedRun], folder: ComparisonFolder, check: Callable[[Config], object]
) -> None:
    """Refuse what is not finished and known to fail, before anything is run or written.

    Raises:
        UserError: ``check`` refuses a run, or its images are missing or damaged.
    """
    waiting = [run.config for run in runs if not folder.is_finished(run)]
    for config in waiting:
        check(config)
    # Imported late: it needs torch, which reports do not.
    from common.data.datasets import configured_dataset

    # Most settings of the section are of the split: each data set is looked at once.
    data = [config.data for config in waiting]
    for each in {(one.dataset, one.root, one.image_size): one for one in data}.values():
        configured_dataset(each)


def run_missing(
    runs: Sequence[PlannedRun],
    folder: ComparisonFolder,
    run_scenario: RunScenario,
    console: Console,
    *,
    goes_on: bool,
) -> list[str]:
    """Run what is not finished; returns what failed, a line for each run.

    A run that was interrupted goes on after its last checkpoint, unless ``goes_on`` is false. A
    run that fails does not keep the others from being run; it is tried again the next time.

    Raises:
        UserError: a finished run was made with other settings, or with other data, another teacher
            or fleet under the same name.
    """
    waiting = [run for run in runs if not folder.is_finished(run)]
    if waiting:
        refuse_mixture(folder.finished_runs(), [run.config for run in waiting])
    if len(waiting) < len(runs):
        print_line(console, f"{len(runs) - len(waiting)} finished already, {len(waiting)} to run")
    failures = []
    started, work_done = time.monotonic(), 0.0
    total_work = sum(run.work for run in waiting)
    for number, run in enumerate(waiting, start=1):
        place = folder.prepare(run, partial(print_line, console), goes_on=goes_on)
        settings = {**run.settings, **place}
        scenario = Scenario(settings=settings, config=Config.from_flat(settings))
        try:
            with SweepReporter(console, f"[{number}/{len(waiting)}] {run.name}") as reporter:
                run_scenario(scenario, reporter)
        except Exception as error:  # whatever it is: the other runs go on
            failures.append(f"{run.name}: {type(error).__name__}: {error}")
            print_line(console, f"failed: {failures[-1]}")
        work_done += run.work
        if number < len(waiting):
            left = (time.monotonic() - started) * (total_work / work_done - 1)
            print_line(console, f"about {format_duration(left)} left")
    return failures


def read_finished(
    runs: Sequence[PlannedRun], folder: ComparisonFolder
) -> tuple[list[RunRecord], list[str]]:
    """The finished runs, and the names of the others.

    Raises:
        UserError: a finished run is damaged or was made with other settings, or some were made
            with other data, teachers or fleets under the same name than others.
    """
    finished = [run for run in runs if folder.is_finished(run)]
    missing = [run.name for run in runs if run not in finished]
    records = [read_run(folder.run_folder(run), run.label) for run in finished]
    refuse_mixture(records)
    return records, missing
