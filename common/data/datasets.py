"""Image data sets in memory: uint8 pixels, labels and what normalisation they need.

Images are kept as uint8 and become float a batch at a time (`common.data.augmentation`). They are
stored with channels innermost, so that a batch is in the channels_last layout without a
transposing copy.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.cache import cache_dir
from common.config import DATASETS, DataConfig
from common.data.cifar import CIFAR, cifar_source
from common.data.image_cache import (
    CachedImages,
    ImageSource,
    ImageStream,
    OpenedSource,
    load_cached,
)
from common.data.image_folder import folder_source
from common.data.stratify import stratified_mask
from common.errors import UserError
from common.extras import import_extra
from common.paths import without_tilde

DIGITS_TEST_FRACTION = 0.2
SUBSET_BLOCK = 512
"""Images that are copied out of a mapped file between giving its pages back."""


DIGEST_SIDE = 4
"""Pixels along each side of an image, at least, that a digest looks at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images.

    Raises:
        ValueError: a tensor has another type or shape, or a label has no class.
    """

    images: Tensor
    """uint8 [n, channels, height, width]; may be memory-mapped, so not to be written to."""
    labels: Tensor
    """int64 [n], index into ``class_names``."""
    class_names: tuple[str, ...]
    mapping: mmap.mmap | None = None
    """The mapped file in which ``images`` are, if any."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images are {self.images.dtype} {list(self.images.shape)}, not uint8 [n, c, h, w]"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}, "
                f"not int64 [{len(self.images)}]"
            )
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise ValueError(f"labels are not all from 0 to {self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image here included."""
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """Tells the sets apart that a device holds in turn, whatever their layout in memory.

        Of shape, labels and a grid of pixels in every image: devices take it in every round, of
        images that may lie on a slow disk.
        """
        rows, columns = (max(1, size // DIGEST_SIDE) for size in self.images.shape[2:])
        pixels = self.images[:, :, ::rows, ::columns].permute(0, 2, 3, 1)
        digest = hashlib.blake2b(str(tuple(self.images.shape)).encode(), digest_size=16)
        digest.update(self.labels.numpy().tobytes())
        digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Tensor) -> ImageSet:
        """A copy of the images at ``indices``, int64 [k]."""
        channels_last = self.images.permute(0, 2, 3, 1)
        chosen = channels_last.new_empty((len(indices), *channels_last.shape[1:]))
        for start in range(0, len(indices), SUBSET_BLOCK):
            block = slice(start, start + SUBSET_BLOCK)
            torch.index_select(channels_last, 0, indices[block], out=chosen[block])
            if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
                # Around every page that is touched the system maps fifteen more: without giving
                # them back, one device's tenth of CIFAR-100 would count as 150 MB resident.
                self.mapping.madvise(mmap.MADV_DONTNEED)
        return ImageSet(
            images=chosen.permute(0, 3, 1, 2),
            labels=self.labels.index_select(0, indices),
            class_names=self.class_names,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set's two parts, and how its images are normalised and augmented."""

    name: str
    train: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    """Per channel, of training pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of training pixels in [0, 1]; 1 where they are all the same."""
    crop_padding: int
    """Pixels by which a random crop may be off the centre: an eighth of the side."""
    flip: bool
    """Whether a mirrored image is still of its class."""


def load_dataset(name: str, root: str | None = None, image_size: int | None = None) -> Dataset:
    """Load a data set; what had to be decoded is kept in the cache and memory-mapped.

    - "digits": scikit-learn's 1,797 handwritten digits, 1 x 8 x 8; a stratified fifth, always the
      same one, is the test part; normalisation measured.
    - "cifar10", "cifar100": see `common.data.cifar`; published normalisation.
    - "folder": images in ROOT/train/CLASS/* or ROOT/CLASS/*, RGB, see `common.data.image_folder`;
      normalisation measured.

    Args:
        name: one of `common.config.DATASETS`.
        root: folder of the data; None or "": the environment variable FEDQUARC_DATA.
        image_size: side in pixels to resize a folder's images to; None: as they are.

    Raises:
        UserError: the name is unknown, the data are missing or damaged, or a setting does not apply
            to this data set.
    """
    if name not in DATASETS:
        raise UserError(f"dataset = {name!r} is unknown, allowed: {', '.join(DATASETS)}")
    if name == "folder":
        folder = _root(root)
        if folder is None:
            raise UserError("dataset 'folder' needs data.root or FEDQUARC_DATA: a folder of images")
        return _from_source(folder_source(folder, image_size=image_size))
    if image_size is not None:
        raise UserError(f"image_size applies to dataset 'folder' only, not to {name!r}")
    if name == "digits":
        return _from_source(_digits_source(), flip=False)
    published = CIFAR[name]
    source = cifar_source(name, _root(root), cache_dir())
    return _from_source(source, mean=published.mean, std=published.std)


def configured_dataset(data: DataConfig) -> Dataset:
    """The run's data set: `load_dataset` with the settings of ``data``.

    Raises:
        UserError: see `load_dataset`.
    """
    return load_dataset(data.dataset, data.root or None, data.image_size or None)


def load_image_folder(
    root: str,
    image_size: int | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
) -> ImageSet:
    """All images of one device, ROOT/train/CLASS/* or ROOT/CLASS/*; nothing is held out.

    Args:
        root: the folder.
        image_size: side in pixels to resize the images to; None: as they are.
        class_names: in order, where they are agreed on with others; None: the names of its class
            folders.

    Raises:
        UserError: the images are missing, damaged or of other classes.
    """
    source = folder_source(
        without_tilde(root), image_size=image_size, class_names=class_names, with_test=False
    )
    return _image_set(load_cached(source, cache_dir()), "train")


def _root(root: str | None) -> Path | None:
    chosen = root or os.environ.get("FEDQUARC_DATA")
    return without_tilde(chosen) if chosen else None


def _from_source(
    source: ImageSource,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    flip: bool = True,
) -> Dataset:
    cached = load_cached(source, cache_dir())
    train = _image_set(cached, "train")
    std = std or cached.std
    if max(std) == 0:
        raise UserError(f"the images of {source.name} are all of one colour: nothing to learn from")
    return Dataset(
        name=source.name,
        train=train,
        test=_image_set(cached, "test"),
        mean=mean or cached.mean,
        # A channel that is the same everywhere, as blue in some microscopes' pictures, becomes 0.
        std=tuple(deviation or 1.0 for deviation in std),
        crop_padding=min(train.images.shape[2:]) // 8,
        flip=flip,
    )


def _image_set(cached: CachedImages, split: str) -> ImageSet:
    images = cached.images[split]
    return ImageSet(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        labels=torch.from_numpy(cached.labels[split]),
        class_names=cached.class_names,
        mapping=images.base if isinstance(images.base, mmap.mmap) else None,
    )


def _digits_source() -> ImageSource:
    return ImageSource(name="digits", location="digits", state="scikit-learn", open=_open_digits)


def _open_digits() -> OpenedSource:
    sklearn_datasets = import_extra("sklearn.datasets", needed_for="dataset 'digits'")
    digits = sklearn_datasets.load_digits()
    # 0 ... 16 to 0 ... 255, rounded
    images = ((digits.images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    test = stratified_mask(labels, DIGITS_TEST_FRACTION, np.random.default_rng(0))
    return OpenedSource(
        splits={
            "train": ImageStream.of(images[~test], labels[~test]),
            "test": ImageStream.of(images[test], labels[test]),
        },
        class_names=tuple(str(name) for name in digits.target_names),
    )
