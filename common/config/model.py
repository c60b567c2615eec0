"""The network and how it is quantized."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.settings import setting

MODELS = (
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet18-cifar",
    "resnet18",
    "mobilenetv2-cifar",
    "mobilenetv2",
)

FLOAT_BITS = 32
"""A bit-width of 32 means: not quantized."""

QUANTIZED_BITS = (2, 3, 4, 5, 6, 7, 8)

BIT_CHOICES = (*QUANTIZED_BITS, FLOAT_BITS)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, name="model"):
    """The network and its full-precision teacher."""

    name: str = setting("resnet8", choices=MODELS)
    """The architecture."""
    teacher: str = setting("")
    """Checkpoint of the float model: a path, "shipped", or empty: from float warm-up rounds."""


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig(Section, name="quantization"):
    """How weights and activations are quantized."""

    weight_bits: int = setting(2, choices=BIT_CHOICES)
    """Bits of a weight; 32: float, the control."""
    activation_bits: int = setting(FLOAT_BITS, choices=BIT_CHOICES)
    """Bits of an activation; 32: float."""
    edge_bits: int = setting(8, choices=BIT_CHOICES)
    """Bits of the first convolution and the last linear layer, where the others are quantized."""
    quantizer: str = setting("lsq", choices=("lsq", "lsq+"))
    """LSQ, or LSQ+: a learned offset for activations that can be negative."""
    granularity: str = setting("tensor", choices=("tensor", "channel"))
    """One weight step per tensor or per output channel."""
    step_init: str = setting("mse", choices=("lsq", "mse"))
    """Initial step: the quantizer's own rule, 2 mean|w| / sqrt(Q_P) for LSQ and
    (|mu| + 3 sigma) / |Q_N| for LSQ+ weights, or the step of least squared error."""
    calibration_batches: int = setting(4, minimum=1, maximum=1000)
    """Batches that activation steps are initialised from."""
