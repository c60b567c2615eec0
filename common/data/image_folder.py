"""Folders of images, one sub-folder for each class: what a real device has on its disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.data.image_cache import ImageSource, ImageStream, OpenedSource, fingerprint
from common.data.image_decoding import decode_image
from common.data.stratify import stratified_mask
from common.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
TEST_FOLDERS = ("test", "val")
HOLDOUT_FRACTION = 0.2
"""Share of the images that is held out for testing where there is no test folder."""
CHUNK_BYTES = 1 << 22


class UnknownClassesError(UserError):
    """A folder has classes that are not in the list that was agreed on."""


class NoImagesError(UserError):
    """A folder holds no image in any class folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderListing:
    """The image files of one ROOT/CLASS/* tree, by class and name."""

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, os.stat_result]
    """By path relative to the root."""
    labels: np.ndarray
    """int64 [n], index into ``class_names``."""


def folder_source(
    root: Path,
    *,
    image_size: int | None = None,
    class_names: tuple[str, ...] | None = None,
    with_test: bool = True,
) -> ImageSource:
    """RGB images of ROOT/train/CLASS/* (or ROOT/CLASS/*), as split "train" and, if asked, "test".

    The test split is ROOT/test or ROOT/val, else a fifth of the images, chosen class by class
    and always the same ones.

    Args:
        root: the folder.
        image_size: side in pixels; the shorter side is resized to it, the longer cropped in the
            middle. None: all images have the same size already.
        class_names: the classes, in order; a folder may have fewer, not others. None: the names of
            the (training) folders, sorted, as numbers where all are numbers.
        with_test: False: all images of ROOT/train (or ROOT) are one split.

    Raises:
        UserError: a folder is missing or cannot be read, holds no images, or names a class that
            is not in the list.
    """
    train = list_images(training_folder(root), class_names)
    listings = {"train": train}
    if with_test and train.root != root:
        for name in TEST_FOLDERS:
            if (root / name).is_dir():
                listings["test"] = list_images(root / name, train.class_names)
                break
    files = {
        f"{split}/{path}": stat
        for split, listing in listings.items()
        for path, stat in listing.files.items()
    }
    return ImageSource(
        name="folder",
        location=f"{root.resolve()}\0{image_size}\0{class_names}\0{with_test}",
        state=fingerprint(files),
        open=partial(_open, listings, image_size, with_test),
    )


def training_folder(root: Path) -> Path:
    """Where ROOT's class folders are: in ROOT/train, unless "train" is one of the classes.

    It is one (in CIFAR-100, for example) where it holds images and no folder.
    """
    train = root / "train"
    if not train.is_dir():
        return root
    try:
        with os.scandir(train) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        is_class = any(_is_image(entry) for entry in entries)
        return root if is_class and not any(entry.is_dir() for entry in entries) else train
    except OSError:  # whoever lists it says why
        return train


def list_images(
    root: Path, class_names: tuple[str, ...] | None = None, *, may_lack_images: bool = False
) -> FolderListing:
    """The images of ROOT/CLASS/*; other files and hidden ones are passed over.

    Args:
        root: the folder.
        class_names: see `folder_source`.
        may_lack_images: whether a class folder may be empty, as with ``class_names``.

    Raises:
        UserError: see `folder_source`.
    """
    files: dict[str, os.stat_result] = {}
    labels: list[int] = []
    try:
        with os.scandir(root) as entries:
            folders = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
        folders.sort(key=_class_order(folders))
        if class_names is None:
            classes = tuple(folders)
        else:
            classes = class_names
            unknown = [name for name in folders if name not in classes]
            if unknown:
                raise UnknownClassesError(
                    f"{root} has class folders that are not among the {len(classes)} classes of "
                    f"this run: {_shortened(unknown)} (classes: {_shortened(classes)})"
                )
        for folder in folders:
            with os.scandir(root / folder) as entries:
                found = sorted(
                    (entry.name, entry.stat())
                    for entry in entries
                    if not entry.name.startswith(".") and _is_image(entry)
                )
            if not found and class_names is None and not may_lack_images:
                raise UserError(f"class folder {root / folder} holds no {image_formats()} image")
            files.update((f"{folder}/{name}", stat) for name, stat in found)
            labels.extend([classes.index(folder)] * len(found))
    except OSError as error:
        raise UserError(f"cannot read image folder {error.filename}: {error.strerror}") from error
    if not files:
        raise NoImagesError(f"{root} holds no images: expected CLASS/*.png (or {image_formats()})")
    return FolderListing(
        root=root, class_names=classes, files=files, labels=np.array(labels, dtype=np.int64)
    )


def _open(
    listings: dict[str, FolderListing], image_size: int | None, with_test: bool
) -> OpenedSource:
    train = listings["train"]
    paths = {s: [listing.root / f for f in listing.files] for s, listing in listings.items()}
    labels = {split: listing.labels for split, listing in listings.items()}
    if with_test and "test" not in listings:
        held_out = stratified_mask(train.labels, HOLDOUT_FRACTION, np.random.default_rng(0))
        if not held_out.any():
            raise UserError(
                f"{train.root} holds {len(train.labels)} images, too few to hold out a fifth for "
                f"testing: add images, or a folder test/CLASS/* beside train/CLASS/*"
            )
        paths = {
            "train": [
                path for path, held in zip(paths["train"], held_out, strict=True) if not held
            ],
            "test": [path for path, held in zip(paths["train"], held_out, strict=True) if held],
        }
        labels = {"train": train.labels[~held_out], "test": train.labels[held_out]}
    if image_size is None:
        height, width = _read(paths["train"][0], None).shape[:2]
    else:
        height = width = image_size
    return OpenedSource(
        splits={
            split: ImageStream(
                shape=(len(paths[split]), height, width, 3),
                labels=labels[split],
                chunks=partial(
                    _read_chunks, paths[split], paths["train"][0], (height, width), image_size
                ),
            )
            for split in paths
        },
        class_names=train.class_names,
    )


def _read_chunks(
    paths: Sequence[Path], first: Path, size: tuple[int, int], image_size: int | None
) -> Iterator[np.ndarray]:
    """The images of ``paths``, all of the ``size`` of ``first``."""

    def read(path: Path) -> np.ndarray:
        image = _read(path, image_size)
        if image.shape[:2] != size:
            raise UserError(
                f"{path} has {image.shape[1]}x{image.shape[0]} pixels, {first} has "
                f"{size[1]}x{size[0]}: set data.image-size to resize them all"
            )
        return image

    chunk = max(1, CHUNK_BYTES // (3 * size[0] * size[1]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), chunk):
            yield np.stack(list(pool.map(read, paths[start : start + chunk])))


def _read(path: Path, image_size: int | None) -> np.ndarray:
    return decode_image(path, str(path), image_size)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return has_image_suffix(entry.name) and entry.is_file()


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _class_order(names: Sequence[str]) -> type[int] | type[str]:
    # Class folders "0" ... "99" are meant in the order of their numbers.
    return int if all(name.isdecimal() for name in names) else str


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def image_formats() -> str:
    """Those that are read, as messages name them."""
    return "/".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
