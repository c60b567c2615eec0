"""Tests of server.records.split_plot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from server.records.split_plot import count_labels, plot_split


def test_counts_by_hand() -> None:
    """Device 0 has samples 0, 1, 4 of classes 0, 0, 2; device 1 samples 2, 3 of 1, 2."""
    labels = torch.tensor([0, 0, 1, 2, 2])
    parts = [torch.tensor([0, 1, 4]), torch.tensor([2, 3])]
    assert count_labels(labels, parts, 4).tolist() == [[2, 0, 1, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize(("num_devices", "num_classes"), [(1, 1), (10, 100), (100, 10)])
def test_writes_a_picture(num_devices: int, num_classes: int, tmp_path: Path) -> None:
    labels = torch.arange(num_classes).repeat(num_devices)
    parts = list(torch.arange(len(labels)).chunk(num_devices))
    path = tmp_path / "split.png"
    plot_split(labels, parts, [f"class {c}" for c in range(num_classes)], path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) >= 400
    assert pixels.std() > 10
    assert [file.name for file in tmp_path.iterdir()] == ["split.png"]


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "split.png"
    path.write_bytes(b"old")
    with pytest.raises(IndexError):
        plot_split(torch.tensor([0]), [torch.tensor([3])], ["one"], path)
    assert path.read_bytes() == b"old"
