"""What single optimisations are worth: the same work with and without each of them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

from torch import nn

from client import trainer
from common.blocks import ReLU6
from common.convolution import Conv2d
from common.folding import fold_batch_norm
from simulations.bench import noise
from simulations.bench.rows import Benchmark, Figure, Row
from simulations.bench.sizes import Sizes
from simulations.bench.steps import teacher_passes, training
from simulations.engines.allocator import keep_freed_memory, set_thresholds

GROUP = "Optimisations"
LARGEST_MMAP_THRESHOLD = 2**25
"""To which glibc moves its threshold by itself, and that of trimming to twice as much."""


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Each model, 2w32a."""
    return [
        Benchmark(title=f"optimisations for {model}", run=partial(_compare, sizes, model))
        for model in sizes.step_models
    ]


def _compare(sizes: Sizes, model: str) -> list[Row]:
    dataset = noise.images(sizes.step_batch, sizes.image_side)
    loaded = noise.float_model(model).eval()
    folded = fold_batch_norm(loaded)
    prepared = noise.quantized_model(model, 2, 32, dataset)
    step = training(sizes, dataset, prepared, folded)
    ratio = sizes.step_timer.ratio

    def step_with_memory_given_back() -> None:
        set_thresholds(mmap=LARGEST_MMAP_THRESHOLD, trim=2 * LARGEST_MMAP_THRESHOLD)
        step()
        keep_freed_memory()

    def step_with_weights_one_by_one() -> None:
        with patch.object(trainer, "quantized_at_once", nullcontext):
            step()

    def row(subject: str, against: str, figure: Figure) -> Row:
        subject = f"{model}, batch {sizes.step_batch}, {subject}"
        return Row(group=GROUP, subject=subject, against=against, unit="x the time", figure=figure)

    rows = [
        row(
            "the teacher's forward pass",
            "batch normalisation not folded",
            ratio(teacher_passes(sizes, dataset, folded), teacher_passes(sizes, dataset, loaded)),
        ),
        row(
            "2w32a step",
            "freed memory given back",
            ratio(step, step_with_memory_given_back, settles=True),
        ),
        row(
            "2w32a step",
            "weights quantized layer by layer",
            ratio(step, step_with_weights_one_by_one),
        ),
    ]
    if any(isinstance(module, ReLU6) for module in prepared.modules()):
        peer = training(sizes, dataset, _with_torchs_relu6(prepared), folded)
        rows.append(row("2w32a step", "torch's ReLU6, which keeps a copy", ratio(step, peer)))
    if any(
        isinstance(module, Conv2d) and module.is_strided_depthwise for module in prepared.modules()
    ):
        in_bfloat16 = training(sizes, dataset, prepared, folded, precision="bfloat16")

        def step_with_torchs_gradients() -> None:
            with patch.object(Conv2d, "_conv_forward", nn.Conv2d._conv_forward):
                in_bfloat16()

        figure = ratio(in_bfloat16, step_with_torchs_gradients)
        rows.append(row("2w32a step in bfloat16", "torch's strided depthwise gradients", figure))
    return rows


def _with_torchs_relu6(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for name, module in list(other.named_modules()):
        if isinstance(module, ReLU6):
            other.set_submodule(name, nn.ReLU6(inplace=True))
    return other
