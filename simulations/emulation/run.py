"""A federation on an emulated fleet: the same server and devices, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from client.memory import MB
from common.config import Config
from common.data.datasets import configured_dataset
from common.data.partition import configured_split
from common.devices import DeviceProfile, training_seconds
from common.errors import UserError
from server.app import run_federation
from server.checkpoints.device_states import device_folder
from server.records.reporting import Reporter
from simulations.emulation.clock import VirtualClock
from simulations.emulation.fleet import DeviceFleet
from simulations.emulation.flops import count_flops
from simulations.emulation.grid import FleetGrid
from simulations.emulation.hardware import Emulation
from simulations.emulation.memory import plan_memory
from simulations.emulation.plots import plot_run
from simulations.emulation.workload import Workload


class EmulatedRun:
    """A run on the devices of ``fleet``.

    Args:
        fleet: what hardware the devices are said to be.
        config: of the run.

    Raises:
        UserError: for bad data settings, or if no device has the memory to train.
    """

    def __init__(self, fleet: DeviceFleet, config: Config) -> None:
        self.config = config
        data = config.data
        images = configured_dataset(data).train
        channels, height, width = images.images.shape[1:]
        flops = count_flops(
            config.model,
            config.quantization,
            num_classes=images.num_classes,
            image_shape=(channels, height, width),
        )
        self.num_classes = images.num_classes
        self.workload = Workload(config=config, flops=flops)
        self.emulation = Emulation(fleet, num_devices=data.num_devices, seed=config.run.seed)
        split = configured_split(images.labels, data, config.run.seed)
        shares = [self.emulation.profile(i).data_share for i in range(len(split))]
        self.memory = plan_memory(
            config,
            self.emulation,
            np.ceil(np.multiply([len(part) for part in split], shares)).astype(np.int64),
            num_classes=images.num_classes,
            image_shape=(channels, height, width),
        )

    def node_config(self) -> dict[int, dict[str, Any]]:
        """Partition id -> what a device's operator would tell it about it."""
        return {
            partition_id: {
                **self._pace(profile := self.emulation.profile(partition_id)),
                "max-memory": int(profile.memory_mb * MB),
                "used-memory": int(self.memory.used_bytes[partition_id]),
                "weight-bits": ",".join(map(str, profile.weight_bits)),
            }
            for partition_id in range(self.emulation.num_devices)
        }

    def run(self, grid: Grid, reporter: Reporter, run_folder: Path) -> None:
        """Run the federation.

        Args:
            grid: runs the devices for real.
            reporter: told what happens.
            run_folder: where results go; new or empty, unless run.resume names it.

        Raises:
            UserError: for what a user can mend.
        """
        clock = VirtualClock()
        fleet_grid = FleetGrid(
            grid,
            self.emulation,
            self.config,
            self.workload,
            num_classes=self.num_classes,
            clock=clock,
            unable=self.memory.unable,
        )
        for sentence in self.memory.notes(self.emulation):
            reporter.note(sentence)
        summary = run_federation(
            fleet_grid,
            self.config,
            reporter,
            run_folder,
            clock=clock,
            annotate=fleet_grid.annotate,
            device_states=device_folder(run_folder),
            harness=fleet_grid,
        )
        class_names = [
            self.emulation.profile(partition_id).class_name
            for partition_id in range(self.emulation.num_devices)
        ]
        try:
            plot_run(run_folder, class_names, summary)
        except UserError as error:
            reporter.note(str(error))

    def _pace(self, profile: DeviceProfile) -> dict[str, float]:
        return {
            "seconds-per-sample": training_seconds(profile, self.workload.training_step()),
            "seconds-per-scored-sample": training_seconds(
                profile, self.workload.flops.quantized_forward
            ),
            "downlink-mbits": profile.downlink_mbits,
            "uplink-mbits": profile.uplink_mbits,
            "latency-seconds": profile.latency_seconds,
            "data-share": profile.data_share,
        }
