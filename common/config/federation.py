"""Rounds, what travels in them, and how updates become one model."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.settings import setting

STRATEGIES = (
    "fedavg",
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "qfedavg",
    "fedbuff",
)

AVERAGING_STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that need of a round's updates no more than their mean."""

ASYNCHRONOUS = "fedbuff"
"""The strategy without common rounds: every device trains from the model it was last sent."""


@dataclass(frozen=True, kw_only=True)
class FederationConfig(Section, name="federation"):
    """Rounds, participation and what travels."""

    num_rounds: int = setting(20, minimum=1)
    """Quantization-aware rounds."""
    fraction: float = setting(1.0, above=0.0, maximum=1.0)
    """Share of the devices that is asked in a round."""
    min_devices: int = setting(2, minimum=1)
    """Fewest devices that must be there, and fewest good replies that make a round."""
    update_format: str = setting("delta", choices=("codes", "delta", "float32"))
    """What a device answers: its low-bit model, a quantized change, or float32 values."""
    delta_bits: int = setting(4, choices=(2, 3, 4, 5, 6, 7, 8))
    """Bits of a quantized change."""
    error_feedback: bool = setting(True)
    """Delta: a device adds what rounding lost to its next update."""
    downlink_format: str = setting("float32", choices=("float32", "float16", "int8", "delta"))
    """How the global model travels to devices that train from it; delta: as quantized changes to
    one that holds an earlier model of these rounds, else as float32. For a measurement alone a
    low-bit model goes as its codes."""
    downlink_bits: int = setting(4, choices=(2, 3, 4, 5, 6, 7, 8))
    """Downlink delta: bits of a quantized change."""
    mixed_bits: str = setting("")
    """Weight bits that devices may train at, as "2,4", quantization.weight-bits among them: each
    takes the largest that it supports; empty: all train at quantization.weight-bits."""
    bit_weighting: str = setting("samples", choices=("samples", "error"))
    """Mixed bits: a device weighs as much as its samples, or as these over the relative
    quantization error of its bit-width."""
    round_timeout: float = setting(600.0, above=0.0)
    """Seconds that a round waits for replies."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig(Section, name="strategy"):
    """How updates become one model; a parameter that the strategy does not have is ignored."""

    name: str = setting("fedavg", choices=STRATEGIES)
    """Flower's strategy that the decoded updates are handed to; or fedbuff: asynchronous."""
    server_learning_rate: float = setting(1.0, above=0.0)
    """fedavgm, fedbuff; also fedadam, fedyogi and fedadagrad (eta), where 0.01 is a usual value."""
    server_momentum: float = setting(0.9, minimum=0.0, maximum=0.999)
    """fedavgm."""
    beta_1: float = setting(0.9, minimum=0.0, maximum=0.9999)
    """fedadam, fedyogi: decay of the first moment."""
    beta_2: float = setting(0.99, minimum=0.0, maximum=0.9999)
    """fedadam, fedyogi: decay of the second moment."""
    tau: float = setting(1e-3, above=0.0)
    """fedadam, fedyogi, fedadagrad: degree of adaptability."""
    proximal_mu: float = setting(0.01, minimum=0.0)
    """fedprox: weight of the proximal term."""
    trim_fraction: float = setting(0.2, minimum=0.0, maximum=0.49)
    """fedtrimmedavg: share cut off at each end."""
    num_malicious: int = setting(0, minimum=0)
    """krum, multikrum, bulyan: devices assumed hostile."""
    num_to_select: int = setting(5, minimum=1)
    """multikrum: updates that are averaged."""
    fairness_q: float = setting(0.1, minimum=0.0)
    """qfedavg: 0 is plain averaging, larger is fairer."""
    buffer_size: int = setting(5, minimum=1)
    """fedbuff: good updates that make a round."""
    concurrency: int = setting(10, minimum=1)
    """fedbuff: devices that train at the same time (federation.fraction is not used)."""
    max_staleness: int = setting(20, minimum=0)
    """fedbuff: rounds that an update's base may be behind; an older one is refused."""
