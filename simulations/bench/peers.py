"""Other ways to train the same quantized network, each as its makers offer it.

A peer takes the place of the layers of a model that `common.qat.prepare` made: the same weights,
the same bits in the same places. What it can't express it refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.extras import import_extra
from common.quantization import step_gradient_scale
from common.quantized_layers import FakeQuantizer, QuantizedLayer
from simulations.bench.textbook_lsq import DefaultLayout, TextbookLSQ

MakeQuantizer = Callable[[FakeQuantizer], nn.Module]


class NotExpressibleError(Exception):
    """The peer has no such layer."""


def textbook(prepared: nn.Module) -> nn.Module:
    """LSQ in separate autograd operations, in PyTorch's default memory layout."""
    return DefaultLayout(_with_layers(prepared, lambda own: PeerLayer(own, TextbookLSQ)))


def pytorch(prepared: nn.Module) -> nn.Module:
    """PyTorch's own operator of learnable fake quantization, a step per tensor."""
    return _with_layers(prepared, lambda own: PeerLayer(own, _PyTorchQuantizer))


def torchao(prepared: nn.Module) -> nn.Module:
    """torchao's fake quantizer on the weights: a step per output channel, from its largest value.

    torchao's own QAT replaces linear layers and embeddings; here convolutions use it too.

    Raises:
        NotExpressibleError: inputs are quantized: it knows no step per tensor for them.
    """
    qat = import_extra("torchao.quantization.qat", needed_for="the comparison", extra="bench")

    def quantizer(own: FakeQuantizer) -> nn.Module:
        config = qat.IntxFakeQuantizeConfig(
            getattr(torch, f"int{own.bits}"), "per_channel", is_symmetric=True
        )
        return _OnRows(qat.IntxFakeQuantizer(config))

    def layer(own: QuantizedLayer) -> nn.Module:
        if own.input_quantizer is not None:
            raise NotExpressibleError("has no fake quantization of inputs with one step a tensor")
        return PeerLayer(own, quantizer)

    return _with_layers(prepared, layer)


def brevitas(prepared: nn.Module) -> nn.Module:
    """brevitas' QuantConv2d and QuantLinear with its own per-tensor weights and activations."""
    layers = import_extra("brevitas.nn", needed_for="the comparison", extra="bench")
    quant = import_extra("brevitas.quant", needed_for="the comparison", extra="bench")

    def layer(own: QuantizedLayer) -> nn.Module:
        assert own.weight_quantizer is not None
        settings = {
            "weight_quant": quant.Int8WeightPerTensorFloat,
            "weight_bit_width": own.weight_quantizer.bits,
        }
        if own.input_quantizer is not None:
            is_signed = own.input_quantizer.q_n < 0
            settings |= {
                "input_quant": getattr(
                    quant, f"{'Int8' if is_signed else 'Uint8'}ActPerTensorFloat"
                ),
                "input_bit_width": own.input_quantizer.bits,
                # The step is learned from the second batch on, not from the 300th.
                "input_collect_stats_steps": 1,
            }
        if isinstance(own, nn.Conv2d):
            made: nn.Module = layers.QuantConv2d(
                own.in_channels,
                own.out_channels,
                own.kernel_size,
                stride=own.stride,
                padding=own.padding,
                groups=own.groups,
                bias=own.bias is not None,
                **settings,
            )
        else:
            assert isinstance(own, nn.Linear)
            made = layers.QuantLinear(own.in_features, own.out_features, bias=True, **settings)
        with torch.no_grad():
            for name in ("weight", "bias"):
                if getattr(own, name) is not None:
                    getattr(made, name).copy_(getattr(own, name))
        return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    return _with_layers(prepared, layer)


PEERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "textbook LSQ, default layout": textbook,
    "PyTorch learnable fake quantization": pytorch,
    "brevitas": brevitas,
    "torchao": torchao,
}
"""Name -> prepared model to the peer's model; a UserError where a package is missing."""


class PeerLayer(nn.Module):
    """A convolution or linear layer between a peer's quantizers of its weights and inputs.

    Args:
        own: whose weights, bits and present steps are taken over.
        make_quantizer: own quantizer -> the peer's.
    """

    def __init__(self, own: QuantizedLayer, make_quantizer: MakeQuantizer) -> None:
        super().__init__()
        assert isinstance(own, nn.Conv2d | nn.Linear)
        assert own.weight_quantizer is not None
        self.weight = nn.Parameter(own.weight.detach().clone())
        self.bias = None if own.bias is None else nn.Parameter(own.bias.detach().clone())
        self.weight_quantizer = make_quantizer(own.weight_quantizer)
        self.input_quantizer = own.input_quantizer and make_quantizer(own.input_quantizer)
        self.stride: tuple[int, ...] | None = None
        if isinstance(own, nn.Conv2d):
            assert not isinstance(own.padding, str)
            self.stride, self.padding, self.groups = own.stride, own.padding, own.groups

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in, h, w] -> [n, out, h', w'], or [n, in] -> [n, out]."""
        if self.input_quantizer is not None:
            inputs = self.input_quantizer(inputs)
        weight = self.weight_quantizer(self.weight)
        if self.stride is None:
            return functional.linear(inputs, weight, self.bias)
        return functional.conv2d(
            inputs, weight, self.bias, self.stride, self.padding, groups=self.groups
        )


class _PyTorchQuantizer(nn.Module):
    """What is left of PyTorch's _LearnableFakeQuantize once its observer is off."""

    def __init__(self, own: FakeQuantizer) -> None:
        super().__init__()
        self.q_n, self.q_p = own.q_n, own.q_p
        self.step = nn.Parameter(own.step.detach().reshape(1).clone())
        self.zero_point = torch.zeros(1)

    def forward(self, values: Tensor) -> Tensor:
        quantized: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            values,
            self.step,
            self.zero_point,
            self.q_n,
            self.q_p,
            step_gradient_scale(values.numel(), self.q_p),
        )
        return quantized


class _OnRows(nn.Module):
    """A quantizer of matrices, for weights of any shape: a row per output channel."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, weight: Tensor) -> Tensor:
        rows: Tensor = self.quantizer(weight.flatten(1))
        return rows.view(weight.shape)


def _with_layers(
    prepared: nn.Module, make_layer: Callable[[QuantizedLayer], nn.Module]
) -> nn.Module:
    """A copy of a prepared model, its quantized layers replaced."""
    model = copy.deepcopy(prepared)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    for name, own in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make_layer(own))
    return model
