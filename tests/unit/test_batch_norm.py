"""Tests of client.batch_norm."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from client.batch_norm import renew_statistics
from client.task import TrainingTask, training_task
from common.config import Config
from common.data.datasets import Dataset, ImageSet
from tests.unit.datasets import dataset_of


def constant_images(values: list[int]) -> Dataset:
    """Images of 2 x 2 pixels, each of one value, which a model is shown as it is."""
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    images = ImageSet(
        images=pixels.contiguous(),
        labels=torch.zeros(len(values), dtype=torch.int64),
        class_names=("a",),
    )
    return dataset_of(images, std=1 / 255, crop_padding=1, flip=True)


class Normalizer(nn.Module):
    """Batch normalisation alone, after a training: averages and momentum of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=0.25)
        self.norm.running_mean = torch.tensor([100.0])
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        output: Tensor = self.norm(inputs)
        return output


PLAIN: TrainingTask = replace(
    training_task(Config(), first_epoch=0, num_epochs=1, total_epochs=1), augment=False
)


def renew(model: Normalizer, task: TrainingTask, num_images: int, values: list[int]) -> None:
    dataset = constant_images(values)
    generator = torch.Generator().manual_seed(0)
    renew_statistics(model, dataset, dataset.train, task, generator, num_images=num_images)


def test_statistics_are_those_of_the_images() -> None:
    """Pixels 0 and 4, eight of each: mean 2, and variance 16 x 2^2 / 15. No trace of the old."""
    model = Normalizer()
    renew(model, PLAIN, 4, [0, 4, 0, 4])
    assert model.norm.running_mean is not None
    assert model.norm.running_var is not None
    assert model.norm.running_mean.item() == pytest.approx(2.0)
    assert model.norm.running_var.item() == pytest.approx(64 / 15)


def test_images_are_augmented_as_in_training() -> None:
    """Shifts by -1, 0 or 1 pixel leave a half, all or a half of each side of a white image, the
    rest is black: on average (2/3)^2 of 255. Within three standard errors of 64 images."""
    model = Normalizer()
    renew(model, replace(PLAIN, augment=True), 64, [255] * 64)
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.item() == pytest.approx(255 * 4 / 9, abs=26)


def test_all_passes_count_the_same() -> None:
    """16 images in passes of 8, which a device with little memory makes: the mean of 0...15."""
    model = Normalizer()
    renew(model, replace(PLAIN, max_part_size=1), 100, list(range(16)))
    assert model.sizes == [8, 8]
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.item() == pytest.approx(7.5)


def test_takes_as_many_as_are_wanted() -> None:
    model = Normalizer()
    renew(model, PLAIN, 3, list(range(16)))
    assert model.sizes == [3]


@pytest.mark.parametrize("training", [True, False])
def test_all_else_is_kept(training: bool) -> None:
    model = Normalizer().train(training)
    weight = model.norm.weight.detach().clone()
    renew(model, PLAIN, 2, [0, 4])
    assert model.training is training
    assert model.norm.momentum == 0.25
    assert torch.equal(model.norm.weight, weight)
