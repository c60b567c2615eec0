"""Tests of common.data.augmentation."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from common.data.augmentation import augment_batch, crop_flip, draw_crops, normalize
from common.data.datasets import Dataset, ImageSet


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(0))


def random_crop_flip(
    images: Tensor, generator: torch.Generator, *, padding: int = 4, flip: bool = True
) -> Tensor:
    crops = draw_crops(len(images), generator, padding=padding, flip=flip)
    return crop_flip(images, crops, padding=padding)


def dataset_of(images: Tensor, *, crop_padding: int, flip: bool) -> Dataset:
    num_channels = images.shape[1]
    labels = torch.zeros(len(images), dtype=torch.int64)
    part = ImageSet(images=images, labels=labels, class_names=("one",))
    return Dataset(
        name="test",
        train=part,
        test=part,
        mean=(0.5, 0.2, 0.4)[:num_channels],
        std=(0.25, 0.1, 0.2)[:num_channels],
        crop_padding=crop_padding,
        flip=flip,
    )


class TestNormalize:
    def test_by_hand(self) -> None:
        """Channel 0, mean 1/2, std 1/4: 0 -> -2, 51 (= 0.2) -> -1.2, 255 (= 1) -> 2.
        Channel 1, mean 0.2, std 0.1: 0 -> -2, 51 -> 0, 255 -> 8."""
        pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
        images = pixels.view(1, 1, 1, 3).expand(1, 2, 1, 3)
        result = normalize(images, (0.5, 0.2), (0.25, 0.1))
        expected = torch.tensor([[[[-2.0, -1.2, 2.0]], [[-2.0, 0.0, 8.0]]]])
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("num_channels", [1, 3])
    def test_layout_and_type(self, num_channels: int) -> None:
        images = random_images(5, num_channels, 6, 4)
        result = normalize(images, (0.5,) * num_channels, (0.25,) * num_channels)
        assert result.dtype == torch.float32
        assert result.shape == images.shape
        assert result.is_contiguous(memory_format=torch.channels_last)

    def test_either_memory_layout_gives_the_same(self) -> None:
        images = random_images(5, 3, 6, 4)
        inner = images.contiguous(memory_format=torch.channels_last)
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        assert torch.equal(normalize(images, mean, std), normalize(inner, mean, std))

    def test_no_images(self) -> None:
        empty = torch.empty((0, 3, 4, 4), dtype=torch.uint8)
        assert normalize(empty, (0.5,) * 3, (0.2,) * 3).shape == (0, 3, 4, 4)


class TestRandomCropFlip:
    def windows(self, image: Tensor, padding: int) -> list[Tensor]:
        """Every crop of one image [c, h, w] padded with zeros, and its mirror image."""
        padded = pad(image, (padding,) * 4)
        _, height, width = image.shape
        crops = [
            padded[:, top : top + height, left : left + width]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        return crops + [crop.flip(2) for crop in crops]

    def test_every_window_comes_up_equally_often(self) -> None:
        """Padding 1: 9 offsets, mirrored or not, are 18 windows. 3,600 draws give each 200 on
        average with a standard deviation of sqrt(3600 * 1/18 * 17/18) = 13.7: 5 of them is 69."""
        image = random_images(1, 3, 5, 4)
        crops = random_crop_flip(image.expand(3600, -1, -1, -1), seeded(1), padding=1)
        counts = [
            int((crops == window).flatten(1).all(1).sum()) for window in self.windows(image[0], 1)
        ]
        assert sum(counts) == 3600
        assert min(counts) >= 131
        assert max(counts) <= 269

    def test_each_image_is_a_window_of_itself(self) -> None:
        images = random_images(40, 3, 8, 8)
        crops = random_crop_flip(images, seeded(3), padding=2)
        for image, crop in zip(images, crops, strict=True):
            assert any(torch.equal(crop, window) for window in self.windows(image, 2))

    def test_without_flip_nothing_is_mirrored(self) -> None:
        images = random_images(60, 1, 8, 8)
        crops = random_crop_flip(images, seeded(4), padding=1, flip=False)
        for image, crop in zip(images, crops, strict=True):
            assert any(torch.equal(crop, window) for window in self.windows(image, 1)[:9])

    def test_no_padding_no_flip_changes_nothing(self) -> None:
        images = random_images(7, 3, 5, 6)
        assert torch.equal(random_crop_flip(images, seeded(0), padding=0, flip=False), images)

    def test_input_is_left_alone(self) -> None:
        images = random_images(20, 3, 8, 8)
        before = images.clone()
        random_crop_flip(images, seeded(0))
        assert torch.equal(images, before)

    def test_only_the_generator_decides(self) -> None:
        images = random_images(20, 3, 8, 8)
        before = torch.get_rng_state(), str(np.random.get_state())
        first = random_crop_flip(images, seeded(5))
        again = random_crop_flip(images, seeded(5))
        other = random_crop_flip(images, seeded(6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert str(np.random.get_state()) == before[1]


class TestAugmentBatch:
    def test_without_augmentation_it_only_normalizes(self) -> None:
        images = random_images(9, 3, 8, 8)
        dataset = dataset_of(images, crop_padding=1, flip=True)
        generator = seeded(0)
        indices = torch.tensor([4, 0, 4])
        result = augment_batch(images, indices, dataset, generator=generator, augment=False)
        assert torch.equal(result, normalize(images[indices], dataset.mean, dataset.std))
        assert torch.equal(generator.get_state(), seeded(0).get_state())

    @pytest.mark.parametrize("flip", [True, False])
    def test_crops_as_the_dataset_says(self, flip: bool) -> None:
        images = random_images(9, 3, 8, 8)
        dataset = dataset_of(images, crop_padding=2, flip=flip)
        indices = torch.tensor([8, 1, 3, 3])
        result = augment_batch(images, indices, dataset, generator=seeded(7))
        crops = random_crop_flip(images[indices], seeded(7), padding=2, flip=flip)
        assert torch.equal(result, normalize(crops, dataset.mean, dataset.std))
        assert result.is_contiguous(memory_format=torch.channels_last)

    def test_padding_is_black(self) -> None:
        """White 1 x 1 pixel, padding 1: eight of nine crops are black, (0 - 1/2) / (1/4) = -2,
        the ninth white, (1 - 1/2) / (1/4) = 2."""
        images = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
        dataset = dataset_of(images, crop_padding=1, flip=False)
        indices = torch.zeros(200, dtype=torch.int64)
        result = augment_batch(images, indices, dataset, generator=seeded(0))
        assert {round(value, 5) for value in result.flatten().tolist()} == {-2.0, 2.0}
