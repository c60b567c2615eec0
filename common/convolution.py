"""A convolution whose strided forms are neither slow nor wrong in bfloat16 on CPUs.

PyTorch's library for CPUs (oneDNN) has no fast kernel for the input's gradient of a depthwise
convolution of stride 2 in bfloat16: MobileNetV2's three took 40 % of a training step. With the
output's gradient spread over the input's positions, zeros between, it is a convolution of stride 1
with the kernel turned around (Dumoulin & Visin, "A guide to convolution arithmetic for deep
learning", 2016, section 4.5), for which there is one.

Where the stride is wider than the map, that library leaves parts of the weights' gradient unwritten
(torch 2.14.1): what they hold is whatever was in memory before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv2d(nn.Conv2d):
    """torch's, with the same parameters, outputs and, but for rounding, gradients."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.shape[-1] < self.stride[-1] and _computes_in_bfloat16(input):
            with torch.autocast("cpu", enabled=False):
                return super()._conv_forward(input.float(), weight.float(), bias).bfloat16()
        if self.is_strided_depthwise and _computes_in_bfloat16(input):
            # Casts outside the function: gradients are cast back by themselves.
            output: Tensor = _StridedDepthwise.apply(  # type: ignore[no-untyped-call]
                input.bfloat16(), weight.bfloat16(), self.stride, self.padding
            )
            return output if bias is None else output + bias.bfloat16()[:, None, None]
        return super()._conv_forward(input, weight, bias)

    @property
    def is_strided_depthwise(self) -> bool:
        """Whether torch's kernel for its input's gradient in bfloat16 is the slow one."""
        return (
            self.groups == self.in_channels == self.out_channels
            and max(self.stride) > 1
            and self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )


def _computes_in_bfloat16(inputs: Tensor) -> bool:
    return (
        inputs.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


class _StridedDepthwise(torch.autograd.Function):
    """Inputs [n, channels, h, w], weights [channels, 1, kh, kw] -> [n, channels, h', w']."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(inputs, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        input_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = _input_gradient(
                gradient, weight, inputs.shape[2:], ctx.stride, ctx.padding
            )
        if ctx.needs_input_grad[1]:
            weight_gradient = torch.ops.aten.convolution_backward(
                gradient,
                inputs,
                weight,
                None,
                ctx.stride,
                ctx.padding,
                (1, 1),
                False,
                (0, 0),
                len(weight),
                (False, True, False),
            )[1]
        return input_gradient, weight_gradient, None, None


def _input_gradient(
    gradient: Tensor,
    weight: Tensor,
    size: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The gradient of inputs of ``size`` (h, w), of that of the outputs [n, channels, h', w']."""
    kernel = weight.shape[2:]
    spread_size = [s + 2 * p - k + 1 for s, p, k in zip(size, padding, kernel, strict=True)]
    num_images, num_channels = gradient.shape[:2]
    channels_last = gradient.new_zeros((num_images, *spread_size, num_channels))
    spread = channels_last.permute(0, 3, 1, 2)
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    around = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    return functional.conv2d(spread, weight.flip(2, 3), padding=around, groups=len(weight))
