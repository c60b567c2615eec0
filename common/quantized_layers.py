"""Layers of a quantized network: fake-quantized ones for training, integer ones for deployment.

Both quantize their inputs alike where a model has quantized activations; `common.qat` makes them
of a float model's layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.convolution import Conv2d
from common.quantization import (
    SMALLEST_STEP,
    Operand,
    code_range,
    dequantize,
    fake_quantize,
    least_squares_step,
    lsq_step,
    quantize,
    step_gradient_scale,
)

CALIBRATION_VALUES = 16384
"""Most values of one batch that a calibration looks at, in each layer."""

MOST_AT_ONCE = 1 << 16
"""Weights of a layer that is quantized together with others. With more, a call of its own costs
little, and the caches keep what it makes until it is used; nor is much memory held for the others'
sake."""


class FakeQuantizer(nn.Module):
    """One tensor's learned step (and, for LSQ+ activations, offset).

    Args:
        bits: 2-8.
        signed: whether codes are signed.
        step_shape: () per tensor, or [channels, 1, ...] per output channel.
        with_offset: learn an offset (LSQ+).
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool,
        step_shape: tuple[int, ...] = (),
        with_offset: bool = False,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.q_n, self.q_p = code_range(bits, signed=signed)
        self.step = nn.Parameter(torch.ones(step_shape))
        self.offset = nn.Parameter(torch.zeros(())) if with_offset else None

    def operand(self, values: Tensor, num_values: int) -> Operand:
        """``values`` and how they are fake-quantized; so many share one step (LSQ's N)."""
        return Operand(
            values=values,
            step=self.step,
            offset=self.offset,
            q_n=self.q_n,
            q_p=self.q_p,
            gradient_scale=step_gradient_scale(num_values, self.q_p),
        )

    def codes(self, values: Tensor) -> Tensor:
        """Integer codes of ``values`` (int8 holds every signed width up to 8 bits)."""
        return quantize(values.detach(), self.step.detach(), self.q_n, self.q_p).to(torch.int8)


class ActivationQuantizer(FakeQuantizer):
    """Fake quantization of a layer's input; observes instead of quantizing while calibrating."""

    observed: list[Tensor] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantized ``values`` [n, ...]; LSQ's N is the number of features of one sample."""
        if self.observed is not None:
            flat = values.detach().reshape(-1)
            # An odd stride: one that divides the width would see a single column of every map.
            stride = -(-flat.numel() // CALIBRATION_VALUES) | 1
            self.observed.append(flat[::stride].clone())
            return values
        return fake_quantize([self.operand(values, values[0].numel())])[0]

    @torch.no_grad()
    def initialise(self, values: Tensor, step_init: str) -> None:
        """Set step and offset from observed ``values`` [n]."""
        if self.offset is not None:
            # LSQ+ (section 3.2): the range that is there, here without the extreme 0.1 %.
            low, high = torch.quantile(values, values.new_tensor([0.001, 0.999]))
            self.step.copy_(((high - low) / (self.q_p - self.q_n)).clamp_min(SMALLEST_STEP))
            self.offset.copy_(low - self.q_n * self.step)
        elif step_init == "mse":
            self.step.copy_(least_squares_step(values, self.q_n, self.q_p))
        else:
            self.step.copy_(lsq_step(values, self.q_p))


class QuantizedLayer(nn.Module):
    """What fake-quantized convolutions and linear layers share."""

    weight: Tensor
    weight_quantizer: FakeQuantizer | None
    input_quantizer: ActivationQuantizer | None
    fake_quantized_weight: Tensor | None = None
    """At hand within :func:`quantized_at_once`."""

    def weight_operand(self) -> Operand:
        """Of a layer with quantized weights: these, and how they are fake-quantized."""
        quantizer = self.weight_quantizer
        assert quantizer is not None
        return quantizer.operand(self.weight, self.weight.numel() // quantizer.step.numel())

    def _inputs(self, inputs: Tensor) -> Tensor:
        return inputs if self.input_quantizer is None else self.input_quantizer(inputs)

    def _weights(self) -> Tensor:
        if self.weight_quantizer is None:
            return self.weight
        if self.fake_quantized_weight is not None:
            return self.fake_quantized_weight
        return fake_quantize([self.weight_operand()])[0]


@contextmanager
def quantized_at_once(layers: Sequence[QuantizedLayer]) -> Iterator[None]:
    """Within, small weights are fake-quantized already: for the forward pass of a training step.

    Outputs and gradients are the same. Forward and backward, a call between two layers finds the
    caches full of the layers' data, which for small weights is most of its time: at once they take
    a quarter of it (measured in steps of ResNet-20).

    Args:
        layers: with quantized weights, as of `common.qat.quantized_layers`.
    """
    small = [layer for layer in layers if layer.weight.numel() <= MOST_AT_ONCE]
    weights = fake_quantize([layer.weight_operand() for layer in small])
    for layer, weight in zip(small, weights, strict=True):
        layer.fake_quantized_weight = weight
    try:
        yield
    finally:
        for layer in small:
            del layer.fake_quantized_weight


class QuantConv2d(QuantizedLayer, Conv2d):
    """A convolution with fake-quantized weights and inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in, h, w] -> [n, out, h', w']."""
        return self._conv_forward(self._inputs(inputs), self._weights(), self.bias)


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer with fake-quantized weights and inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        return functional.linear(self._inputs(inputs), self._weights(), self.bias)


class _Integer(nn.Module):
    """What integer convolutions and linear layers share: codes and step instead of weights."""

    weight_codes: Tensor
    weight_step: Tensor
    input_quantizer: ActivationQuantizer | None

    def _inputs(self, inputs: Tensor) -> Tensor:
        return inputs if self.input_quantizer is None else self.input_quantizer(inputs)

    def _weights(self) -> Tensor:
        return dequantize(self.weight_codes, self.weight_step)


class IntConv2d(_Integer, nn.Conv2d):
    """A convolution whose weights are int8 codes and a step."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in, h, w] -> [n, out, h', w']."""
        return self._conv_forward(self._inputs(inputs), self._weights(), self.bias)


class IntLinear(_Integer, nn.Linear):
    """A linear layer whose weights are int8 codes and a step."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        return functional.linear(self._inputs(inputs), self._weights(), self.bias)
