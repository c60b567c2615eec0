"""How many images fit into one training pass: from what autograd keeps for the backward pass.

Coefficients are fitted to the peak resident memory of processes that train (docs/fleet.md).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from client.memory import MB, give_back_freed, resident_bytes, supernode_bytes

logger = logging.getLogger(__name__)

PROBED_IMAGES = 2
"""Batch normalisation needs more than one value per channel."""

CORRECTED_SHARE = 2.0
"""Kept bytes that a pass takes with correction, at most (docs/fleet.md)."""

FIRST_STEP_BYTES = 40 * MB
"""What the first step takes whatever the model: the kernels' code and scratch memory."""

SMALLEST_PART = 2
"""Images: batch normalisation's statistics of one are bad, and none where a map is one pixel."""

_probed: WeakKeyDictionary[nn.Module, dict[tuple[int, int, int], float]] = WeakKeyDictionary()
"""What `kept_bytes_per_image` gave: emulated devices train in one model after the other."""


def kept_bytes_per_image(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Memory that a forward pass of ``model`` keeps for the backward pass, for one image.

    It depends on the layers, not on their values: a model is looked at once.

    Args:
        model: left as it was, its batch statistics included.
        image_shape: channels, height, width.
    """
    known = _probed.setdefault(model, {})
    if image_shape not in known:
        known[image_shape] = _probe(model, image_shape)
    return known[image_shape]


def _probe(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """See `kept_bytes_per_image`."""
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


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """What training takes beyond what its process holds before."""

    fixed_bytes: float
    """However many images pass at a time: gradients, momentum, the first step's."""
    bytes_per_image: float
    """Of one pass."""

    @classmethod
    def of(
        cls, model: nn.Module, image_shape: tuple[int, int, int], *, corrected: bool
    ) -> TrainingMemory:
        """The memory of training ``model``.

        Args:
            model: to be trained, before its first step.
            image_shape: channels, height, width.
            corrected: whether the loss compares features, so that the teacher's are kept as well.
        """
        kept = kept_bytes_per_image(model, image_shape)
        gradients_and_momentum = 2 * sum(parameter.nbytes for parameter in model.parameters())
        return cls(
            fixed_bytes=gradients_and_momentum + FIRST_STEP_BYTES,
            bytes_per_image=kept * (CORRECTED_SHARE if corrected else 1.0),
        )

    def fitting_images(self, free_bytes: float) -> int:
        """How many images can pass at a time; less than `SMALLEST_PART`: training does not fit."""
        return max(0, int((free_bytes - self.fixed_bytes) / self.bytes_per_image))


def fitting_part_size(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    max_memory_bytes: int,
    used_bytes: int | None = None,
    *,
    corrected: bool = False,
) -> int:
    """The largest part of a batch whose training stays below a limit; 0: the whole batch does.

    Args:
        model: to be trained, before its first step.
        image_shape: channels, height, width.
        batch_size: images of a step.
        max_memory_bytes: that this process and its SuperNode may hold; 0: no limit.
        used_bytes: that they hold now; None: asked of the system.
        corrected: whether the loss compares features.
    """
    if not max_memory_bytes:
        return 0
    if used_bytes is None:
        give_back_freed()
    used = resident_bytes() + supernode_bytes() if used_bytes is None else used_bytes
    memory = TrainingMemory.of(model, image_shape, corrected=corrected)
    size = memory.fitting_images(max_memory_bytes - used)
    if size >= batch_size:
        return 0
    if size < SMALLEST_PART:
        logger.warning(
            "%.0f MB are too little for training: it goes on with %d images at a time",
            max_memory_bytes / MB,
            SMALLEST_PART,
        )
    return max(SMALLEST_PART, size)
