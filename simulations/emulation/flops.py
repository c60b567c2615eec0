"""What an image costs in floating-point operations: counted by torch as the models run.

`torch.utils.flop_counter` counts the operations of convolutions and matrix products, a
multiplication and an addition as two. Element-wise work (activations, batch normalisation, the
rounding of fake quantization, the losses) is not counted: a device's sustained rate, measured as
counted operations over seconds, holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from common.config import ModelConfig, QuantizationConfig
from common.models import create_model
from common.qat import calibrate, prepare

COUNTED_IMAGES = 2
"""Batch that is counted: batch normalisation needs more than one value per channel."""


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """Floating-point operations for one image."""

    float_forward: float
    """The float model: the teacher's share of a training step, and of a selection."""
    float_training: float
    """Forward and backward pass of the float model: a warm-up step."""
    quantized_forward: float
    """The prepared model: the student's share of a selection, and calibration."""
    quantized_training: float
    """Forward and backward pass of the prepared model, without the teacher's."""


@lru_cache(maxsize=32)
def count_flops(
    model: ModelConfig,
    quantization: QuantizationConfig,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> ModelFlops:
    """Operations for one image, counted once per model, quantization and image shape.

    Args:
        model: which architecture.
        quantization: of the prepared model.
        num_classes: outputs.
        image_shape: channels, height, width.
    """
    channels = image_shape[0]
    module = create_model(model.name, num_classes=num_classes, in_channels=channels)
    images = torch.zeros(COUNTED_IMAGES, *image_shape)
    labels = torch.zeros(COUNTED_IMAGES, dtype=torch.int64)
    quantized = prepare(module, quantization)
    calibrate(quantized, [images], quantization)
    return ModelFlops(
        float_forward=_forward_flops(module, images),
        float_training=_training_flops(module, images, labels),
        quantized_forward=_forward_flops(quantized, images),
        quantized_training=_training_flops(quantized, images, labels),
    )


def _forward_flops(model: nn.Module, images: Tensor) -> float:
    model.eval()
    with torch.no_grad():  # the counter follows modules through autograd
        return _count(lambda: model(images))


def _training_flops(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.train()

    def step() -> None:
        functional.cross_entropy(model(images), labels).backward()

    return _count(step)


def _count(run: Callable[[], object]) -> float:
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return counter.get_total_flops() / COUNTED_IMAGES


def _convolution_backward_flops(
    grad_shape: Sequence[int],
    _input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *arguments: Any,
    **_: Any,
) -> int:
    """The gradient of the input and that of the weight cost as much as the forward pass, each.

    Torch's own formula takes a grouped convolution's weight gradient for that of a dense one: it
    counts MobileNetV2's training seven times over.
    """
    needs_input_gradient, needs_weight_gradient = arguments[-1][:2]
    batch, *size = grad_shape[0], *grad_shape[2:]
    forward = 2 * batch * math.prod(size) * math.prod(weight_shape)
    return forward * (int(needs_input_gradient) + int(needs_weight_gradient))
