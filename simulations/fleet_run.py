"""A federation on an emulated fleet: the same server and devices, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from common.config import Config
from common.datasets import load_dataset
from common.errors import UserError
from server.app import run_federation
from server.reporting import Reporter
from simulations.clock import VirtualClock
from simulations.emulation import Emulation
from simulations.fleet import DeviceFleet
from simulations.fleet_grid import FleetGrid
from simulations.fleet_plots import plot_run
from simulations.flops import count_flops
from simulations.workload import Workload


def run_on_fleet(
    grid: Grid, fleet: DeviceFleet, config: Config, reporter: Reporter, run_folder: Path
) -> dict[str, Any]:
    """Run a federation on the devices of ``fleet``; returns its summary.

    Args:
        grid: runs the devices for real.
        fleet: what hardware they are said to be.
        config: of the run.
        reporter: told what happens.
        run_folder: where results go; new or empty.

    Raises:
        UserError: for what a user can mend.
    """
    data = config.data
    images = load_dataset(data.dataset, data.root or None, data.image_size or None).train
    channels, height, width = images.images.shape[1:]
    flops = count_flops(
        config.model,
        config.quantization,
        num_classes=images.num_classes,
        image_shape=(channels, height, width),
    )
    clock = VirtualClock()
    fleet_grid = FleetGrid(
        grid,
        Emulation(fleet, num_devices=data.num_devices, seed=config.run.seed),
        config,
        Workload(config=config, flops=flops),
        num_classes=images.num_classes,
        clock=clock,
    )
    summary = run_federation(
        fleet_grid, config, reporter, run_folder, clock=clock, annotate=fleet_grid.annotate
    )
    class_names = [
        fleet_grid.emulation.profile(partition_id).class_name
        for partition_id in range(data.num_devices)
    ]
    try:
        plot_run(run_folder, class_names, summary)
    except UserError as error:
        reporter.note(str(error))
    return summary
