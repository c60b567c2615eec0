"""Tests of common.data.data_fingerprint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import Dataset, ImageSet


def image_set(num_images: int) -> ImageSet:
    """Image i is all i, of class i modulo 3."""
    values = torch.arange(num_images, dtype=torch.uint8)
    return ImageSet(
        images=values.reshape(-1, 1, 1, 1).repeat(1, 3, 2, 2),
        labels=torch.arange(num_images) % 3,
        class_names=("a", "b", "c"),
    )


def dataset() -> Dataset:
    return Dataset(
        name="folder",
        train=image_set(10),
        test=image_set(4),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        crop_padding=0,
        flip=True,
    )


def changed(part: ImageSet, index: int) -> ImageSet:
    images = part.images.clone()
    images[index, 2, 1, 1] += 1
    return replace(part, images=images)


def test_the_same_images_have_the_same_whatever_their_layout_is_and_classes_are_called() -> None:
    first = dataset()
    images = first.train.images.contiguous(memory_format=torch.channels_last)
    again = replace(first.train, images=images, class_names=("0", "1", "2"))
    assert data_fingerprint(replace(first, train=again)) == data_fingerprint(first)
    assert len(data_fingerprint(first)) == 32


def test_a_pixel_a_label_or_an_image_more_changes_it() -> None:
    first = dataset()
    labels = first.train.labels.clone()
    labels[7] = 0
    others = [
        replace(first, train=changed(first.train, 9)),
        replace(first, test=changed(first.test, 0)),
        replace(first, train=replace(first.train, labels=labels)),
        replace(first, train=image_set(11)),
        replace(first, train=first.test, test=first.train),
    ]
    assert len({data_fingerprint(each) for each in [first, *others]}) == 6


def test_of_many_images_evenly_spaced_ones_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten images four: floor(10 i / 4) = 0, 2, 5, 7, in blocks of three."""
    monkeypatch.setattr("common.data.data_fingerprint.MAX_IMAGES", 4)
    monkeypatch.setattr("common.data.data_fingerprint.BLOCK", 3)
    first = dataset()
    seen = [
        index
        for index in range(10)
        if data_fingerprint(replace(first, train=changed(first.train, index)))
        != data_fingerprint(first)
    ]
    assert seen == [0, 2, 5, 7]
