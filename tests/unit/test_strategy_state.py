"""What strategies remember: kept without pickle, and given back to a new strategy."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load, save

from common.config import StrategyConfig
from common.messages import Stage
from server.checkpoints.strategy_state import restore_strategy, strategy_state
from server.strategies.flower import STRATEGIES, make_strategy
from server.strategies.packed_updates import PackedUpdates
from server.strategies.stage_plan import StagePlan


def new_strategy(name: str) -> PackedUpdates:
    plan = StagePlan(
        stage=Stage.QUANTIZED,
        num_rounds=3,
        downlink_format="float32",
        min_replies=1,
        update_shapes={"w": (2,)},
    )
    return make_strategy(StrategyConfig(name=name), plan)


def through_a_file(strategy: PackedUpdates, target: PackedUpdates) -> None:
    attributes, arrays = strategy_state(strategy, PackedUpdates.OWN_ATTRIBUTES)
    restore_strategy(target, json.loads(json.dumps(attributes)), load(save(arrays)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_can_be_kept(name: str) -> None:
    """Every number is another one than a new strategy has, so that it has to come from the file."""
    strategy, other = new_strategy(name), new_strategy(name)
    for attribute, value in vars(strategy).items():
        if type(value) in (int, float):
            setattr(strategy, attribute, value + 1)
    assert vars(strategy) != vars(other)
    through_a_file(strategy, other)
    for attribute, value in vars(strategy).items():
        if attribute not in PackedUpdates.OWN_ATTRIBUTES:
            assert vars(other)[attribute] == value


def test_momentum_comes_back_to_the_last_bit() -> None:
    strategy, other = new_strategy("fedavgm"), new_strategy("fedavgm")
    memory: Any = strategy
    memory.momentum_vector = [np.array([0.1, -2.0], np.float32), np.array(3.0, np.float64)]
    memory.current_arrays = ArrayRecord({"0": Array(np.array([1.5, 2.5], np.float32))})
    through_a_file(strategy, other)
    restored: Any = other
    for before, after in zip(memory.momentum_vector, restored.momentum_vector, strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
        assert before.shape == after.shape
    np.testing.assert_array_equal(restored.current_arrays["0"].numpy(), [1.5, 2.5])


def test_moments_and_scalars_come_back() -> None:
    """A numpy scalar stays one: float64 and Python's float promote float32 arrays differently."""
    strategy, other = new_strategy("fedadam"), new_strategy("fedadam")
    memory: Any = strategy
    memory.m_t = {"0": np.array([1e-8, 2.0], np.float32)}
    memory.v_t = {"0": np.array([4.0, 0.0], np.float32)}
    memory.eta = np.float64(0.1)
    through_a_file(strategy, other)
    restored: Any = other
    np.testing.assert_array_equal(restored.m_t["0"], memory.m_t["0"])
    np.testing.assert_array_equal(restored.v_t["0"], memory.v_t["0"])
    assert type(restored.eta) is np.float64
    assert restored.eta == memory.eta


def test_containers_come_back_as_they_were() -> None:
    strategy, other = (
        SimpleNamespace(nested={"a": [1, (2.0, None, b"\0x")]}),
        SimpleNamespace(nested={}),
    )
    attributes, arrays = strategy_state(strategy, frozenset())
    restore_strategy(other, json.loads(json.dumps(attributes)), arrays)
    assert other.nested == strategy.nested


def test_what_cannot_be_kept_is_named() -> None:
    strategy = new_strategy("fedavg")
    vars(strategy)["generator"] = object()
    with pytest.raises(TypeError, match="'generator': a object cannot be kept"):
        strategy_state(strategy, PackedUpdates.OWN_ATTRIBUTES)


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"momentum_vector": {"value": None}}, "has no attribute 'momentum_vector'"),
        ({"fraction_train": {"array": "missing"}}, "'fraction_train' is malformed"),
        ({"fraction_train": {"pickle": "x"}}, "'fraction_train' is malformed"),
    ],
)
def test_what_does_not_fit_is_refused(attributes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        restore_strategy(new_strategy("fedavg"), attributes, {})
