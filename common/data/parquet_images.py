"""Images in parquet files, as the Hugging Face hub keeps them: encoded bytes beside a label."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from common.data.image_cache import ImageStream, OpenedSource
from common.data.image_decoding import decode_image
from common.errors import UserError
from common.extras import import_extra

IMAGE_COLUMNS = ("img", "image")
CHUNK = 1000
"""Images that are read and decoded together."""


def open_parquet(
    files: Mapping[str, Sequence[Path]],
    *,
    label_columns: Sequence[str],
    num_classes: int,
    side: int,
) -> OpenedSource:
    """Splits of square RGB images of ``side`` pixels, with ``num_classes`` classes.

    Class names come from the schema's "huggingface" metadata; without it they are "0", "1", ...

    Args:
        files: the files of each split, in order.
        label_columns: names that the label's column may have; the first one found counts.
        num_classes: number of classes that there must be.
        side: height and width that images must have, pixels.

    Raises:
        UserError: a file is damaged, has other columns, or has labels of other classes; or pyarrow
            is not installed.
    """
    parquet = import_extra("pyarrow.parquet", needed_for="reading parquet files")
    splits = {}
    class_names: tuple[str, ...] = ()
    for split, paths in files.items():
        labels = []
        for path in paths:
            with _naming(path):
                file = parquet.ParquetFile(path)
                schema = file.schema_arrow
                image_column = _column(path, schema.names, IMAGE_COLUMNS)
                label_column = _column(path, schema.names, label_columns)
                labels.append(file.read([label_column])[label_column].to_numpy())
            class_names = _class_names(schema, label_column) or class_names
            if len(class_names or range(num_classes)) != num_classes:
                raise UserError(f"{path} has {len(class_names)} classes instead of {num_classes}")
            _check_labels(path, labels[-1], num_classes)
        all_labels = np.concatenate(labels).astype(np.int64)
        splits[split] = ImageStream(
            shape=(len(all_labels), side, side, 3),
            labels=all_labels,
            chunks=partial(_chunks, parquet, paths, image_column, side),
        )
    return OpenedSource(
        splits=splits, class_names=class_names or tuple(str(c) for c in range(num_classes))
    )


def _column(path: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in found:
            return name
    raise UserError(f"{path} has no column {' or '.join(wanted)}: it has {', '.join(found)}")


def _class_names(schema: Any, label_column: str) -> tuple[str, ...]:
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return ()
    features = json.loads(metadata).get("info", {}).get("features", {})
    return tuple(features.get(label_column, {}).get("names", ()))


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    if len(labels) == 0:
        raise UserError(f"{path} holds no images")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{path} has labels that are not integers from 0 to {num_classes - 1}")


def _chunks(
    parquet: Any, paths: Sequence[Path], image_column: str, side: int
) -> Iterator[np.ndarray]:
    for path in paths:
        row = 0
        with _naming(path):
            # Read through a small buffer: otherwise a whole column chunk is held (measured on
            # CIFAR-100, at the same speed: 128 MB at the peak against 230).
            file = parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
            batches = file.iter_batches(CHUNK, columns=[image_column])
        while True:
            with _naming(path):
                batch = next(batches, None)
                if batch is None:
                    break
                encoded = batch.column(0).field("bytes").to_pylist()
            images = np.empty((len(encoded), side, side, 3), dtype=np.uint8)
            # No threads: for images this small the interpreter's lock makes them slower
            # (measured on 2 cores: 18,000 images/s in one thread, 12,000 in two).
            for index, data in enumerate(encoded):
                images[index] = _decode(data, f"in row {row + index} of {path}", side)
            yield images
            row += len(encoded)


def _decode(encoded: bytes | None, place: str, side: int) -> np.ndarray:
    if not encoded:
        raise UserError(f"there are no image bytes {place}")
    image = decode_image(BytesIO(encoded), place)
    if image.shape[:2] != (side, side):
        raise UserError(
            f"the image {place} has {image.shape[1]}x{image.shape[0]} pixels, not {side}x{side}"
        )
    return image


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    # pyarrow's errors are OSError and ValueError (ArrowInvalid), or come from json.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
