"""Decoded images kept as .npy files, so that they are decoded once and shared by all processes.

An entry is a folder of plain arrays beside a small JSON file. It is written under another name and
renamed when complete, and memory-mapped afterwards: processes that read the same entry share its
pages, and starting again takes milliseconds. An entry is found by what it was made from (paths,
sizes and modification times), so that changed files are decoded again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from common.data.decoding_progress import DecodingProgress
from common.errors import UserError
from common.units import format_bytes

FORMAT = 1
"""Version of the entries; one of another version is made again."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageStream:
    """Labelled images, decoded a chunk at a time so that they need not fit in memory."""

    shape: tuple[int, int, int, int]
    """Number of images, height, width, channels."""
    labels: np.ndarray
    """int64 [n]."""
    chunks: Callable[[], Iterator[np.ndarray]]
    """Starts over at every call; uint8 [k, height, width, channels], n images in all."""

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray) -> ImageStream:
        """The stream of ``images`` uint8 [n, height, width, channels] that are in memory."""
        return cls(shape=images.shape, labels=labels, chunks=lambda: iter([images]))


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedSource:
    """What a source holds: the stream of each split, and the names of its classes."""

    splits: Mapping[str, ImageStream]
    class_names: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Of all splits."""
        return sum(stream.shape[0] for stream in self.splits.values())

    @property
    def num_bytes(self) -> int:
        """What they take when they are decoded."""
        return sum(math.prod(stream.shape) for stream in self.splits.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Where images come from, and how to read them when they are not in the cache."""

    name: str
    """Of the data set, for people."""
    location: str
    """What is read and how: one entry is kept for each."""
    state: str
    """Changes when what is there changes (`fingerprint`)."""
    open: Callable[[], OpenedSource]


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedImages:
    """Decoded images by split, with the statistics of the split "train"."""

    images: Mapping[str, np.ndarray]
    """uint8 [n, height, width, channels], memory-mapped copy-on-write."""
    labels: Mapping[str, np.ndarray]
    """int64 [n]."""
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""


def fingerprint(files: Mapping[str, os.stat_result]) -> str:
    """Digest of the names, sizes and modification times of ``files``."""
    digest = hashlib.blake2b(digest_size=16)
    for name, stat in files.items():
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_cached(source: ImageSource, cache_dir: Path) -> CachedImages:
    """The images of ``source``, from the cache, into which they are decoded when not there.

    Of several processes that need the same entry one decodes, the others wait for it. Where the
    cache cannot be written the images are kept in memory and a warning says so.

    Raises:
        UserError: a file of the source is missing or damaged, or the images fit neither into the
            cache nor into memory.
    """
    location = hashlib.blake2b(source.location.encode(), digest_size=8).hexdigest()
    prefix = f"{source.name}-{location}"
    state = hashlib.blake2b(f"{FORMAT}\0{source.state}".encode(), digest_size=8).hexdigest()
    entry = cache_dir / f"{prefix}-{state}"
    cached = _read_entry(entry)
    if cached is not None:
        return cached
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{prefix}.lock"):
            cached = _read_entry(entry)
            if cached is None:
                partial = cache_dir / f"{prefix}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                _remove_abandoned(cache_dir)
                _write_entry(source.open(), entry, partial=partial)
                for outdated in cache_dir.glob(f"{prefix}-*"):
                    if outdated != entry:
                        shutil.rmtree(outdated, ignore_errors=True)
                cached = _read_entry(entry)
    except OSError as error:
        reason = f"cannot write the cache {cache_dir} ({error.strerror or error})"
        opened = source.open()
        if opened.num_bytes > _machine_memory():
            raise UserError(
                f"{reason}: the images of {source.name} take {format_bytes(opened.num_bytes)}, "
                f"more than this machine's memory; set FEDQUARC_CACHE to a folder with that much "
                f"room"
            ) from error
        _logger.warning(
            "%s: the images of %s are decoded into memory; set FEDQUARC_CACHE to a writable folder",
            reason,
            source.name,
        )
        return _decode_to_memory(opened)
    return cached if cached is not None else _decode_to_memory(source.open())


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove what killed processes left half decoded: its source may never be asked for again."""
    for partial in cache_dir.glob("*.partial"):
        # Whoever still decodes it holds its lock (Timeout is an OSError).
        with suppress(OSError), FileLock(partial.with_suffix(".lock"), timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _write_entry(opened: OpenedSource, entry: Path, *, partial: Path) -> None:
    if shutil.disk_usage(partial.parent).free < opened.num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # now, not after hours of decoding
    progress = DecodingProgress(
        f"the images for {entry}", num_images=opened.num_images, num_bytes=opened.num_bytes
    )
    partial.mkdir()
    try:
        statistics = _Statistics()
        for split, stream in opened.splits.items():
            with (partial / f"{split}-images.npy").open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": stream.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in _checked_chunks(stream):
                    file.write(np.ascontiguousarray(chunk).data)
                    if split == "train":
                        statistics.add(chunk)
                    progress.advance(len(chunk))
                _flush(file)
            with (partial / f"{split}-labels.npy").open("wb") as file:
                np.save(file, stream.labels)
                _flush(file)
        mean, std = statistics.mean_std()
        meta = {
            "format": FORMAT,
            "shapes": {split: stream.shape for split, stream in opened.splits.items()},
            "class_names": opened.class_names,
            "mean": mean,
            "std": std,
        }
        with (partial / "meta.json").open("wb") as file:
            file.write(json.dumps(meta, indent=1).encode())
            _flush(file)
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        partial.rename(entry)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush(file: Any) -> None:
    # The rename must not reach the disk before the data does.
    file.flush()
    os.fsync(file.fileno())


def _read_entry(entry: Path) -> CachedImages | None:
    """The entry, or None when there is none or it is damaged."""
    try:
        meta = json.loads((entry / "meta.json").read_bytes())
        images, labels = {}, {}
        for split, shape in meta["shapes"].items():
            # Copy-on-write: torch gets a writable array, the file never changes.
            images[split] = np.load(entry / f"{split}-images.npy", mmap_mode="c")
            labels[split] = np.load(entry / f"{split}-labels.npy")
            if images[split].shape != tuple(shape) or images[split].dtype != np.uint8:
                raise ValueError(f"{split}-images.npy is not uint8 {shape}")
            if labels[split].shape != (shape[0],) or labels[split].dtype != np.int64:
                raise ValueError(f"{split}-labels.npy is not int64 [{shape[0]}]")
            if labels[split].min() < 0 or labels[split].max() >= len(meta["class_names"]):
                raise ValueError(f"{split}-labels.npy has labels without a class")
        return CachedImages(
            images=images,
            labels=labels,
            class_names=tuple(meta["class_names"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        if entry.exists():
            _logger.warning("cache entry %s is damaged (%s): decoding again", entry, error)
        return None


def _decode_to_memory(opened: OpenedSource) -> CachedImages:
    images = {
        split: np.concatenate(list(_checked_chunks(stream)))
        for split, stream in opened.splits.items()
    }
    statistics = _Statistics()
    statistics.add(images["train"])
    mean, std = statistics.mean_std()
    return CachedImages(
        images=images,
        labels={split: stream.labels for split, stream in opened.splits.items()},
        class_names=opened.class_names,
        mean=mean,
        std=std,
    )


def _checked_chunks(stream: ImageStream) -> Iterator[np.ndarray]:
    num_images = 0
    for chunk in stream.chunks():
        assert chunk.dtype == np.uint8
        assert chunk.shape[1:] == stream.shape[1:]
        num_images += len(chunk)
        yield chunk
    assert num_images == stream.shape[0] == len(stream.labels)


class _Statistics:
    """Mean and standard deviation per channel, from exact integer sums."""

    def __init__(self) -> None:
        self.num_pixels = 0
        self.sums = np.zeros(1, dtype=np.int64)
        self.square_sums = np.zeros(1, dtype=np.int64)

    def add(self, images: np.ndarray) -> None:
        """Count uint8 ``images`` [n, height, width, channels] in."""
        num_channels = images.shape[-1]
        for block in np.array_split(images, max(1, images.nbytes >> 22)):
            squares = np.square(block, dtype=np.uint16)  # 255^2 = 65,025 fits
            self.num_pixels += block.size // num_channels
            # Over the images first: that sum runs along contiguous memory.
            self.sums = self.sums + block.sum(0, np.int64).reshape(-1, num_channels).sum(0)
            self.square_sums = self.square_sums + squares.sum(0, np.int64).reshape(
                -1, num_channels
            ).sum(0)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean = self.sums / self.num_pixels
        variance = np.maximum(self.square_sums / self.num_pixels - mean**2, 0.0)
        return tuple((mean / 255).tolist()), tuple((np.sqrt(variance) / 255).tolist())
