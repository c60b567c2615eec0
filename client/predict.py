"""The classes of images, by the low-bit model that a federation has trained.

Images become the model's input as a device's own images do in training. Weights are kept as
integer codes and become codes times steps, in float32, layer by layer: PyTorch has no kernels for
2-bit weights, so a packed model is small on disk and in memory, not faster than a float one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from client.local_device import to_grey
from common.data.augmentation import normalize
from common.data.image_decoding import decode_image
from common.data.image_folder import has_image_suffix, image_formats
from common.data.input_spec import InputSpec
from common.errors import UserError
from common.payloads.packed_model import PackedModel
from common.qat import convert

BATCH_SIZE = 64
"""Larger batches fall out of the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one image."""

    image: Path
    class_name: str
    """The likeliest class."""
    probability: float
    """Its softmax probability."""


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as they are named; of folders all images at any depth, sorted, hidden ones left out.

    Raises:
        UserError: a path does not exist, or there is no image in a folder.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if _is_image(file, path))
            if not found:
                raise UserError(f"{path} holds no images ({image_formats()})")
            images += found
        elif path.exists():
            images.append(path)
        else:
            raise UserError(f"{path} does not exist: expected an image or a folder of images")
    return images


@torch.inference_mode()
def predict(model: PackedModel, images: Sequence[Path]) -> Iterator[Prediction]:
    """The likeliest class of each image, in order; no more than a batch is in memory.

    Raises:
        UserError: an image cannot be read, or has another size and cannot be resized.
    """
    network, inputs = convert(model.network), model.inputs
    read = partial(_read, inputs=inputs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            pixels = torch.from_numpy(np.stack(list(pool.map(read, batch)))).permute(0, 3, 1, 2)
            if inputs.channels == 1:
                pixels = to_grey(pixels)
            logits = network(normalize(pixels, inputs.mean, inputs.std))
            probabilities, classes = logits.softmax(dim=1).max(dim=1)
            for image, index, probability in zip(
                batch, classes.tolist(), probabilities.tolist(), strict=True
            ):
                yield Prediction(
                    image=image, class_name=inputs.class_names[index], probability=probability
                )


def _is_image(file: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not is_hidden and has_image_suffix(file.name) and file.is_file()


def _read(path: Path, inputs: InputSpec) -> np.ndarray:
    """One image, uint8 [height, width, 3]."""
    pixels = decode_image(path, str(path), inputs.square_side)
    if pixels.shape[:2] != (inputs.height, inputs.width):
        raise UserError(
            f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, the model's images "
            f"{inputs.width}x{inputs.height}: resize it"
        )
    return pixels
