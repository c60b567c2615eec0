"""The images and how they are split over devices."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.settings import setting

DATASETS = ("digits", "cifar10", "cifar100", "folder")

PARTITIONS = ("iid", "dirichlet", "pathological", "shard", "quantity")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, name="data"):
    """Which images there are and which device holds which."""

    dataset: str = setting("digits", choices=DATASETS)
    """The image source."""
    root: str = setting("")
    """Where the images are; empty: FEDQUARC_DATA, else downloaded."""
    image_size: int = setting(0, minimum=0, maximum=512)
    """Side in pixels that a folder's images are resized to; 0: as they are."""
    num_devices: int = setting(10, minimum=1, maximum=1_000_000)
    """Devices that the training images are split over."""
    partition: str = setting("dirichlet", choices=PARTITIONS)
    """How labels are distributed over devices."""
    alpha: float = setting(0.5, above=0.0)
    """Dirichlet concentration; smaller is more skewed."""
    classes_per_device: int = setting(2, minimum=1)
    """Classes of one device in the pathological split."""
    shards_per_device: int = setting(2, minimum=1)
    """Shards of one device in the shard split."""
    min_samples: int = setting(10, minimum=1)
    """Fewest images that a device may hold."""
    holdout_fraction: float = setting(0.1, minimum=0.0, maximum=0.9)
    """Share of a device's images kept for its own evaluation."""
    augment: bool = setting(True)
    """Random crop and, where the data set allows it, flip."""
