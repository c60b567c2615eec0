"""From uint8 images in memory to augmented float batches, beside torchvision in a DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from common.data.augmentation import augment_batch
from common.data.datasets import Dataset
from common.extras import import_extra
from common.seeding import torch_generator
from simulations.bench import noise
from simulations.bench.rows import Benchmark, Row, Target
from simulations.bench.sizes import SEED, Sizes
from simulations.bench.timing import Action

GROUP = "Augmentation"


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Random crop, flip and normalisation."""
    return [Benchmark(title="augmentation", run=partial(_compare, sizes))]


def _compare(sizes: Sizes) -> list[Row]:
    dataset = noise.images(sizes.data_images, sizes.image_side)
    own = partial(_augment, dataset, sizes.data_batch)
    side = sizes.image_side
    subject = f"{sizes.data_images:,} images of {side} x {side}, batch {sizes.data_batch}"
    # A ratio of times, peer over own, is that of the rates.
    faster = sizes.timer.ratio(_torchvision(dataset, sizes.data_batch), own)
    return [
        Row(
            group=GROUP,
            subject=subject,
            against="torchvision's transforms in a DataLoader, no worker processes",
            unit="x the rate",
            figure=faster,
            target=Target(bound=10, at_least=True),
        ),
        Row(
            group=GROUP,
            subject=subject,
            unit="images/s",
            figure=sizes.timer.rate(own, sizes.data_images),
        ),
    ]


def _augment(dataset: Dataset, batch_size: int) -> None:
    generator = torch_generator(SEED, "bench-augmentation")
    order = torch.randperm(len(dataset.train), generator=generator)
    for indices in order.split(batch_size):
        augment_batch(dataset.train.images, indices, dataset, generator=generator)


def _torchvision(dataset: Dataset, batch_size: int) -> Action:
    """The usual way: a PIL image at a time, as torchvision's CIFAR does it."""
    transforms = import_extra("torchvision.transforms", needed_for="the comparison")
    images = dataset.train.images.permute(0, 2, 3, 1).contiguous().numpy()
    transform = transforms.Compose(
        [
            transforms.RandomCrop(images.shape[1], padding=dataset.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(dataset.mean, dataset.std),
        ]
    )
    loader = DataLoader(
        _PilImages(images, transform),
        batch_size=batch_size,
        shuffle=True,
        generator=torch_generator(SEED, "bench-loader"),
    )

    def load() -> None:
        # torchvision draws from torch's global generator, which is given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            for batch in loader:
                batch.contiguous(memory_format=torch.channels_last)

    return load


class _PilImages(TorchDataset[torch.Tensor]):
    def __init__(
        self, images: NDArray[np.uint8], transform: Callable[[Image.Image], torch.Tensor]
    ) -> None:
        self._images = images
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._transform(Image.fromarray(self._images[index]))
