"""A picture of a split: which device holds how many images of which class, and how many in all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from common.atomic_file import replacing
from common.extras import import_extra
from common.units import format_count

NEEDED_FOR = "the picture of the split"
MAX_NAMED_CLASSES = 110
"""With more classes than this the axis shows numbers: names would overlap."""


def count_labels(labels: Tensor, parts: Sequence[Tensor], num_classes: int) -> np.ndarray:
    """Number of samples of each class on each device, int64 [devices, classes].

    Args:
        labels: int64 [n].
        parts: indices of each device's samples, int64.
        num_classes: number of columns.
    """
    return np.stack(
        [np.bincount(labels[part].numpy(), minlength=num_classes) for part in parts]
    ).astype(np.int64)


def plot_split(
    labels: Tensor, parts: Sequence[Tensor], class_names: Sequence[str], path: Path
) -> None:
    """Write a PNG: devices x classes as a heatmap, and each device's size as a bar.

    Args:
        labels: int64 [n].
        parts: indices of each device's samples, int64.
        class_names: name of each class.
        path: the file; written under another name and renamed.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    counts = count_labels(labels, parts, len(class_names))
    num_devices, num_classes = counts.shape
    width = float(np.clip(5 + 0.14 * num_classes, 8, 19))
    height = float(np.clip(2.5 + 0.1 * num_devices, 4.5, 14))
    figure = figure_module.Figure(figsize=(width, height), dpi=110, layout="constrained")
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(width - 3.5, 1.8))

    # None is white and one image is not; the root scale keeps small counts apart from each other
    # where one device has most of a class.
    shades = import_extra("matplotlib", needed_for=NEEDED_FOR).colormaps["Blues"]
    colors = import_extra("matplotlib.colors", needed_for=NEEDED_FOR)
    mesh = heat.imshow(
        np.ma.masked_equal(counts, 0),
        aspect="auto",
        interpolation="nearest",
        cmap=colors.ListedColormap(shades(np.linspace(0.2, 1.0, 256))),
        norm=colors.PowerNorm(0.5, vmin=0, vmax=counts.max()),
    )
    heat.set_ylabel("device")
    heat.set_xlabel("class")
    heat.set_title("Images of each class (white: none)")
    if num_classes <= MAX_NAMED_CLASSES:
        size = 9 if num_classes <= 30 else 6.5
        short = all(len(name) <= 3 for name in class_names) and num_classes <= 30
        heat.set_xticks(range(num_classes), class_names, rotation=0 if short else 90, fontsize=size)
    if num_devices <= 30:
        heat.set_yticks(range(num_devices))
    figure.colorbar(mesh, ax=heat, label="images (root scale)", pad=0.01, aspect=40)

    sizes = counts.sum(axis=1)
    bars.barh(range(num_devices), sizes, height=0.8, color=shades(0.75))
    bars.set_title("Images in all")
    bars.set_xlabel("images")
    bars.margins(y=0)
    bars.spines[["top", "right"]].set_visible(False)
    bars.tick_params(labelleft=False)
    figure.suptitle(
        f"{sizes.sum():,} images, {num_classes} classes, {format_count(num_devices, 'device')} "
        f"({sizes.min():,} to {sizes.max():,} images each)"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
