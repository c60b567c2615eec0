"""How large the benchmarks are: in full, or only to see that each of them runs."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.bench.timing import Timer

SEED = 0
NUM_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all benchmarks; images are synthetic, with three channels."""

    image_side: int
    """In pixels."""

    step_models: tuple[str, ...]
    step_batch: int
    """Images of a training step."""
    step_timer: Timer

    selection_images: tuple[int, ...]
    """That a selection scores, for each of the models."""
    selection_timer: Timer

    data_images: int
    """That are augmented in one measurement."""
    data_batch: int

    num_codes: int
    """That are packed in one measurement."""
    delta_models: tuple[str, ...]
    eden_model: str
    eden_steps: int
    """Training steps that make the change which is encoded."""
    timer: Timer
    """Of everything but steps and selections."""

    memory_models: tuple[str, ...]
    memory_batches: tuple[int, ...]
    memory_batches_in_training: int
    """Batches that the device trains on."""


FULL = Sizes(
    image_side=32,
    step_models=("resnet20", "mobilenetv2-cifar"),
    step_batch=64,
    step_timer=Timer(repeats=5, least_seconds=0.0, least_seconds_of_pairs=5.0),
    selection_images=(2500, 500),
    selection_timer=Timer(repeats=5, least_seconds=0.0),
    data_images=5120,
    data_batch=128,
    num_codes=1 << 22,
    delta_models=("resnet20", "resnet18-cifar"),
    eden_model="resnet20",
    eden_steps=10,
    timer=Timer(repeats=15, least_seconds=0.05),
    memory_models=("resnet20", "mobilenetv2-cifar", "resnet18-cifar"),
    memory_batches=(32, 128),
    memory_batches_in_training=3,
)

QUICK = Sizes(
    image_side=16,
    step_models=("resnet8",),
    step_batch=4,
    step_timer=Timer(repeats=1, least_seconds=0.0),
    selection_images=(8,),
    selection_timer=Timer(repeats=1, least_seconds=0.0),
    data_images=16,
    data_batch=8,
    num_codes=1 << 12,
    delta_models=("resnet8",),
    eden_model="resnet8",
    eden_steps=1,
    timer=Timer(repeats=1, least_seconds=0.0),
    memory_models=("resnet8",),
    memory_batches=(4,),
    memory_batches_in_training=1,
)
