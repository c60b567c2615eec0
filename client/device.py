"""This device: its images and the models it works with.

Loaded once per process: emulated devices that share a worker share the data set and the
architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from client.deadline import Pace
from common.config import Config, DataConfig, ModelConfig, QuantizationConfig
from common.data.datasets import Dataset, ImageSet, configured_dataset
from common.data.partition import configured_split, split_holdout
from common.errors import UserError
from common.models import create_model
from common.module_copy import copy_module
from common.qat import prepare
from common.seeding import stream_seed


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device's view of the data."""

    partition_id: int
    dataset: Dataset
    """Normalisation and augmentation; its images need not be the device's own."""
    train: ImageSet
    """The device's own images, for selection and training."""
    holdout: ImageSet
    """The device's own images, for evaluation only."""
    emulated: bool = True
    """Whether its images are a part of the configured split; else they are on its own disk."""
    pace: Pace | None = None
    """How fast it is, where its operator says so."""
    max_memory_bytes: int = 0
    """That the process which trains may hold; 0: no limit."""
    used_memory_bytes: int | None = None
    """That it holds before it trains; None: to be asked of the system."""


def emulated_device(config: Config, partition_id: int, data_share: float = 1.0) -> Device:
    """The device that holds partition ``partition_id`` of the configured split.

    Args:
        config: of the run.
        partition_id: which one.
        data_share: part of these images that the device has room for, (0, 1]: drawn at random,
            class by class in proportion, at least one of every class. The others are nobody's.

    Raises:
        UserError: the split has no such part.
    """
    return _emulated_device(config.data, config.run.seed, partition_id, data_share)


@lru_cache(maxsize=64)
def _emulated_device(data: DataConfig, seed: int, partition_id: int, data_share: float) -> Device:
    if partition_id >= data.num_devices:
        raise UserError(
            f"partition id {partition_id} of an emulated device: expected 0 to "
            f"{data.num_devices - 1}, with data.num-devices = {data.num_devices}"
        )
    dataset = _dataset(data)
    indices = _split(data, seed)[partition_id]
    if data_share < 1:
        share_seed = stream_seed(seed, "data-share", partition_id)
        indices, _ = split_holdout(indices, dataset.train.labels, 1 - data_share, share_seed)
    holdout_seed = stream_seed(seed, "holdout", partition_id)
    train, holdout = split_holdout(
        indices, dataset.train.labels, data.holdout_fraction, holdout_seed
    )
    return Device(
        partition_id=partition_id,
        dataset=dataset,
        train=dataset.train.subset(train),
        holdout=dataset.train.subset(holdout),
    )


@lru_cache(maxsize=1)
def _dataset(data: DataConfig) -> Dataset:
    return configured_dataset(data)


@lru_cache(maxsize=1)
def _split(data: DataConfig, seed: int) -> list[torch.Tensor]:
    return configured_split(_dataset(data).train.labels, data, seed)


def float_model(config: Config, device: Device) -> nn.Module:
    """A new float model of the configured architecture; its values are to be loaded."""
    return copy_module(_architecture(config.model, model_shape(device)))


def quantized_model(config: Config, device: Device) -> nn.Module:
    """A new prepared model; its values, steps among them, are to be loaded."""
    return copy_module(_prepared(config.model, config.quantization, model_shape(device)))


def model_shape(device: Device) -> tuple[int, int]:
    """Classes and image channels: what a model's first and last layer depend on."""
    return device.dataset.train.num_classes, device.dataset.train.images.shape[1]


@lru_cache(maxsize=2)
def _architecture(model: ModelConfig, shape: tuple[int, int]) -> nn.Module:
    num_classes, in_channels = shape
    return create_model(model.name, num_classes=num_classes, in_channels=in_channels)


@lru_cache(maxsize=4)
def _prepared(
    model: ModelConfig, quantization: QuantizationConfig, shape: tuple[int, int]
) -> nn.Module:
    return prepare(_architecture(model, shape), quantization)
