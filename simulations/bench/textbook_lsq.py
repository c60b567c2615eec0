"""A peer to measure against: LSQ as its paper writes it down, one autograd operation a line.

Esser et al., "Learned Step Size Quantization" (ICLR 2020), appendix A: gradscale, roundpass and
quantize in plain differentiable operations. `common.quantization` gives the same values and
gradients in fewer passes; nothing but the benchmarks uses this module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.quantization import step_gradient_scale
from common.quantized_layers import ActivationQuantizer, FakeQuantizer


def grad_scale(values: Tensor, scale: float) -> Tensor:
    """``values``, their gradient multiplied by ``scale``."""
    scaled = values * scale
    return (values - scaled).detach() + scaled


def round_pass(values: Tensor) -> Tensor:
    """Rounded ``values``, the gradient passed through."""
    return (values.round() - values).detach() + values


class TextbookLSQ(nn.Module):
    """A quantizer of one learned step.

    Args:
        quantizer: whose range and present step are taken over; it has no offset.
    """

    def __init__(self, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.q_n, self.q_p = quantizer.q_n, quantizer.q_p
        self.step = nn.Parameter(quantizer.step.detach().clone())
        self.of_activations = isinstance(quantizer, ActivationQuantizer)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantized ``values``: weights of any shape, or activations [n, ...]."""
        # LSQ's N: the weights of the layer, or the features of one sample.
        num_values = values[0].numel() if self.of_activations else values.numel()
        step = grad_scale(self.step, step_gradient_scale(num_values, self.q_p))
        codes = round_pass(torch.clamp(values / step, self.q_n, self.q_p))
        return codes * step


class DefaultLayout(nn.Module):
    """A model in PyTorch's default memory layout, whatever the layout of its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, classes]."""
        return self.model(images.contiguous())
