"""Emulated attackers: which devices, what they send, and that it passes every check."""

from __future__ import annotations

import numpy as np
import pytest

from common.config import Config
from common.errors import UserError
from common.payloads.updates import Metadata, decode_update, encode_delta, encode_float
from simulations.attacks import hostile_devices, poison, poisoned

WEIGHT, STEP, VARIANCE = "conv.weight", "conv.weight_quantizer.step", "bn.running_var"


def state(weight: float, step: float = 0.5, variance: float = 1.0) -> dict[str, np.ndarray]:
    return {
        WEIGHT: np.full((2, 3), weight, np.float32),
        STEP: np.array(step, np.float32),
        VARIANCE: np.full(2, variance, np.float32),
    }


def config(**settings: object) -> Config:
    return Config.from_flat({f"attack.{key}": value for key, value in settings.items()})  # type: ignore[misc]


def test_a_seeded_share_of_the_devices_is_hostile() -> None:
    assert hostile_devices(Config()) == frozenset()
    hostile = hostile_devices(config(name="scale", fraction=0.2))
    assert len(hostile) == 2
    assert hostile <= set(range(10))
    assert hostile == hostile_devices(config(name="sign-flip", fraction=0.2))


def test_the_change_is_turned_around_or_magnified() -> None:
    """From 1 to 1.5: minus 4 times 0.5 ends at -1, plus 4 times at 3. A step from 0.5 to 0.75
    would end at -0.5 and is the smallest possible one; a variance from 1 to 2 stops at 0.
    """
    turned = poisoned("sign-flip", 4.0, state(1.5, 0.75, 2.0), state(1.0))
    np.testing.assert_allclose(turned[WEIGHT], -1.0)
    assert 0 < turned[STEP] < 1e-6
    assert turned[VARIANCE].tolist() == [0, 0]
    np.testing.assert_allclose(poisoned("scale", 4.0, state(1.5), state(1.0))[WEIGHT], 3.0)


@pytest.mark.parametrize("update_format", ["delta", "float32"])
def test_the_payload_keeps_its_format_and_origin(update_format: str) -> None:
    """Four times the change from 1 to 1.5 is 2; all values being equal, codes hold it exactly."""
    base, trained = state(1.0), state(1.5)
    metadata: Metadata = {"round": 3, "base-hash": "ab"}
    if update_format == "delta":
        update, _ = encode_delta(trained, base, 4, None, np.random.default_rng(0), metadata)
    else:
        update = encode_float(trained, "float32", metadata)
    sent = poison(config(name="sign-flip"), 1, 3, update, base)
    decoded = decode_update(sent, base=base, base_hash="ab")
    assert decoded.metadata == {"format": update_format, **metadata}
    np.testing.assert_allclose(decoded.state[WEIGHT], -1.0, rtol=1e-6)


def test_codes_cannot_be_attacked() -> None:
    with pytest.raises(UserError, match=r"attack.name = 'scale': expected 'none'"):
        Config.from_flat({"attack.name": "scale", "federation.update-format": "codes"})
