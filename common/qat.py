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

from common.config import FLOAT_BITS, QuantizationConfig
from common.models import first_and_last
from common.payloads.wire import Codes
from common.quantization import (
    SMALLEST_STEP,
    code_range,
    least_squares_step,
    lsq_plus_step,
    lsq_step,
)
from common.quantized_layers import (
    ActivationQuantizer,
    FakeQuantizer,
    IntConv2d,
    IntLinear,
    QuantConv2d,
    QuantizedLayer,
    QuantLinear,
)

STEP_SUFFIX = ".step"


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
    quantized = cast(QuantizedLayer, layer)
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


def quantized_layers(prepared: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """The layers of a prepared model whose weights are quantized, by name."""
    for name, module in prepared.named_modules():
        if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
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
