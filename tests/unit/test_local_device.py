"""A device's own folder: its classes, its normalisation, what may be said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.device import Device
from client.local_device import DataFolderError, local_device, to_grey
from client.node import NodeSettings
from common.data.input_spec import InputSpec
from common.errors import UserError
from tests.unit.image_files import plain, png, write_tree

INPUTS = InputSpec(
    dataset_name="pets",
    class_names=("ant", "bee", "cat"),
    channels=3,
    height=32,
    width=32,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    crop_padding=4,
    flip=True,
)


def load(folder: Path, inputs: InputSpec = INPUTS, **changes: float) -> Device:
    settings = {"partition_id": 1, "holdout_fraction": 0.0, "seed": 0, **changes}
    return local_device(str(folder), inputs, **settings)  # type: ignore[arg-type]


def changed(**values: object) -> InputSpec:
    return InputSpec(**{**vars(INPUTS), **values})  # type: ignore[arg-type]


def test_labels_are_the_runs_and_not_the_folders(tmp_path: Path) -> None:
    """The only folder, "cat", is the run's class 2, not the folder's class 0."""
    write_tree(tmp_path, ["cat"], images=3)
    device = load(tmp_path)
    assert device.train.labels.tolist() == [2, 2, 2]
    assert device.train.class_names == INPUTS.class_names
    assert device.dataset.mean == INPUTS.mean
    assert device.dataset.std == INPUTS.std
    assert not device.emulated


def test_an_unknown_class_is_named_here_and_not_in_what_may_be_sent(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant", "my-secret"])
    with pytest.raises(DataFolderError, match="my-secret") as caught:
        load(tmp_path)
    assert "my-secret" not in caught.value.summary
    assert str(tmp_path) not in caught.value.summary


def test_train_may_be_a_class(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant", "train"])
    device = load(tmp_path, changed(class_names=("ant", "bee", "train")))
    assert device.train.labels.tolist() == [0, 2]


def test_an_empty_class_folder_is_a_class_that_is_missing(tmp_path: Path) -> None:
    write_tree(tmp_path, ["bee"])
    (tmp_path / "ant").mkdir()
    assert load(tmp_path).train.labels.tolist() == [1]


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "ant").mkdir()])
def test_a_folder_without_images(make: object, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataFolderError) as caught:
        load(tmp_path)
    assert caught.value.summary == "its folder holds no images"


def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"])
    (tmp_path / "ant" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataFolderError, match=r"broken\.png") as caught:
        load(tmp_path)
    assert caught.value.summary == "its folder can't be read"


def test_images_are_brought_to_the_runs_size(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"], side=48)
    assert load(tmp_path).train.images.shape == (1, 3, 32, 32)


def test_images_cannot_be_brought_to_a_size_that_is_no_square(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"], side=32)
    with pytest.raises(DataFolderError, match=r"32x32 pixels, those of the run 24x16"):
        load(tmp_path, changed(height=16, width=24))


def test_grey_runs_get_grey_images(tmp_path: Path) -> None:
    """Pixels (0, 1, 2): (0 + 38470 + 2 x 7471 + 32768) / 65536 = 1.3 -> 1."""
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "0.png").write_bytes(png(plain(0)))
    device = load(tmp_path, changed(channels=1, mean=(0.5,), std=(0.5,)))
    assert device.train.images.shape == (1, 1, 32, 32)
    assert device.train.images.unique().tolist() == [1]


def test_what_is_grey_already_keeps_its_values() -> None:
    """All 256 values, as (v, v, v)."""
    values = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    assert torch.equal(to_grey(values.repeat(1, 3, 1, 1)), values)


def test_the_holdout_is_apart_and_depends_on_the_seed(tmp_path: Path) -> None:
    """10 images a class, 20 % held out: 6 in all, 2 of each class."""
    write_tree(tmp_path, INPUTS.class_names, images=10)
    device = load(tmp_path, holdout_fraction=0.2)
    held = device.holdout.images[:, 0, 0, 0].tolist()
    kept = device.train.images[:, 0, 0, 0].tolist()
    assert sorted(held + kept) == list(range(30))
    assert [value // 10 for value in held] == [0, 0, 1, 1, 2, 2]
    other = load(tmp_path, holdout_fraction=0.2, seed=1)
    assert other.holdout.images[:, 0, 0, 0].tolist() != held


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"class_names": ("a", "a")}, "class_names"),
        ({"class_names": ()}, "class_names"),
        ({"channels": 2}, "channels"),
        ({"height": 0}, "height"),
        ({"width": 1_000_000}, "width"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean"),
    ],
)
def test_impossible_inputs_are_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        changed(**values)


def test_node_settings() -> None:
    """Node id 2^31 + 5 without a partition id: 5."""
    settings = NodeSettings.from_node_config({"data-dir": "/data", "threads": 4}, 2**31 + 5)
    assert settings == NodeSettings(partition_id=5, data_dir="/data", threads=4)
    emulated = NodeSettings.from_node_config({"partition-id": 3}, 99)
    assert emulated == NodeSettings(partition_id=3)


@pytest.mark.parametrize(
    "node_config",
    [{"partition-id": "x"}, {"partition-id": -1}, {"threads": 1000}, {"data-share": 0.0}],
)
def test_node_settings_that_are_wrong_are_named(node_config: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(node_config))):
        NodeSettings.from_node_config(node_config, 1)  # type: ignore[arg-type]
