"""A round with devices at 2 and at 4 bits: what each is sent, and what is made of their replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray

from common.config import Config, StrategyConfig
from common.errors import UserError
from common.messages import EvaluateRequest, Reply, Stage, TrainRequest
from common.payloads.updates import decode_state, encode_delta, encode_float
from common.payloads.wire import Codes
from server.exchange.registry import RegisteredDevice, SampledGrid
from server.exchange.replies import RefusalKind
from server.model.aggregation import State
from server.model.bit_entries import BitEntries
from server.model.forms import payload_hash, to_record, to_state
from server.requirements import check_mixed_bits
from server.strategies.flower import make_strategy
from server.strategies.packed_updates import PackedUpdates
from server.strategies.stage_plan import StagePlan
from tests.unit.fake_grid import FakeGrid, node_id_of

WEIGHT, STEP = "conv.weight", "conv.weight_quantizer.step"
STEP_2, STEP_4 = "conv.weight_quantizer.2bit.step", "conv.weight_quantizer.4bit.step"


def array(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


START = {WEIGHT: array(3, 4), STEP_2: array(4), STEP_4: array(0.5)}
QUANTIZED = {
    2: {WEIGHT: Codes(codes=np.array([1, 1], np.int8), bits=2, scale=np.array(4, np.float32))},
    4: {WEIGHT: Codes(codes=np.array([7, 4], np.int8), bits=4, scale=array(0.5, 1))},
}
"""Deployed (4, 4) and (3.5, 4): relative errors ||(1, 0)|| / ||(3, 4)|| = 0.2 at 2 bits and
||(0.5, 0)|| / 5 = 0.1 at 4."""


def device(weights: tuple[float, float], step: float) -> State:
    return {WEIGHT: array(*weights), STEP: array(step)}


def make_strategy_of(name: str = "fedavg", **changes: Any) -> PackedUpdates:
    settings: dict[str, Any] = {
        "stage": Stage.QUANTIZED,
        "num_rounds": 1,
        "downlink_format": "float32",
        "min_replies": 1,
        "update_shapes": {WEIGHT: (2,), STEP: (1,)},
        "entries": BitEntries(bits=(2, 4), names=(WEIGHT, STEP), own=frozenset({STEP})),
        "quantize": {2: lambda _: QUANTIZED[2], 4: lambda _: QUANTIZED[4]},
        **changes,
    }
    return make_strategy(StrategyConfig(name=name), StagePlan(**settings))


def ask(strategy: PackedUpdates, bits: Mapping[int, int]) -> dict[int, Message]:
    """Partition id -> its request; ``bits`` are those of the devices that are asked."""
    devices = [
        RegisteredDevice(
            partition_id=k, node_id=node_id_of(k), num_samples=100, emulated=True, weight_bits=width
        )
        for k, width in bits.items()
    ]
    grid = SampledGrid(FakeGrid(lambda *_: None, list(bits)), devices)
    messages = strategy.configure_train(1, to_record(START), ConfigRecord(), grid)
    return dict(zip(bits, messages, strict=True))


def reply_to(message: Message, partition_id: int, update: bytes, examples: int = 10) -> Message:
    metrics = {"num-examples": examples, "train-loss": 1.0}
    reply = Reply(partition_id=partition_id, round_index=0, update=update, metrics=metrics)
    return Message(reply.to_record(), reply_to=message)


def run_round(
    strategy: PackedUpdates, bits: Mapping[int, int], states: list[State], examples: list[int]
) -> State:
    messages = ask(strategy, bits)
    replies = [
        reply_to(messages[k], k, encode_float(states[k], "float32", {}), examples[k]) for k in bits
    ]
    aggregated, _ = strategy.aggregate_train(1, reversed(replies))
    assert aggregated is not None
    return to_state(aggregated)


def test_every_device_is_sent_the_steps_of_its_bit_width() -> None:
    messages = ask(make_strategy_of(), {0: 4, 1: 2, 2: 4})
    requests = {k: TrainRequest.from_record(m.content) for k, m in messages.items()}
    assert {k: request.weight_bits for k, request in requests.items()} == {0: 4, 1: 2, 2: 4}
    steps = {k: float(decode_state(request.model)[STEP][0]) for k, request in requests.items()}
    assert steps == {0: 0.5, 1: 4.0, 2: 0.5}
    assert messages[0].content is messages[2].content  # packed once
    assert all(payload_hash(request.model) == request.model_hash for request in requests.values())


def test_devices_measure_at_their_bit_width() -> None:
    strategy = make_strategy_of()
    devices = [
        RegisteredDevice(
            partition_id=k, node_id=node_id_of(k), num_samples=1, emulated=True, weight_bits=bits
        )
        for k, bits in enumerate((2, 4))
    ]
    grid = SampledGrid(FakeGrid(lambda *_: None, [0, 1]), devices)
    messages = strategy.configure_evaluate(1, to_record(START), ConfigRecord(), grid)
    requests = [EvaluateRequest.from_record(message.content) for message in messages]
    assert [request.weight_bits for request in requests] == [2, 4]
    models = [decode_state(request.model) for request in requests]
    assert [model[STEP] for model in models] == [array(4), array(0.5)]
    assert [model[WEIGHT].tolist() for model in models] == [[4, 4], [3.5, 4]]


@pytest.mark.parametrize("name", ["fedavg", "fedavgm"])
def test_latents_are_averaged_over_all_and_steps_over_their_own(name: str) -> None:
    """10, 10 and 20 images; fedavgm's first step of rate 1 is the average as well.

    Latents (10*1 + 10*2 + 20*5) / 40 = 3.25; 2-bit step 3; 4-bit step
    (10*0.25 + 20*1) / 30 = 0.75.
    """
    states = [device((1, 1), 3.0), device((2, 2), 0.25), device((5, 5), 1.0)]
    result = run_round(make_strategy_of(name), {0: 2, 1: 4, 2: 4}, states, [10, 10, 20])
    assert list(result) == [WEIGHT, STEP_2, STEP_4]
    np.testing.assert_allclose(result[WEIGHT], [3.25, 3.25], rtol=1e-6)
    np.testing.assert_allclose(result[STEP_2], [3.0], rtol=1e-6)
    np.testing.assert_allclose(result[STEP_4], [0.75], rtol=1e-6)


def test_steps_that_no_device_trained_are_not_in_the_result() -> None:
    result = run_round(make_strategy_of(), {0: 4}, [device((1, 1), 1.0)], [10])
    assert result.keys() == {WEIGHT, STEP_4}


def test_updates_may_hold_nothing_but_what_bit_widths_have_of_their_own() -> None:
    """As statistics do: Flower's strategy is given nothing, and each step is its devices' mean."""
    strategy = make_strategy_of(stage=Stage.STATISTICS, update_shapes={STEP: (1,)})
    states = [{STEP: array(3)}, {STEP: array(0.25)}, {STEP: array(1.0)}]
    result = run_round(strategy, {0: 2, 1: 4, 2: 4}, states, [10, 10, 20])
    assert list(result) == [STEP_2, STEP_4]
    np.testing.assert_allclose(result[STEP_2], [3.0], rtol=1e-6)
    np.testing.assert_allclose(result[STEP_4], [0.75], rtol=1e-6)


def test_weights_by_quantization_error() -> None:
    """10 images at an error of 0.2 weigh 50, 10 images at 0.1 weigh 100.

    Latents (50*0 + 100*3) / 150 = 2; among devices of one bit-width the error cancels.
    """
    states = [device((0, 0), 3.0), device((3, 3), 1.0)]
    result = run_round(make_strategy_of(weighs_by_error=True), {0: 2, 1: 4}, states, [10, 10])
    np.testing.assert_allclose(result[WEIGHT], [2, 2], rtol=1e-6)
    np.testing.assert_allclose([result[STEP_2][0], result[STEP_4][0]], [3.0, 1.0], rtol=1e-6)


def test_codes_are_lifted_at_their_bit_width() -> None:
    """Sent latents (3, 4).

    2 bits: deployed (4, 4), answered (8, 4), so (3, 4) + (4, 0) = (7, 4). 4 bits: deployed
    (3.5, 4), answered the same, so (3, 4). Their mean: (5, 4).
    """
    states = [device((8, 4), 4.0), device((3.5, 4), 0.5)]
    result = run_round(make_strategy_of(lifts_codes=True), {0: 2, 1: 4}, states, [10, 10])
    np.testing.assert_allclose(result[WEIGHT], [5, 4], rtol=1e-6)


def test_a_change_is_relative_to_what_its_device_was_sent() -> None:
    """Device 0 (2 bits) doubles its step 4 to 8; device 1 (4 bits) says it changed the other's."""
    strategy = make_strategy_of()
    messages = ask(strategy, {0: 2, 1: 4})
    request = TrainRequest.from_record(messages[0].content)
    base = decode_state(request.model)
    update, _ = encode_delta(
        device((3, 4), 8.0),
        base,
        4,
        None,
        np.random.default_rng(0),
        {"round": 0, "base-hash": request.model_hash},
    )
    replies = [reply_to(messages[k], k, update) for k in (0, 1)]
    aggregated, _ = strategy.aggregate_train(1, replies)
    assert aggregated is not None
    np.testing.assert_allclose(to_state(aggregated)[STEP_2], [8.0])
    assert STEP_4 not in to_state(aggregated)
    assert [reply.partition_id for reply in strategy.judgement.accepted] == [0]
    (refusal,) = strategy.judgement.refused
    assert (refusal.partition_id, refusal.kind) == (1, RefusalKind.BAD_UPDATE)
    assert "base-hash" in refusal.reason


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"federation.mixed-bits": "2,4", "strategy.name": "krum"}, "strategy.name = 'krum'"),
        ({"federation.bit-weighting": "error", "strategy.name": "qfedavg"}, "weighs by loss"),
    ],
)
def test_strategies_that_do_not_fit(flat: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_mixed_bits(Config.from_flat(flat))
