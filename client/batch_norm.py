"""Batch normalisation's statistics of a quantized network, taken anew after a training.

A small step can flip a low-bit weight to its neighbouring code, and a layer's outputs with it, so
that running averages over the last steps describe networks that are no more (Nagel et al.,
"Overcoming Oscillations in Quantization-Aware Training", ICML 2022, section 3.1; their remedy).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from client.task import TrainingTask
from common.data.augmentation import augment_batch
from common.data.datasets import Dataset, ImageSet
from common.errors import UserError
from common.inference import device_of
from common.precision import forward_in


class TooFewImagesError(UserError):
    """A pass of one image, of which a layer's maps are one pixel: that has no variance."""


@contextmanager
def batch_statistics(num_images: int) -> Iterator[None]:
    """Around a pass in training mode: torch's words on a single image become a user's.

    Raises:
        TooFewImagesError: see there.
    """
    try:
        yield
    except ValueError as error:
        if num_images > 1:
            raise
        raise TooFewImagesError(
            "a pass of one image: with this model and images of this size batch normalisation "
            "needs at least two"
        ) from error


def renew_statistics(
    model: nn.Module,
    dataset: Dataset,
    images: ImageSet,
    task: TrainingTask,
    generator: torch.Generator,
    *,
    num_images: int,
) -> None:
    """Replace the running means and variances of ``model`` by those of the network as it is now.

    Forward passes without gradient, over random images of the device rather than its coreset,
    which may be the hard ones, augmented as in training: scale and shift were learned with such
    statistics (measured, MobileNetV2 with 2-bit weights: 5 points more than with plain images).

    Args:
        model: trained; only its batch normalisation's buffers change.
        dataset: normalisation and augmentation of the images.
        images: of the device.
        task: precision, augmentation and the images of a pass.
        generator: source of choice and augmentation.
        num_images: that are taken, or all if there are fewer.

    Raises:
        TooFewImagesError: it is one, too few for this model.
    """
    count = min(len(images), num_images)
    chosen = torch.randperm(len(images), generator=generator)[:count]
    num_passes = math.ceil(count / task.scoring_batch)
    device = device_of(model)
    inputs = (
        augment_batch(images.images, part, dataset, generator=generator, augment=task.augment).to(
            device
        )
        for part in chosen.tensor_split(num_passes)
    )
    with forward_in(task.precision, device), batch_statistics(count):
        update_bn(inputs, model)
