"""The training that both sides of the throughput comparison do: float, plain, the same batches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from common.config import Config
from simulations.throughput.process_tree import tree_cpu_seconds

MODEL = "resnet8"
BATCH_SIZE = 32
LEARNING_RATE = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


@dataclass(kw_only=True)
class Timing:
    """One federation's rounds."""

    ended: list[float] = field(default_factory=list)
    """When each round was over, in seconds of one clock."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor time of all processes together by then."""
    num_fits: int = 0
    """Devices that trained and answered, of all rounds together."""

    def round_is_over(self, num_fits: int) -> None:
        """Look at the clocks."""
        self.ended.append(time.perf_counter())
        self.cpu_seconds.append(tree_cpu_seconds(os.getpid()))
        self.num_fits += num_fits


def task_config(num_devices: int, num_rounds: int) -> Config:
    """Scikit-learn's digits, IID; one epoch a round, without augmentation, on one thread."""
    return Config.from_flat(
        {
            "data.dataset": "digits",
            "data.num-devices": num_devices,
            "data.partition": "iid",
            "data.min-samples": 1,
            "data.holdout-fraction": 0.0,
            "data.augment": False,
            "model.name": MODEL,
            "warmup.num-rounds": num_rounds,
            "warmup.local-epochs": 1,
            "warmup.batch-size": BATCH_SIZE,
            "warmup.learning-rate": LEARNING_RATE,
            "training.momentum": MOMENTUM,
            "training.weight-decay": WEIGHT_DECAY,
            "evaluation.interval": num_rounds,
            "federation.round-timeout": 3600.0,
            "run.threads": 1,
        }
    )
