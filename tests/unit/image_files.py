"""Small image sets on disk, for the tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def plain(value: int, height: int = 32, width: int = 32) -> np.ndarray:
    """An RGB image whose pixels are all (value, value + 1, value + 2)."""
    return np.full((height, width, 3), (value, value + 1, value + 2), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """``pixels`` uint8 [h, w, 3] as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tree(root: Path, classes: Sequence[str], images: int = 1, side: int = 32) -> None:
    """ROOT/CLASS/0.png ...; the pixels of image i of class c are those of plain(10 c + i)."""
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(images):
            data = png(plain(10 * index + image, side, side))
            (root / name / f"{image}.png").write_bytes(data)


def write_parquet(
    path: Path,
    encoded: Sequence[bytes | None],
    labels: Sequence[int],
    *,
    image_column: str = "img",
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
) -> None:
    """A parquet file as the Hugging Face hub keeps images, with or without class names."""
    import pyarrow as pa
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": data, "path": None} for data in encoded],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({image_column: images, label_column: pa.array(labels, pa.int64())})
    if class_names is not None:
        features = {label_column: {"names": list(class_names), "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, path)
