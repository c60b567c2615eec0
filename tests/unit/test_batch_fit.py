"""Batches in parts: the same step, and as many images at a time as memory allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client.batch_fit import FIRST_STEP_BYTES, fitting_part_size, kept_bytes_per_image
from client.task import TrainingTask
from client.trainer import parts, train
from common.data.datasets import ImageSet
from tests.unit.datasets import dataset_of

SHAPE = (1, 4, 4)


@pytest.mark.parametrize(
    ("num_images", "max_size", "sizes"),
    [
        (32, 0, [32]),
        (32, 32, [32]),
        (33, 32, [16, 17]),
        (10, 4, [3, 3, 4]),
        (5, 8, [5]),
        (1, 2, [1]),
    ],
)
def test_parts_are_alike_and_none_is_too_large(
    num_images: int, max_size: int, sizes: list[int]
) -> None:
    found = parts(num_images, max_size)
    assert [part.stop - part.start for part in found] == sizes
    assert found[0].start == 0
    assert found[-1].stop == num_images


@pytest.mark.parametrize(
    ("num_images", "sizes"), [(2, [2]), (3, [3]), (6, [2, 2, 2]), (7, [2, 2, 3])]
)
def test_no_part_is_of_one_image(num_images: int, sizes: list[int]) -> None:
    """Batch normalisation has no statistics of one image: of an odd number in parts of two, one
    part is of three."""
    assert [part.stop - part.start for part in parts(num_images, 2)] == sizes


def trained(max_part_size: int) -> list[Tensor]:
    """Weights after two epochs without batch normalisation."""
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(
        images=torch.randint(0, 256, (10, *SHAPE), dtype=torch.uint8, generator=generator),
        labels=torch.arange(10) % 2,
        class_names=("a", "b"),
    )
    dataset = dataset_of(images, mean=0.5, std=0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    task = TrainingTask(
        num_epochs=2,
        batch_size=10,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.01,
        step_learning_rate_scale=1.0,
        schedule="constant",
        loss="ce",
        correction="none",
        beta=0.0,
        beta_schedule="constant",
        augment=False,
        first_epoch=0,
        total_epochs=2,
        max_part_size=max_part_size,
    )
    train(model, None, dataset, images, torch.arange(10), task, generator)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("max_part_size", [3, 4, 9])
def test_parts_make_the_same_step(max_part_size: int) -> None:
    """Of unequal parts too: 10 images in 3 + 3 + 4."""
    for whole, split in zip(trained(0), trained(max_part_size), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-5, atol=1e-6)


def test_bytes_that_a_forward_pass_keeps() -> None:
    """A linear layer from 16 keeps its input: 16 float32 an image, 64 bytes; its weights do not
    count. ReLU keeps its output, 4 values, which the second layer's input is: 16 bytes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    assert kept_bytes_per_image(model, SHAPE) == 64 + 16


def test_the_part_follows_the_limit() -> None:
    """Parameters: 16 x 4 + 4 + 4 x 2 + 2 = 78 floats, twice 312 bytes held, and the first step's.
    With 1600 bytes beyond them 1600 / 80 = 20 images; half as many where features are compared."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    limit = 1000 + 624 + FIRST_STEP_BYTES + 1600
    assert fitting_part_size(model, SHAPE, 32, limit, used_bytes=1000) == 20
    assert fitting_part_size(model, SHAPE, 20, limit, used_bytes=1000) == 0
    assert fitting_part_size(model, SHAPE, 32, limit, used_bytes=1000, corrected=True) == 10
    assert fitting_part_size(model, SHAPE, 32, 0, used_bytes=1000) == 0
    assert fitting_part_size(model, SHAPE, 32, 1000, used_bytes=1000) == 2


def test_the_probe_leaves_batch_statistics_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept_bytes_per_image(model, SHAPE)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_model_is_looked_at_once() -> None:
    """An emulated fleet's devices train in one model: one pass, not one for each fit."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    first = kept_bytes_per_image(model, SHAPE)
    assert kept_bytes_per_image(model, SHAPE) == first
    assert len(passes) == 1
    assert kept_bytes_per_image(model, (1, 8, 8)) > first
