"""Which devices of a fleet have the memory to train, and how many images they take at a time.

A device here is a process among others that share their pages, so that its own memory says nothing
of the device's. What a device's process holds before it trains is computed, by coefficients that
were fitted to processes of real clients (docs/fleet.md); from there on the emulated device does
what a real one with ``--max-memory`` does (`client.batch_fit`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.batch_fit import SMALLEST_PART, TrainingMemory
from client.memory import MB
from common.config import Config
from common.errors import UserError
from common.models import create_model
from common.qat import prepare
from simulations.emulation.hardware import Emulation

IMPORTS_BYTES = 278 * MB
"""Of a ClientApp's process after its imports, with torch's CPU build (docs/raspberry-pi.md)."""

STARTED_BYTES = 16 * MB
"""What handling a first message adds, whatever the model."""

MODEL_COPIES = 8
"""Float32 copies of the model's parameters that are held at once: global model and teacher as
payload, as arrays and as modules, and the architectures that these are copied from."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of every device of a run."""

    used_bytes: NDArray[np.int64]
    """What a device's process holds before it trains, [devices]."""
    needed_bytes: NDArray[np.int64]
    """The least that training takes in all, [devices]."""
    part_sizes: NDArray[np.int64]
    """Images of a batch that a device trains on at a time, [devices]; 0: it can't train."""
    batch_size: int

    @property
    def unable(self) -> frozenset[int]:
        """Partition ids of the devices that can't train."""
        return frozenset(np.flatnonzero(self.part_sizes == 0).tolist())

    def notes(self, emulation: Emulation) -> list[str]:
        """What a user should know, a sentence for each class that is short of memory."""
        sentences = []
        for index, profile in enumerate(emulation.fleet.profiles):
            members = emulation.class_of == index
            sizes, memory = self.part_sizes[members], f"{profile.memory_mb:g} MB"
            unable, in_parts = sizes == 0, (sizes > 0) & (sizes < self.batch_size)
            if unable.any():
                least = self.needed_bytes[members][unable].min() / MB
                sentences.append(
                    f"{unable.sum()} of {len(sizes)} {profile.class_name} can't take part: "
                    f"training needs {least:.0f} MB or more, they have {memory}"
                )
            if in_parts.any():
                low, high = sizes[in_parts].min(), sizes[in_parts].max()
                few = f"{low}" if low == high else f"{low} to {high}"
                sentences.append(
                    f"{in_parts.sum()} of {len(sizes)} {profile.class_name} train on at most {few} "
                    f"images at a time (batches of {self.batch_size}): they have {memory}"
                )
        return sentences


def plan_memory(
    config: Config,
    emulation: Emulation,
    num_images: NDArray[np.int64],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> MemoryPlan:
    """The memory of every device.

    Args:
        config: of the run.
        emulation: the devices.
        num_images: that each of them holds, [devices].
        num_classes: of the data set.
        image_shape: channels, height, width.

    Raises:
        UserError: if no device can train.
    """
    module = create_model(config.model.name, num_classes=num_classes, in_channels=image_shape[0])
    model_bytes = sum(parameter.nbytes for parameter in module.parameters())
    used = (
        IMPORTS_BYTES
        + STARTED_BYTES
        + MODEL_COPIES * model_bytes
        + num_images * int(np.prod(image_shape))
    )
    has_memory = np.array([profile.memory_mb for profile in emulation.fleet.profiles]) * MB
    limits = has_memory[emulation.class_of].astype(np.int64)
    # The prepared model keeps more than the float one: whoever can train it can warm up as well.
    training = TrainingMemory.of(
        prepare(module, config.quantization),
        image_shape,
        corrected=config.is_corrected,
    )
    batch_size = config.training.batch_size
    needed = used + int(training.fixed_bytes + SMALLEST_PART * training.bytes_per_image)
    sizes = np.array([training.fitting_images(free) for free in (limits - used).tolist()])
    plan = MemoryPlan(
        used_bytes=used,
        needed_bytes=needed,
        part_sizes=np.where(needed > limits, 0, np.clip(sizes, SMALLEST_PART, batch_size)),
        batch_size=batch_size,
    )
    if len(plan.unable) == emulation.num_devices:
        raise UserError(
            f"fleet {emulation.fleet.name}: no device can train {config.model.name}: this needs "
            f"{needed.min() / MB:.0f} MB or more, memory-mb is {limits.max() / MB:g} at most"
        )
    return plan
