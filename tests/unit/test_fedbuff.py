"""The buffer's arithmetic, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from server.model.aggregation import State, average_states
from server.strategies.fedbuff import UpdateBuffer, staleness_weight

STEP, VARIANCE = "conv.weight_quantizer.step", "bn.running_var"


def state(weight: float, step: float = 1.0, variance: float = 1.0) -> State:
    return {
        "w": np.array([weight, 2 * weight], np.float32),
        STEP: np.array([step], np.float32),
        VARIANCE: np.array([variance], np.float32),
    }


def test_staleness_weights() -> None:
    """1/sqrt(1), 1/sqrt(4), 1/sqrt(9)."""
    assert [staleness_weight(s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]


def test_two_changes_from_different_versions() -> None:
    """10 images, 3 steps old, weight 1/2: from 1 to 5; 30 images, fresh: from 2 to 3.

    w: the change (10 * 1/2 * 4 + 30 * 1 * 1) / 40 = 1.25, half of it with eta = 0.5: 2 + 0.625.
    Step and variance are mixed: their weights are 5/40 and 30/40, the model keeps 5/40. The step:
    0.125 * 8 + 0.75 * 4 + 0.125 * 1 = 4.125; the variance 0.125 * 16 + 0.75 * 0 + 0.125 * 1.
    """
    buffer = UpdateBuffer()
    old = state(5.0, step=8.0, variance=16.0)
    buffer.add(old, state(1.0, step=7.0, variance=99.0), num_examples=10, staleness=3)
    fresh = state(3.0, step=4.0, variance=0.0)
    buffer.add(fresh, state(2.0), num_examples=30, staleness=0)
    assert (len(buffer), buffer.staleness) == (2, [3, 0])
    result = buffer.step(state(2.0), learning_rate=0.5)
    np.testing.assert_allclose(result["w"], [2.625, 5.25], rtol=1e-6)
    np.testing.assert_allclose(result[STEP], [4.125], rtol=1e-6)
    np.testing.assert_allclose(result[VARIANCE], [2.125], rtol=1e-6)


def test_without_staleness_it_is_federated_averaging() -> None:
    base = state(1.0)
    updates = [state(1.5, 2.0, 3.0), state(-2.0, 0.5, 0.25), state(4.0, 1.0, 7.0)]
    images = [10, 70, 20]
    buffer = UpdateBuffer()
    for update, num_examples in zip(updates, images, strict=True):
        buffer.add(update, base, num_examples=num_examples, staleness=0)
    result, expected = buffer.step(base, 1.0), average_states(updates, [float(n) for n in images])
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-5)


def test_what_was_taken_in_is_not_changed() -> None:
    """Bases are shared by all devices of a version."""
    update, base = state(3.0), state(1.0)
    buffer = UpdateBuffer()
    buffer.add(update, base, num_examples=1, staleness=0)
    buffer.add(update, base, num_examples=1, staleness=0)
    buffer.step(base, 1.0)
    for name, values in state(3.0).items():
        np.testing.assert_array_equal(update[name], values)
    for name, values in state(1.0).items():
        np.testing.assert_array_equal(base[name], values)


def test_an_empty_buffer_has_no_step() -> None:
    with pytest.raises(ValueError, match="empty"):
        UpdateBuffer().step(state(1.0), 1.0)


def test_a_buffer_that_is_restored_goes_on() -> None:
    """What it says of itself goes through JSON, as in a checkpoint."""
    base: State = {"w": np.zeros(1, np.float32), "bn.running_mean": np.zeros(1, np.float32)}
    updates = [{name: np.full(1, 0.1 * k + 0.7, np.float32) for name in base} for k in range(2)]
    whole, first = UpdateBuffer(), UpdateBuffer()
    for buffer in (whole, first):
        buffer.add(updates[0], base, num_examples=3, staleness=2)
    facts, sums = first.state()
    second = UpdateBuffer.restored(json.loads(json.dumps(facts)), sums)
    for buffer in (whole, second):
        buffer.add(updates[1], base, num_examples=4, staleness=0)
    assert second.staleness == [2, 0]
    for name, values in whole.step(base, 0.5).items():
        np.testing.assert_array_equal(second.step(base, 0.5)[name], values)
