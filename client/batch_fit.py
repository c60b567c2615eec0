"""How many images fit into one training pass: from what autograd keeps for the backward pass."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from client.memory import MB, resident_bytes

logger = logging.getLogger(__name__)

PROBED_IMAGES = 2
"""Batch normalisation needs more than one value per channel."""

OVERHEAD = 2.0
"""Measured peak over kept bytes: gradients, the teacher's features, the kernels' scratch memory."""

SMALLEST_PART = 2


def kept_bytes_per_image(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Memory that a forward pass of ``model`` keeps for the backward pass, for one image.

    Args:
        model: left as it was, its batch statistics included.
        image_shape: channels, height, width.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.zeros(PROBED_IMAGES, *image_shape))
    del output
    model.train(was_training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return sum(kept.values()) / PROBED_IMAGES


def fitting_part_size(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    max_memory_bytes: int,
    used_bytes: int | None = None,
) -> int:
    """The largest part of a batch whose training stays below a limit; 0: the whole batch does.

    Args:
        model: to be trained, before its first step.
        image_shape: channels, height, width.
        batch_size: images of a step.
        max_memory_bytes: that this process may hold; 0: no limit.
        used_bytes: that it holds now; None: asked of the system.
    """
    if not max_memory_bytes:
        return 0
    used = resident_bytes() if used_bytes is None else used_bytes
    # Gradients and momentum.
    held = 2 * sum(parameter.nbytes for parameter in model.parameters())
    room = max(0.0, max_memory_bytes - used - held)
    size = int(room / (OVERHEAD * kept_bytes_per_image(model, image_shape)))
    if size >= batch_size:
        return 0
    if size < SMALLEST_PART:
        logger.warning(
            "%.0f MB are too little for training: it goes on with %d images at a time",
            max_memory_bytes / MB,
            SMALLEST_PART,
        )
    return max(SMALLEST_PART, size)
