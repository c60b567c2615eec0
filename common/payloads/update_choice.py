"""A device's update in the format that is configured."""

from __future__ import annotations

import numpy as np
from torch import nn

from common.config import FederationConfig
from common.models import model_state
from common.payloads.updates import Metadata, State, encode_codes, encode_delta, encode_float
from common.qat import quantized_weights


def encode_update(
    federation: FederationConfig,
    student: nn.Module,
    base: State,
    residual: State,
    generator: np.random.Generator,
    metadata: Metadata,
) -> tuple[bytes, State]:
    """The payload of what a device has trained, and what rounding lost of it.

    Args:
        federation: says the format.
        student: the trained model, prepared for quantization.
        base: what the device was sent: the student's entries, name -> float32 array.
        residual: what the device's last update lost; empty: nothing.
        generator: dither of a rounded change.
        metadata: sent along.

    Returns:
        The payload, and the new residual: empty without error feedback or where nothing is rounded.
    """
    state = model_state(student)
    if federation.update_format == "codes":
        return encode_codes(state, quantized_weights(student), metadata), {}
    if federation.update_format == "float32":
        return encode_float(state, "float32", metadata), {}
    bits, feeds_back = federation.delta_bits, federation.error_feedback
    dither = dither_with_feedback(bits, generator) if feeds_back else generator
    payload, lost = encode_delta(state, base, bits, residual or None, dither, metadata)
    return payload, lost if feeds_back else {}


def dither_with_feedback(bits: int, generator: np.random.Generator) -> np.random.Generator | None:
    """The dither of a change whose loss is part of the next one; None: round to nearest.

    Error feedback needs a rounding that loses less than it is given (Karimireddy et al., "Error
    Feedback Fixes SignSGD", ICML 2019): at random, 2 bits lose more, and residuals would grow.
    """
    return None if bits == 2 else generator
