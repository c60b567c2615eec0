"""One plan from its options to tables and files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from common.units import format_bytes, format_count
from simulations.display.terminal import print_line
from simulations.emulation.fleet import NUM_DEVICES, DeviceFleet
from simulations.emulation.fleet_file import load_fleet
from simulations.emulation.flops import count_flops
from simulations.emulation.hardware import Emulation
from simulations.emulation.workload import Workload
from simulations.planner.payload import known_inputs, measure_messages
from simulations.planner.plot import to_png
from simulations.planner.rounds import FleetPlan
from simulations.planner.summary import classes_table, rounds_table, to_csv, totals
from simulations.results.files import write_atomically
from simulations.settings.scenario import load_scenario, parse_overrides

NUM_ROUNDS = "federation.num-rounds"
CSV_FILE, PICTURE_FILE = "rounds.csv", "rounds.png"


def run_plan(
    fleet_name: str,
    scenario_name: str,
    overrides: Sequence[str],
    *,
    num_devices: int | None,
    num_rounds: int | None,
    num_samples: int,
    out: Path | None,
) -> None:
    """Plan the rounds, print their tables and, with ``out``, write rounds.csv and rounds.png.

    Args:
        fleet_name: a shipped fleet, or a YAML file; one of a fixed number of devices is scaled.
        scenario_name: a shipped scenario, or a YAML file.
        overrides: ``key=value`` settings.
        num_devices: None: that of ``overrides``, the fleet's own number, or the scenario's.
        num_rounds: None: that of ``overrides``, or the scenario's.
        num_samples: training images of a device.
        out: folder of the files.

    Raises:
        UserError: for what a user can mend.
    """
    given = parse_overrides(overrides)
    for key, option, value in (
        ("fleet.name", "--fleet", fleet_name),
        (NUM_DEVICES, "--devices", num_devices),
        (NUM_ROUNDS, "--rounds", num_rounds),
    ):
        if value is not None and key in given:
            raise UserError(f"{key} is set twice: by --set and by {option}")
    console = Console()
    fleet = load_fleet(fleet_name)
    counts: dict[str, Scalar] = {}
    if num_devices or (fleet.num_devices and NUM_DEVICES not in given):
        counts[NUM_DEVICES] = num_devices or fleet.num_devices
    if num_rounds is not None:
        counts[NUM_ROUNDS] = num_rounds
    config = load_scenario(scenario_name, overrides, lambda settings: {**settings, **counts}).config
    fleet = scale_fleet(fleet, config.data.num_devices)
    started = time.perf_counter()
    plan = make_plan(fleet, config, num_samples=num_samples)
    sizes, training = plan.sizes, plan.workload.training_step()
    title = (
        f"{format_count(config.data.num_devices, 'device')} of {fleet.name}, {config.model.name} "
        f"on {config.data.dataset}, {format_count(num_samples, 'image')} each"
    )
    change = ""
    if sizes.change_request_bytes:
        change = f"; with a change {format_bytes(sizes.change_request_bytes[0])}"
    for line in (
        f"{title}, seed {config.run.seed}",
        f"request {format_bytes(sizes.request_bytes)} (the first, with the teacher, "
        f"{format_bytes(sizes.first_request_bytes)}{change}), reply {sizes.describe_replies()} "
        f"(as float32 {format_bytes(sizes.float32_reply_bytes)}), "
        f"{training / 1e6:.4g} MFLOP to train on an image",
    ):
        print_line(console, line)
    rounds = list(plan.run())
    for table in (rounds_table(rounds), classes_table(plan)):
        table.print(console)
    for line in totals(rounds):
        print_line(console, line)
    if out is not None:
        write_atomically(out / CSV_FILE, to_csv(rounds).encode())
        write_atomically(out / PICTURE_FILE, to_png(title, rounds))
        print_line(console, f"results: {out}")
    print_line(console, f"took {time.perf_counter() - started:.1f} s", style="dim")


def make_plan(fleet: DeviceFleet, config: Config, *, num_samples: int) -> FleetPlan:
    """A plan with message sizes and operations measured on the configured model.

    Raises:
        UserError: the fleet or the data set doesn't fit.
    """
    num_classes, image_shape = known_inputs(config)
    flops = count_flops(
        config.model, config.quantization, num_classes=num_classes, image_shape=image_shape
    )
    return FleetPlan(
        Emulation(fleet, num_devices=config.data.num_devices, seed=config.run.seed),
        config,
        Workload(config=config, flops=flops),
        measure_messages(config),
        num_samples=num_samples,
        num_classes=num_classes,
    )


def scale_fleet(fleet: DeviceFleet, num_devices: int) -> DeviceFleet:
    """The fleet with so many devices: counts become shares, where they are of another number."""
    if fleet.num_devices in (0, num_devices):
        return fleet
    classes = tuple(
        dataclasses.replace(member, count=0, share=member.count / fleet.num_devices)
        for member in fleet.classes
    )
    return dataclasses.replace(fleet, classes=classes)
