"""A real device: its images are its own, in a folder on its disk, and stay there.

Classes, size and normalisation are the run's (`common.data.input_spec`), not what the folder
suggests: one model has to fit all devices, and some devices lack some classes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from client.device import Device
from common.data.datasets import Dataset, ImageSet, load_image_folder
from common.data.image_folder import NoImagesError, UnknownClassesError
from common.data.input_spec import InputSpec
from common.data.partition import split_holdout
from common.errors import UserError
from common.seeding import stream_seed

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey value, in 1/65536 (ITU-R 601-2, as Pillow's)."""

CONVERTED_IMAGES = 512
"""Images that are converted at a time."""


class DataFolderError(UserError):
    """This device's folder cannot be used.

    The message names folders and files and is for the device's own log; ``summary`` does not, and
    may be sent.
    """

    def __init__(self, message: str, summary: str) -> None:
        super().__init__(message)
        self.summary = summary


@lru_cache(maxsize=16)
def local_device(
    folder: str, inputs: InputSpec, *, partition_id: int, holdout_fraction: float, seed: int
) -> Device:
    """The device whose images are those of FOLDER/CLASS/* (or FOLDER/train/CLASS/*).

    Args:
        folder: may lack some of the run's classes; may not have others.
        inputs: the run's classes, image size and normalisation.
        partition_id: who the device is among the others.
        holdout_fraction: share of the images that is kept for the device's own evaluation.
        seed: of the run; which images are kept derives from it.

    Raises:
        DataFolderError: a folder is missing or holds no image, an image cannot be read or has
            another size and cannot be resized, or a class is none of the run's.
    """
    try:
        images = load_image_folder(folder, inputs.square_side, class_names=inputs.class_names)
    except UnknownClassesError as error:
        raise DataFolderError(str(error), "its folder has classes that this run has not") from error
    except NoImagesError as error:
        raise DataFolderError(str(error), "its folder holds no images") from error
    except UserError as error:
        raise DataFolderError(str(error), "its folder can't be read") from error
    height, width = images.images.shape[2:]
    if (height, width) != (inputs.height, inputs.width):
        raise DataFolderError(
            f"the images in {folder} have {width}x{height} pixels, those of the run "
            f"{inputs.width}x{inputs.height}: resize them",
            "its images are not of this run's size",
        )
    if inputs.channels == 1:
        images = ImageSet(
            images=to_grey(images.images), labels=images.labels, class_names=images.class_names
        )
    everything = torch.arange(len(images))
    train, holdout = split_holdout(
        everything,
        images.labels,
        holdout_fraction,
        stream_seed(seed, "holdout", partition_id),
    )
    train_images = images.subset(train)
    holdout_images = images.subset(holdout)
    return Device(
        partition_id=partition_id,
        dataset=Dataset(
            name=inputs.dataset_name,
            train=train_images,
            test=holdout_images,
            mean=inputs.mean,
            std=inputs.std,
            crop_padding=inputs.crop_padding,
            flip=inputs.flip,
        ),
        train=train_images,
        holdout=holdout_images,
        emulated=False,
    )


def to_grey(images: Tensor) -> Tensor:
    """RGB images [n, 3, h, w] as grey ones [n, 1, h, w], uint8; what is grey keeps its values."""
    rgb = images.permute(0, 2, 3, 1).numpy()
    grey = np.empty((*rgb.shape[:3], 1), dtype=np.uint8)
    weights = np.array(LUMA, dtype=np.uint32)
    for start in range(0, len(rgb), CONVERTED_IMAGES):
        block = slice(start, start + CONVERTED_IMAGES)
        grey[block, ..., 0] = (rgb[block].astype(np.uint32) @ weights + (1 << 15)) >> 16
    return torch.from_numpy(grey).permute(0, 3, 1, 2)
