"""Flower's side: an app as its guides write one, on its Simulation Runtime with Ray.

FedAvg on the model's state dict; a client makes the model, loads the weights, trains and sends the
state dict back.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.nn import functional

from common.config import Config
from common.data.augmentation import normalize
from common.data.datasets import configured_dataset
from common.data.partition import configured_split
from common.models import create_model
from simulations.throughput.task import (
    BATCH_SIZE,
    LEARNING_RATE,
    MODEL,
    MOMENTUM,
    WEIGHT_DECAY,
    Timing,
    task_config,
)

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of SGD on this client's images."""
    torch.set_num_threads(1)
    partition_id = int(context.node_config["partition-id"])
    images, labels = _partitions(int(context.node_config["num-partitions"]))[partition_id]
    arrays = message.content.array_records["arrays"]
    model = _model()
    model.load_state_dict(arrays.to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    generator = torch.Generator().manual_seed(partition_id)
    loss_sum = 0.0
    for chosen in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(chosen)
    metrics = MetricRecord({"train-loss": loss_sum / len(images), "num-examples": len(images)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class TimedFedAvg(FedAvg):
    """Flower's strategy, that notes when rounds end."""

    def __init__(self, num_devices: int) -> None:
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=num_devices, min_available_nodes=num_devices
        )
        self.timing = Timing()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's."""
        replies = list(replies)
        result = super().aggregate_train(server_round, replies)
        self.timing.round_is_over(sum(reply.has_content() for reply in replies))
        return result


def run(num_devices: int, num_rounds: int, num_workers: int) -> Timing:
    """The federation on Ray: one CPU a client."""
    from flwr.simulation import run_simulation

    strategy = TimedFedAvg(num_devices)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, ArrayRecord(_model().state_dict()), num_rounds=num_rounds)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=num_devices,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": num_workers, "include_dashboard": False},
        },
    )
    return strategy.timing


@lru_cache(maxsize=1)
def _partitions(num_devices: int) -> list[tuple[Tensor, Tensor]]:
    """Normalised images and labels of every client, loaded once per process."""
    config: Config = task_config(num_devices, 1)
    dataset = configured_dataset(config.data)
    images = normalize(dataset.train.images, dataset.mean, dataset.std)
    labels = dataset.train.labels
    split = configured_split(labels, config.data, config.run.seed)
    return [(images[indices], labels[indices]) for indices in split]


def _model() -> nn.Module:
    return create_model(MODEL, num_classes=10, in_channels=1)
