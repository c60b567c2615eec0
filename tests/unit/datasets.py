"""Data sets in memory, for the tests of what selects and trains."""

from __future__ import annotations

from common.data.datasets import Dataset, ImageSet


def dataset_of(
    images: ImageSet,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    crop_padding: int = 0,
    flip: bool = False,
) -> Dataset:
    """Both parts are the same images, of one channel."""
    return Dataset(
        name="test",
        train=images,
        test=images,
        mean=(mean,),
        std=(std,),
        crop_padding=crop_padding,
        flip=flip,
    )
