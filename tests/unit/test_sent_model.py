"""The global model as changes: what devices reach, how far they are off, how many changes go."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.payloads.updates import decode_state, decode_update, encode_float
from common.quantization import SMALLEST_STEP
from server.model.forms import payload_hash
from server.model.sent_model import SentModel, next_model, rebase

State = dict[str, NDArray[np.float32]]

WEIGHT, BIAS, STEP = "conv.weight", "conv.bias", "conv.weight_quantizer.step"
ROWS, COLUMNS = 16, 64


def state(weight: float | NDArray[np.float32] = 0.0, step: float = 0.5) -> State:
    return {
        WEIGHT: np.broadcast_to(np.float32(weight), (ROWS, COLUMNS)).copy(),
        BIAS: np.zeros(ROWS, np.float32),
        STEP: np.array(step, np.float32),
    }


def random_state(seed: int) -> State:
    return state(np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), np.float32))


def sent(before: SentModel | None, target: State, bits: int = 4) -> SentModel:
    return next_model(before, target, bits, np.random.default_rng(0))


def error(model: SentModel, target: State) -> float:
    return float(np.abs(model.state[WEIGHT] - target[WEIGHT]).max())


def test_the_first_model_goes_as_it_is() -> None:
    target = random_state(1)
    model = sent(None, target)
    assert model.state is target
    assert model.changes == {}
    assert model.name == payload_hash(encode_float(target, "float32", {}))


def test_a_device_reaches_the_servers_model_to_the_last_bit() -> None:
    """It decodes one change after the other, on the model that it holds; each names its base."""
    first = sent(None, random_state(1))
    second = sent(first, random_state(2))
    third = sent(second, random_state(3))
    assert list(third.changes) == [first.name, second.name]
    assert len({first.name, second.name, third.name}) == 3
    held, name = first.state, first.name
    for base, change in third.changes.items():
        update = decode_update(change, base=held, base_hash=base)
        assert base == name
        held, name = update.state, payload_hash(change)
    assert name == third.name
    for entry, values in third.state.items():
        assert values.tobytes() == held[entry].tobytes()


@pytest.mark.parametrize("bits", [2, 4])
def test_what_rounding_loses_goes_with_the_next_change(bits: int) -> None:
    """4 bits have 7 steps to the largest change c of a row: less than c / 7 is lost. Where the
    server changes nothing, it is a change of its own, of which less than c / 49 is lost, and so on.
    2 bits are rounded to nearest: at most c / 2, then c / 4."""
    steps = {2: 2, 4: 7}[bits]
    target = random_state(1)
    largest = float(np.abs(target[WEIGHT]).max())
    model = sent(sent(None, state(0.0)), target, bits)
    for power in (1, 2, 3):
        assert 0 < error(model, target) <= largest / steps**power
        model = sent(model, target, bits)


def test_as_many_changes_are_kept_as_are_smaller_than_the_model() -> None:
    """1,024 weights, 16 biases and a step are 4,164 bytes; a 4-bit change is 512 bytes of codes, 64
    of scales, 34 of halves and a header."""
    model = sent(None, state(0.0))
    names = []
    for seed in range(12):
        names.append(model.name)
        model = sent(model, random_state(seed))
    sizes = [len(change) for change in model.changes.values()]
    assert 610 < min(sizes) <= max(sizes) < min(sizes) + 8  # a compressed table differs a little
    assert sum(sizes) < 4164 < sum(sizes) + max(sizes) + 8
    assert list(model.changes) == names[-len(sizes) :]


def test_fewer_bits_are_fewer_bytes() -> None:
    first = sent(None, state(0.0))
    two, eight = (sent(first, random_state(1), bits).changes[first.name] for bits in (2, 8))
    assert len(eight) - len(two) == ROWS * COLUMNS * 6 // 8


def test_a_step_that_rounding_would_take_to_zero_is_sent_whole() -> None:
    """From 1 to 2e-7: the change, -0.9999998, is -1 as a half."""
    first, target = sent(None, state(step=1.0)), state(step=2e-7)
    assert SMALLEST_STEP < 2e-7
    model = sent(first, target)
    assert model.state is target
    assert model.changes == {}
    # The next one is a change again.
    assert list(sent(model, target).changes) == [model.name]


def test_a_devices_changes_are_added_to_what_it_was_sent_the_rounding_of() -> None:
    """From 1 to 3, where 1 stood for 1.5: 3.5. The bias is not in the update."""
    trained = {name: state(3.0, step=0.75)[name] for name in (WEIGHT, STEP)}
    moved = rebase(trained, state(1.0, step=0.5), state(1.5, step=0.25))
    assert list(moved) == [WEIGHT, STEP]
    np.testing.assert_array_equal(moved[WEIGHT], np.full((ROWS, COLUMNS), 3.5))
    np.testing.assert_array_equal(moved[STEP], 0.5)
    assert moved[STEP].shape == ()


def test_a_change_stands_alone_for_nobody() -> None:
    """Its payload is a delta, which says of which model."""
    first = sent(None, state(0.0))
    (change,) = sent(first, state(1.0)).changes.values()
    metadata = decode_update(change, base=first.state).metadata
    assert metadata == {"format": "delta", "base-hash": first.name}
    np.testing.assert_allclose(decode_state(change, base=first.state)[WEIGHT], 1.0, rtol=1e-6)
