"""Float model -> fake-quantized model -> integer model.

``prepare`` replaces convolutions and linear layers by ones that quantize their weights (and
inputs) in every forward pass; ``convert`` replaces those by layers that hold integer codes and
give the same outputs, bit for bit. First convolution and last linear layer have their own
bit-width, as in the LSQ and ACS papers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.config import FLOAT_BITS, QuantizationConfig
from common.models import first_and_last
from common.quantization import (
    SMALLEST_STEP,
    code_range,
    dequantize,
    fake_quantize,
    least_squares_step,
    lsq_plus_step,
    lsq_step,
    quantize,
    step_gradient_scale,
)
from common.wire import Codes

STEP_SUFFIX = ".step"
CALIBRATION_VALUES = 16384
"""Most values of one batch that a calibration looks at, in each layer."""


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

    def forward(self, values: Tensor, num_values: int) -> Tensor:
        """Fake-quantized ``values``; ``num_values`` of them share one step (LSQ's N)."""
        return fake_quantize(
            values,
            self.step,
            self.q_n,
            self.q_p,
            offset=self.offset,
            gradient_scale=step_gradient_scale(num_values, self.q_p),
        )

    def codes(self, values: Tensor) -> Tensor:
        """Integer codes of ``values`` (int8 holds every signed width up to 8 bits)."""
        return quantize(values.detach(), self.step.detach(), self.q_n, self.q_p).to(torch.int8)


class ActivationQuantizer(FakeQuantizer):
    """Fake quantization of a layer's input; observes instead of quantizing while calibrating."""

    observed: list[Tensor] | None = None

    def forward(self, values: Tensor, num_values: int = 0) -> Tensor:
        """Fake-quantized ``values`` [n, ...]; LSQ's N is the number of features of one sample."""
        if self.observed is not None:
            flat = values.detach().reshape(-1)
            # An odd stride: one that divides the width would see a single column of every map.
            stride = -(-flat.numel() // CALIBRATION_VALUES) | 1
            self.observed.append(flat[::stride].clone())
            return values
        return super().forward(values, num_values or values[0].numel())

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


class _Quantized(nn.Module):
    """What fake-quantized convolutions and linear layers share."""

    weight: Tensor
    weight_quantizer: FakeQuantizer | None
    input_quantizer: ActivationQuantizer | None

    def _inputs(self, inputs: Tensor) -> Tensor:
        return inputs if self.input_quantizer is None else self.input_quantizer(inputs)

    def _weights(self) -> Tensor:
        if self.weight_quantizer is None:
            return self.weight
        quantizer = self.weight_quantizer
        return quantizer(self.weight, self.weight.numel() // quantizer.step.numel())


class QuantConv2d(_Quantized, nn.Conv2d):
    """A convolution with fake-quantized weights and inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in, h, w] -> [n, out, h', w']."""
        return self._conv_forward(self._inputs(inputs), self._weights(), self.bias)


class QuantLinear(_Quantized, nn.Linear):
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


def prepare(model: nn.Module, config: QuantizationConfig) -> nn.Module:
    """A copy of a float ``model`` with fake-quantized layers, weight steps initialised.

    Activation steps start at 1 and wait for :func:`calibrate`. With 32 bits for both weights and
    activations the copy is the float model itself, the control.
    """
    prepared = copy.deepcopy(model)
    if config.weight_bits == config.activation_bits == FLOAT_BITS:
        return prepared
    edges = first_and_last(prepared)
    quantizes_inputs = config.activation_bits < FLOAT_BITS
    signed_inputs = _layers_with_signed_inputs(prepared) if quantizes_inputs else set()
    for name, layer in list(prepared.named_modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        at_edge = name in edges
        _quantize_layer(
            layer,
            config,
            weight_bits=_edge_bits(config.weight_bits, config, at_edge=at_edge),
            activation_bits=_edge_bits(config.activation_bits, config, at_edge=at_edge),
            signed_input=name in signed_inputs,
        )
    return prepared


def _edge_bits(bits: int, config: QuantizationConfig, *, at_edge: bool) -> int:
    return config.edge_bits if at_edge and bits < FLOAT_BITS else bits


@torch.no_grad()
def _quantize_layer(
    layer: nn.Conv2d | nn.Linear,
    config: QuantizationConfig,
    *,
    weight_bits: int,
    activation_bits: int,
    signed_input: bool,
) -> None:
    """Turn a float layer into its fake-quantized twin, in place: parameters keep their identity."""
    if weight_bits == FLOAT_BITS and activation_bits == FLOAT_BITS:
        return
    layer.__class__ = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear  # type: ignore[assignment]
    quantized = cast(_Quantized, layer)
    quantized.weight_quantizer = quantized.input_quantizer = None
    if weight_bits < FLOAT_BITS:
        step = _initial_weight_step(quantized.weight, weight_bits, config)
        weight_quantizer = FakeQuantizer(weight_bits, signed=True, step_shape=tuple(step.shape))
        weight_quantizer.step.copy_(step)
        quantized.weight_quantizer = weight_quantizer
    if activation_bits < FLOAT_BITS:
        # LSQ+ covers negative inputs with an offset, LSQ with signed codes.
        with_offset = config.quantizer == "lsq+" and signed_input
        quantized.input_quantizer = ActivationQuantizer(
            activation_bits, signed=signed_input and not with_offset, with_offset=with_offset
        )


def _initial_weight_step(weight: Tensor, bits: int, config: QuantizationConfig) -> Tensor:
    per_channel = config.granularity == "channel"
    q_n, q_p = code_range(bits, signed=True)
    if config.step_init == "mse":
        return least_squares_step(weight, q_n, q_p, per_channel=per_channel)
    if config.quantizer == "lsq+":
        return lsq_plus_step(weight, q_n, per_channel=per_channel)
    return lsq_step(weight, q_p, per_channel=per_channel)


@torch.no_grad()
def _layers_with_signed_inputs(model: nn.Module) -> set[str]:
    """Layers whose inputs can be negative: all but those behind a ReLU.

    A property of the architecture, not of the weights, found by one forward pass of noise: server
    and devices must agree on it without exchanging data.
    """
    signed: set[str] = set()

    def observe(name: str) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].min() < 0:
                signed.add(name)

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_pre_hook(observe(n)) for n, m in layers]  # type: ignore[arg-type]
    first = next(m for _, m in layers if isinstance(m, nn.Conv2d))
    noise = torch.randn(4, first.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    was_training = model.training
    model.eval()(noise)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return signed


def activation_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """The activation quantizers of a prepared model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name, module


def activation_step_names(prepared: nn.Module) -> tuple[str, ...]:
    """State entries that calibration sets: steps and offsets of activations."""
    return tuple(
        f"{name}.{parameter}"
        for name, quantizer in activation_quantizers(prepared)
        for parameter, _ in quantizer.named_parameters()
    )


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable[Tensor], config: QuantizationConfig) -> None:
    """Initialise activation steps and offsets from ``batches`` of inputs [n, c, h, w].

    Activations are observed before any is quantized, weights are quantized already.
    """
    quantizers = [quantizer for _, quantizer in activation_quantizers(prepared)]
    if not quantizers:
        return
    was_training = prepared.training
    prepared.eval()
    for quantizer in quantizers:
        quantizer.observed = []
    for batch in batches:
        prepared(batch)
    for quantizer in quantizers:
        observed, quantizer.observed = quantizer.observed, None
        if observed:
            quantizer.initialise(torch.cat(observed), config.step_init)
    prepared.train(was_training)


def quantized_layers(prepared: nn.Module) -> Iterator[tuple[str, _Quantized]]:
    """The layers of a prepared model whose weights are quantized, by name."""
    for name, module in prepared.named_modules():
        if isinstance(module, _Quantized) and module.weight_quantizer is not None:
            yield name, module


def quantized_weights(prepared: nn.Module) -> dict[str, Codes]:
    """Integer codes and steps of every quantized weight, by state entry."""
    return {
        f"{name}.weight": _weight_codes(layer.weight, layer.weight_quantizer)
        for name, layer in quantized_layers(prepared)
        if layer.weight_quantizer is not None
    }


def _weight_codes(weight: Tensor, quantizer: FakeQuantizer) -> Codes:
    step = quantizer.step.detach().reshape(-1) if quantizer.step.dim() else quantizer.step.detach()
    codes = quantizer.codes(weight).contiguous()
    return Codes(codes=codes.numpy(), bits=quantizer.bits, scale=step.numpy().copy())


@torch.no_grad()
def convert(prepared: nn.Module) -> nn.Module:
    """A copy of a prepared model that holds integer codes; bit for bit its outputs in eval mode."""
    converted = copy.deepcopy(prepared)
    for _, layer in list(quantized_layers(converted)):
        quantizer = layer.weight_quantizer
        assert quantizer is not None
        codes = quantizer.codes(layer.weight)
        layer.__class__ = IntConv2d if isinstance(layer, nn.Conv2d) else IntLinear  # type: ignore[assignment]
        del layer.weight, layer.weight_quantizer
        layer.register_buffer("weight_codes", codes)
        layer.register_buffer("weight_step", quantizer.step.detach().clone())
    return converted.eval()


@torch.no_grad()
def clamp_steps(steps: list[Tensor]) -> None:
    """Keep steps positive after an optimizer step, in place."""
    if steps:
        torch._foreach_clamp_min_(steps, SMALLEST_STEP)
