"""Which update a device sends, and what it keeps of it."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from common.config import FederationConfig
from common.models import load_state
from common.payloads.update_choice import encode_update
from common.payloads.updates import State, decode_state

CHANGES = np.random.default_rng(0).normal(size=(40, 8, 200)).astype(np.float32)
"""Of 40 rounds; a round's has a norm of 40."""


def last_residual(bits: int) -> float:
    """The norm of what is left after 40 rounds, over that of a round's change."""
    student = nn.Linear(200, 8, bias=False)
    federation = FederationConfig(update_format="delta", delta_bits=bits)
    generator = np.random.default_rng(1)
    residual: State = {}
    base = {"weight": np.zeros((8, 200), np.float32)}
    for change in CHANGES:
        load_state(student, {"weight": change})
        _, residual = encode_update(federation, student, base, residual, generator, {})
    return float(np.linalg.norm(residual["weight"])) / 40.0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_rounding_loses_does_not_pile_up(bits: int) -> None:
    """A rounding that keeps a share d of what it is given leaves at most sqrt(1 - d) of residual
    and change together: of 2 bits to nearest about 1.4, where at random they had 8 and more."""
    assert last_residual(bits) < 2.0


def test_without_feedback_nothing_is_kept_and_the_mean_is_unbiased() -> None:
    """Codes of 2 bits are 0 and 1 steps of the row's largest value, 1: of 0.25 a quarter are 1."""
    student = nn.Linear(4001, 1, bias=False)
    values = np.full((1, 4001), 0.25, np.float32)
    values[0, 0] = 1.0
    load_state(student, {"weight": values})
    federation = FederationConfig(update_format="delta", delta_bits=2, error_feedback=False)
    base = {"weight": np.zeros_like(values)}
    payload, kept = encode_update(federation, student, base, {}, np.random.default_rng(0), {})
    assert kept == {}
    sent = decode_state(payload, base=base)["weight"]
    assert sent[0, 1:].mean() == pytest.approx(0.25, abs=4 * 0.433 / np.sqrt(4000))
