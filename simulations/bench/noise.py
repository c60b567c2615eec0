"""Made-up images and models: the same in every run, on every machine."""

from __future__ import annotations

from torch import nn

from client.workload import noise_dataset
from common.config import Config
from common.data.augmentation import normalize
from common.data.datasets import Dataset
from common.models import create_model
from common.qat import calibrate, prepare
from common.seeding import torch_generator
from simulations.bench.sizes import NUM_CLASSES, SEED


def images(num_images: int, side: int) -> Dataset:
    """Noise with CIFAR-100's number of classes and its augmentation."""
    return noise_dataset(num_images, side, NUM_CLASSES, torch_generator(SEED, "bench-images"))


def float_model(name: str) -> nn.Module:
    """A float model with fresh weights."""
    return create_model(name, num_classes=NUM_CLASSES, generator=torch_generator(SEED, name))


def quantized_model(
    name: str, weight_bits: int, activation_bits: int, dataset: Dataset
) -> nn.Module:
    """The quantized twin of `float_model`, its activation steps set from one batch."""
    config = Config.from_flat(
        {
            "quantization.weight-bits": weight_bits,
            "quantization.activation-bits": activation_bits,
        }
    ).quantization
    prepared = prepare(float_model(name), config)
    batch = normalize(dataset.train.images[:64], dataset.mean, dataset.std)
    calibrate(prepared, [batch], config)
    return prepared
