"""This project's side: the float rounds of its server and devices on the local engine."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import Config
from common.data.datasets import configured_dataset
from common.messages import Stage
from common.models import create_model
from common.seeding import torch_generator
from server.checkpoints.resumption import Checkpoints
from server.exchange.courier import Courier
from server.exchange.registry import DeviceRegistry
from server.model.global_model import GlobalModel
from server.records.recorder import Recorder
from server.records.reporting import quiet_flower
from server.rounds.session import Session
from server.rounds.stages import copied_state, float_strategy
from server.rounds.synchronous import run_stage
from simulations.engines.local import LocalGrid
from simulations.runner import CLIENT_APP
from simulations.throughput.task import Timing, task_config


class Stopwatch:
    """A reporter that notes when rounds end, their checkpoints included."""

    def __init__(self) -> None:
        self.timing = Timing()

    def start(self, config: Config, run_folder: Path) -> None:
        """Nothing to say."""

    def stage(self, name: Stage, num_rounds: int) -> None:
        """Nothing to say."""

    def round_done(self, stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> None:
        """Look at the clocks."""
        self.timing.round_is_over(metrics["num_accepted"])

    def note(self, text: str) -> None:
        """Refusals, to be seen."""
        print(text, file=sys.stderr)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing to say."""


def run(num_devices: int, num_rounds: int, num_workers: int) -> Timing:
    """The float rounds, recorded and checkpointed as in every run."""
    config = task_config(num_devices, num_rounds)
    watch = Stopwatch()
    with (
        quiet_flower(),
        tempfile.TemporaryDirectory(prefix="fedquarc-throughput-") as folder,
        LocalGrid(
            client_app=CLIENT_APP,
            run_config=config.to_flat(),
            num_nodes=num_devices,
            num_workers=num_workers,
        ) as grid,
        Recorder(Path(folder) / "run", config) as recorder,
    ):
        dataset = configured_dataset(config.data)
        model = create_model(
            config.model.name,
            num_classes=dataset.train.num_classes,
            in_channels=dataset.train.images.shape[1],
            generator=torch_generator(config.run.seed, "model"),
        )
        courier = Courier(grid, timeout_seconds=config.federation.round_timeout)
        registry = DeviceRegistry(courier, watch.note)
        registry.wait_for(num_devices, timeout_seconds=config.federation.round_timeout)
        session = Session(
            config=config,
            courier=courier,
            registry=registry,
            recorder=recorder,
            reporter=watch,
            checkpoints=Checkpoints(recorder.folder, config, note=watch.note),
            started=time.perf_counter(),
        )
        state = copied_state(GlobalModel(model, dataset, config))
        run_stage(session, float_strategy(config, state), state)  # without evaluation, as there
    return watch.timing
