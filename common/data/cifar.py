"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from whichever of three layouts a user has.

The layouts are told apart by what is there:
    torchvision   cifar-100-python/ or cifar-10-batches-py/, the published archive unpacked
    parquet       train-*.parquet and test-*.parquet, the Hugging Face layout of uoft-cs/cifar100
    image tree    train/CLASS/*.png and test/CLASS/*.png
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from common.data.image_cache import ImageSource, ImageStream, OpenedSource, fingerprint
from common.data.image_folder import TEST_FOLDERS, folder_source
from common.data.parquet_images import open_parquet
from common.errors import UserError

SIDE = 32
"""Height and width of every image, pixels."""
DOWNLOAD_TIMEOUT_SECONDS = 30.0
"""Longest silence of the server."""


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """What sets one of the two data sets apart."""

    title: str
    num_classes: int
    mean: tuple[float, ...]
    """Published, per channel, of training pixels in [0, 1]."""
    std: tuple[float, ...]
    """Published, per channel, of training pixels in [0, 1]."""
    torchvision_class: str
    torchvision_folder: str
    label_columns: tuple[str, ...]
    """Parquet columns that may hold the label, the first one found counts."""
    parquet_folders: tuple[str, ...]
    """Sub-folders in which the parquet files may lie."""


CIFAR = {
    "cifar10": Cifar(
        title="CIFAR-10",
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        torchvision_class="CIFAR10",
        torchvision_folder="cifar-10-batches-py",
        label_columns=("label",),
        parquet_folders=(".", "data", "cifar10", "plain_text"),
    ),
    "cifar100": Cifar(
        title="CIFAR-100",
        num_classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        torchvision_class="CIFAR100",
        torchvision_folder="cifar-100-python",
        label_columns=("fine_label", "label"),
        parquet_folders=(".", "data", "cifar100"),
    ),
}


def cifar_source(name: str, root: Path | None, cache_dir: Path) -> ImageSource:
    """Source of "cifar10" or "cifar100", splits "train" and "test".

    Args:
        name: key of `CIFAR`.
        root: folder in one of the three layouts; None: torchvision's download into the cache.
        cache_dir: where downloads are kept.

    Raises:
        UserError: ``root`` is in none of the layouts, a file is missing, or the download failed.
    """
    cifar = CIFAR[name]
    if root is None:
        downloads = cache_dir / "downloads"
        if not (downloads / cifar.torchvision_folder).is_dir():
            _download(cifar, downloads)
        return _torchvision_source(name, downloads)
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist; for {cifar.title} {_advice(cifar)}")
    if root.name == cifar.torchvision_folder:
        return _torchvision_source(name, root.parent)
    if (root / cifar.torchvision_folder).is_dir():
        return _torchvision_source(name, root)
    for folder in cifar.parquet_folders:
        if any((root / folder).glob("train-*.parquet")):
            return _parquet_source(name, root / folder)
    if (root / "train").is_dir():
        return _tree_source(name, root)
    raise UserError(f"{root} does not hold {cifar.title}: {_advice(cifar)}")


def _advice(cifar: Cifar) -> str:
    return (
        f"set FEDQUARC_DATA to a folder that holds {cifar.torchvision_folder} (torchvision), "
        f"train-*.parquet and test-*.parquet (Hugging Face), or train/CLASS/*.png and "
        f"test/CLASS/*.png"
    )


def _download(cifar: Cifar, downloads: Path) -> None:
    from filelock import FileLock
    from torchvision import datasets  # seconds to import: only when it is needed

    complete = downloads / cifar.torchvision_folder
    # Unpacked elsewhere: what was cut off must not be taken for the data set the next time.
    partial_download = downloads / f"{cifar.torchvision_folder}.partial"
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / f"{cifar.torchvision_folder}.lock"), _socket_timeout():
            if complete.is_dir():  # another process was faster
                return
            reader = getattr(datasets, cifar.torchvision_class)
            reader(str(partial_download), download=True)
            (partial_download / cifar.torchvision_folder).rename(complete)
            shutil.rmtree(partial_download)  # the archive
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{cifar.title} could not be downloaded ({reason}): {_advice(cifar)}"
        ) from error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    # urllib waits for ever by default, and torchvision passes no timeout on.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _stat(files: list[Path]) -> str:
    try:
        return fingerprint({file.name: file.stat() for file in files})
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


# --- the archive as published, read by torchvision


def _torchvision_source(name: str, root: Path) -> ImageSource:
    folder = root / CIFAR[name].torchvision_folder
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return ImageSource(
        name=name,
        location=f"torchvision\0{folder.resolve()}",
        state=_stat(files),
        open=partial(_open_torchvision, name, root),
    )


def _open_torchvision(name: str, root: Path) -> OpenedSource:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    cifar = CIFAR[name]
    reader: Any = getattr(datasets, cifar.torchvision_class)
    # The files are pickles, which can run code: torchvision opens them only when their checksums
    # are the published ones. Checked here first, to name the file.
    meta = [(reader.meta["filename"], reader.meta["md5"])]
    for filename, md5 in [*reader.train_list, *reader.test_list, *meta]:
        path = root / cifar.torchvision_folder / filename
        if not path.is_file():
            raise UserError(f"{cifar.title} file {path} is missing")
        if not check_integrity(str(path), md5):
            raise UserError(
                f"{cifar.title} file {path} is damaged: its checksum is not the published one"
            )
    splits = {}
    for split in ("train", "test"):
        part = reader(str(root), train=split == "train")
        splits[split] = ImageStream.of(part.data, np.array(part.targets, dtype=np.int64))
    return OpenedSource(splits=splits, class_names=tuple(part.classes))


# --- parquet files


def _parquet_source(name: str, folder: Path) -> ImageSource:
    files = {}
    for split in ("train", "test"):
        files[split] = sorted(folder.glob(f"{split}-*.parquet"))
        if not files[split]:
            raise UserError(f"{folder} holds no {split}-*.parquet")
    cifar = CIFAR[name]
    return ImageSource(
        name=name,
        location=f"parquet\0{folder.resolve()}",
        state=_stat([*files["train"], *files["test"]]),
        open=partial(
            open_parquet,
            files,
            label_columns=cifar.label_columns,
            num_classes=cifar.num_classes,
            side=SIDE,
        ),
    )


# --- a tree of image files


def _tree_source(name: str, root: Path) -> ImageSource:
    # Images held out of train/ are no substitute: published and shipped models were trained on it.
    if not any((root / folder).is_dir() for folder in TEST_FOLDERS):
        raise UserError(
            f"{root} holds no test/CLASS/*.png: expected the test images of {CIFAR[name].title} "
            f"beside train/CLASS/*.png"
        )
    source = folder_source(root)
    return ImageSource(
        name=name,
        location=f"tree\0{source.location}",
        state=source.state,
        open=partial(_open_tree, name, root, source),
    )


def _open_tree(name: str, root: Path, source: ImageSource) -> OpenedSource:
    cifar = CIFAR[name]
    opened = source.open()
    if len(opened.class_names) != cifar.num_classes:
        raise UserError(
            f"{root / 'train'} has {len(opened.class_names)} class folders, "
            f"{cifar.title} has {cifar.num_classes}"
        )
    _, height, width, _ = opened.splits["train"].shape
    if (height, width) != (SIDE, SIDE):
        raise UserError(
            f"images in {root / 'train'} have {width}x{height} pixels, "
            f"those of {cifar.title} have {SIDE}x{SIDE}"
        )
    return opened
