"""One scenario from settings to summary, in either engine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from common.checkpoints import resolve_teacher
from common.config import ASYNCHRONOUS, Config
from common.errors import UserError
from common.paths import without_tilde
from common.settings import Scalar
from server.checkpoints.device_states import device_folder
from server.records.recorder import SUMMARY_FILE, check_run_folder, default_run_folder
from server.requirements import check_mixed_bits, refuse_emulation, required_replies
from simulations.display.console import ConsoleReporter
from simulations.emulation.fleet import DeviceFleet, check_fleet
from simulations.emulation.fleet_file import load_fleet
from simulations.engines.local import LocalGrid
from simulations.engines.ray_runtime import run_on_ray
from simulations.settings.scenario import Scenario

CLIENT_APP = "client.app:app"
HOSTILE_APP = "simulations.attacks:app"
PROJECT_FOLDER = Path(__file__).resolve().parents[1]


def default_workers() -> int:
    """One worker for every CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_scenario(
    scenario: Scenario,
    reporter: ConsoleReporter,
    *,
    engine: str = "local",
    num_workers: int,
    debug: bool = False,
) -> None:
    """Run a federation.

    Args:
        scenario: What to run, with as many devices as its fleet has.
        reporter: Shows what happens.
        engine: ``local`` or ``ray``.
        num_workers: Devices emulated at the same time; 0 (local only): one, in this process.
        debug: Show everything that Flower and Ray log.

    Raises:
        UserError: for what a user can mend; nothing is written then.
        RunFailedError: if a run on Ray was not completed.
    """
    fleet = check_run(scenario.config, engine)
    run_folder = default_run_folder(scenario.config)
    if not scenario.config.run.resume:
        check_run_folder(run_folder)
    if engine == "ray":
        _run_on_ray(scenario, reporter, run_folder, num_workers, debug)
    else:
        _run_locally(scenario, reporter, run_folder, num_workers, fleet)


def check_run(config: Config, engine: str) -> DeviceFleet | None:
    """Refuse what can be known to fail before anything is loaded or written.

    Returns:
        The fleet that is emulated, if one is.

    Raises:
        UserError: the teacher is missing, or settings, fleet and engine do not go together.
    """
    check_mixed_bits(config)
    required_replies(config)
    resolve_teacher(config.model.teacher, config.model.name, config.data.dataset)
    if not config.fleet.name:
        refuse_emulation(config)
        return None
    fleet = load_fleet(config.fleet.name)
    if engine != "local":
        raise UserError(f"fleet.name = '{fleet.name}': expected none with --engine {engine}")
    check_fleet(fleet, config)
    return fleet


def _run_locally(
    scenario: Scenario,
    reporter: ConsoleReporter,
    run_folder: Path,
    num_workers: int,
    fleet: DeviceFleet | None,
) -> None:
    config = scenario.config
    emulated = None
    if fleet is not None:
        from simulations.emulation.run import EmulatedRun

        emulated = EmulatedRun(fleet, config)
    with LocalGrid(
        client_app=CLIENT_APP if config.attack.name == "none" else HOSTILE_APP,
        run_config=config.to_flat(),
        num_nodes=config.data.num_devices,
        num_workers=min(num_workers, config.data.num_devices),
        threads=config.run.threads,
        on_reply=reporter.replied,
        node_config=emulated.node_config() if emulated else None,
        state_folder=device_folder(run_folder),
        in_order=config.strategy.name == ASYNCHRONOUS,
    ) as grid:
        # Imported now: it takes seconds, in which the workers do the same.
        if emulated is not None:
            emulated.run(grid, reporter, run_folder)
            return
        from server.app import run_federation

        _check_split(config)
        run_federation(grid, config, reporter, run_folder, device_states=device_folder(run_folder))


def _check_split(config: Config) -> None:
    """Make the split once: what is wrong with it every device would find out, one by one."""
    from common.data.datasets import configured_dataset
    from common.data.partition import configured_split

    labels = configured_dataset(config.data).train.labels
    configured_split(labels, config.data, config.run.seed)


def _run_on_ray(
    scenario: Scenario,
    reporter: ConsoleReporter,
    run_folder: Path,
    num_workers: int,
    debug: bool,
) -> None:
    if num_workers < 1:
        raise UserError(f"--workers = {num_workers}: expected at least 1 with --engine ray")
    if scenario.config.attack.name != "none":
        raise UserError(
            f"attack.name = {scenario.config.attack.name!r}: expected 'none' with --engine ray"
        )
    started = time.perf_counter()
    out = "" if scenario.config.run.resume else str(run_folder)
    reporter.start(scenario.config, run_folder)
    run_on_ray(
        absolute_paths({**scenario.settings, "run.out": out}),
        PROJECT_FOLDER,
        num_devices=scenario.config.data.num_devices,
        num_cpus=num_workers,
        tell=reporter.note,
        tell_all=debug,
    )
    reporter.note(f"Flower's Simulation Runtime took {time.perf_counter() - started:.1f} s in all")
    reporter.finish(json.loads((run_folder / SUMMARY_FILE).read_text(encoding="utf-8")))


def absolute_paths(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings with paths that hold in any working directory: a bundled app has its own."""
    absolute = dict(settings)
    for key, word in (
        ("run.out", None),
        ("run.resume", None),
        ("data.root", None),
        ("model.teacher", "shipped"),
    ):
        value = settings.get(key)
        if isinstance(value, str) and value and value != word:
            absolute[key] = str(without_tilde(value).resolve())
    return absolute
