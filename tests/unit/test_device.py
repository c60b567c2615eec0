"""Tests of client.device: which images an emulated device holds."""

from __future__ import annotations

import pytest
import torch

from client.device import Device, emulated_device
from common.config import Config
from common.errors import UserError

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("flwr_datasets", reason="the split comes with flwr-datasets")

CONFIG = Config.from_flat({"data.num-devices": 20, "data.partition": "iid"})


def images_of(device: Device) -> set[bytes]:
    everything = torch.cat([device.train.images, device.holdout.images])
    return {image.numpy().tobytes() for image in everything}


def class_counts(device: Device) -> torch.Tensor:
    labels = torch.cat([device.train.labels, device.holdout.labels])
    return labels.bincount(minlength=10)


def test_a_part_that_the_split_has_not() -> None:
    with pytest.raises(UserError, match=r"partition id 20 .*expected 0 to 19, with data.num-dev"):
        emulated_device(CONFIG, 20)


class TestDataShare:
    def test_a_quarter(self) -> None:
        """1,437 digits over 20 devices: 71 or 72 each. floor(0.75 n + 1/2) are left out, 53 or 54:
        18 stay. Of the n_c of a class floor(0.75 n_c) or ceil(0.75 n_c) are left out."""
        whole, part = emulated_device(CONFIG, 3), emulated_device(CONFIG, 3, 0.25)
        assert len(whole.train) + len(whole.holdout) in (71, 72)
        assert len(part.train) + len(part.holdout) == 18
        assert images_of(part) <= images_of(whole)
        left_out = class_counts(whole) - class_counts(part)
        exact = 0.75 * class_counts(whole)
        assert ((exact.floor() <= left_out) & (left_out <= exact.ceil())).all()

    def test_every_class_stays(self) -> None:
        """A hundredth of 72 images would be one: each of the ten classes keeps one."""
        device = emulated_device(CONFIG, 3, 0.01)
        assert class_counts(device).tolist() == [1] * 10

    def test_the_whole_is_the_default(self) -> None:
        assert emulated_device(CONFIG, 3) is emulated_device(CONFIG, 3, 1.0)
