"""Flower's strategies on packed updates: one round each, with numbers made by hand."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import load, save

from common.config import ASYNCHRONOUS, Config, StrategyConfig
from common.config import STRATEGIES as STRATEGY_NAMES
from common.errors import UserError
from common.messages import EvaluateRequest, Reply, Stage, Status, TrainRequest
from common.payloads.updates import Metadata, decode_state, encode_delta, encode_float
from common.settings import Scalar
from server.checkpoints.strategy_state import restore_strategy, strategy_state
from server.exchange.registry import RegisteredDevice, SampledGrid
from server.exchange.replies import RefusalKind
from server.model.bit_entries import BitEntries
from server.model.forms import to_record, to_state
from server.requirements import required_replies
from server.strategies import packed_updates
from server.strategies.flower import (
    STRATEGIES,
    make_strategy,
    strategy_parameters,
)
from server.strategies.packed_updates import PackedUpdates
from server.strategies.stage_plan import StagePlan
from tests.unit.fake_grid import FakeGrid, node_id_of

State = dict[str, NDArray[np.float32]]

WEIGHT, VARIANCE, STEP = "conv.weight", "bn.running_var", "conv.weight_quantizer.step"


def state(weight: float, variance: float = 1.0, step: float = 0.5) -> State:
    """Two weights of the same value, two variances, one step of shape ()."""
    return {
        WEIGHT: np.full(2, weight, np.float32),
        VARIANCE: np.full(2, variance, np.float32),
        STEP: np.array(step, np.float32),
    }


def plan(**changes: Any) -> StagePlan:
    fields = {
        "stage": Stage.QUANTIZED,
        "num_rounds": 3,
        "downlink_format": "float32",
        "min_replies": 1,
        "update_shapes": {name: array.shape for name, array in state(0).items()},
    }
    return StagePlan(**{**fields, **changes})


def strategy_of(name: str, *, min_replies: int = 1, **parameters: Any) -> PackedUpdates:
    settings = StrategyConfig(name=name, **parameters)
    return make_strategy(settings, plan(min_replies=min_replies), learning_rate=1.0)


def view_of(num_devices: int) -> SampledGrid:
    grid = FakeGrid(lambda *_: None, range(num_devices))
    return SampledGrid(
        grid,
        [
            RegisteredDevice(
                partition_id=partition_id,
                node_id=node_id_of(partition_id),
                num_samples=1000,
                emulated=True,
            )
            for partition_id in range(num_devices)
        ],
    )


def good_reply(partition_id: int, update: bytes, **changes: Any) -> Reply:
    fields = {
        "partition_id": partition_id,
        "round_index": 0,
        "update": update,
        "metrics": {"num-examples": 10, "train-loss": 1.0},
    }
    return Reply(**{**fields, **changes})


def run_round(
    strategy: PackedUpdates,
    start: State,
    states: list[State],
    *,
    examples: list[int] | None = None,
    number: int = 1,
    order: list[int] | None = None,
) -> State | None:
    """Ask one device per state; they answer in ``order`` with float32 updates."""
    messages = list(
        strategy.configure_train(number, to_record(start), ConfigRecord(), view_of(len(states)))
    )
    replies = []
    for index in order or range(len(states)):
        metrics = {"num-examples": (examples or [10] * len(states))[index], "train-loss": 1.0}
        update = encode_float(states[index], "float32", {})
        reply = good_reply(index, update, metrics=metrics, round_index=number - 1)
        replies.append(Message(reply.to_record(), reply_to=messages[index]))
    aggregated, _ = strategy.aggregate_train(number, replies)
    return None if aggregated is None else to_state(aggregated)


@pytest.mark.parametrize("stage", [Stage.CALIBRATION, Stage.STATISTICS])
@pytest.mark.parametrize("name", ["fedavg", "krum"])
def test_a_metric_that_nobody_asked_for_is_no_reason_to_fail(name: str, stage: Stage) -> None:
    """Flower refuses to aggregate replies of different metrics: one device's loss, sent where none
    trains, is left out. All hold 1, so do mean and Krum's choice."""
    strategy = make_strategy(StrategyConfig(name=name), plan(stage=stage))
    messages = list(strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(3)))
    update = encode_float(state(1), "float32", {})
    replies = [good_reply(0, update)]
    replies += [good_reply(index, update, metrics={"num-examples": 10}) for index in (1, 2)]
    aggregated, _ = strategy.aggregate_train(
        1,
        [Message(r.to_record(), reply_to=m) for r, m in zip(replies, messages, strict=True)],
    )
    assert aggregated is not None
    assert not strategy.judgement.refused
    np.testing.assert_array_equal(to_state(aggregated)[WEIGHT], [1, 1])


def test_every_configured_strategy_is_there() -> None:
    assert {*STRATEGIES, ASYNCHRONOUS} == set(STRATEGY_NAMES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_updates_change_nothing(name: str) -> None:
    """Seven devices that answer what they got: whatever the strategy, the state stays.

    With no change, momentum and second moments are zero, medians and means are the value itself.
    """
    start = state(0.25, 2.0, 0.125)
    result = run_round(strategy_of(name), start, [start] * 7)
    assert result is not None
    assert list(result) == list(start)
    for entry, values in start.items():
        assert result[entry].shape == values.shape
        assert result[entry].dtype == np.float32
        np.testing.assert_allclose(result[entry], values, rtol=1e-6)


def test_fedavg_weighs_by_examples() -> None:
    """10 and 30 images: weight (1*10 + 5*30) / 40 = 4, variance (2 + 3*6) / 4 = 5."""
    result = run_round(
        strategy_of("fedavg"), state(0), [state(1, 2), state(5, 6)], examples=[10, 30]
    )
    assert result is not None
    assert result[WEIGHT].tolist() == [4, 4]
    assert result[VARIANCE].tolist() == [5, 5]


def test_fedmedian_ignores_an_outlier() -> None:
    """Median of 1, 2 and 1000, for statistics and steps as well."""
    states = [state(1, 1, 1), state(1000, 1000, 1000), state(2, 2, 2)]
    result = run_round(strategy_of("fedmedian"), state(0), states)
    assert result is not None
    assert result[WEIGHT].tolist() == [2, 2]
    assert result[VARIANCE].tolist() == [2, 2]
    assert result[STEP] == 2


def test_fedtrimmedavg_cuts_both_ends() -> None:
    """A fifth of five is one at each end: the mean of 1, 2, 6 is 3."""
    states = [state(value) for value in (-100, 1, 2, 6, 100)]
    result = run_round(strategy_of("fedtrimmedavg", trim_fraction=0.2), state(0), states)
    assert result is not None
    assert result[WEIGHT].tolist() == [3, 3]


def test_krum_takes_the_update_in_the_middle_of_the_crowd() -> None:
    """Five updates, one hostile: each is scored by its 5 - 1 - 2 = 2 nearest.

    Values 1, 2, 3, 5, 90: squared distances (per entry) of 2 are 1 + 1, of 1 are 1 + 4, of 3 are
    1 + 4, so 2 is chosen.
    """
    states = [state(value) for value in (1, 90, 2, 3, 5)]
    result = run_round(strategy_of("krum", num_malicious=1), state(0), states)
    assert result is not None
    assert result[WEIGHT].tolist() == [2, 2]


def test_multikrum_averages_the_chosen() -> None:
    """As above; scores of 1 and 3 tie at 5, that of 5 is 4 + 9: the best three are 1, 2, 3."""
    states = [state(value) for value in (1, 90, 2, 3, 5)]
    strategy = strategy_of("multikrum", num_malicious=1, num_to_select=3)
    result = run_round(strategy, state(0), states)
    assert result is not None
    assert result[WEIGHT].tolist() == [2, 2]


def test_bulyan_needs_four_f_plus_three() -> None:
    """One hostile device: 7 replies make a round, 6 do not."""
    strategy = strategy_of("bulyan", num_malicious=1)
    assert run_round(strategy, state(0), [state(1)] * 6) is None
    result = run_round(strategy, state(0), [*[state(1)] * 6, state(1000)])
    assert result is not None
    assert result[WEIGHT].tolist() == [1, 1]


def test_fedavgm_moves_on_with_its_momentum() -> None:
    """Momentum 0.5, rate 1: from 0 to 2 in round 1; devices then stay at 2: 2 + 0.5 * 2 = 3.

    The pseudo-gradient of round 2 is 0, the momentum 0.5 * (-2) + 0. Variance and step are
    averaged plainly.
    """
    strategy = strategy_of("fedavgm", server_momentum=0.5)
    first = run_round(strategy, state(0), [state(2, 3, 0.25)] * 2)
    assert first is not None
    assert first[WEIGHT].tolist() == [2, 2]
    second = run_round(strategy, first, [first] * 2, number=2)
    assert second is not None
    assert second[WEIGHT].tolist() == [3, 3]
    assert second[VARIANCE].tolist() == [3, 3]
    assert second[STEP] == 0.25


def test_fedavgms_momentum_is_free_of_rounding_on_the_way_down() -> None:
    """Momentum 0.5, rate 1. Devices answer 2049 in round 1, and then what they got: float16's
    neighbours are 2 apart there. They get 2048, and 2048 + 2049 / 2 = 3072.5 as 3072: the third
    model is 3072 + 2049 / 4. What rounding took away is no change that devices made."""
    settings = StrategyConfig(name="fedavgm", server_momentum=0.5)
    strategy = make_strategy(settings, plan(downlink_format="float16"), learning_rate=1.0)
    model: State | None = state(0)
    for number, answer in enumerate((2049, 2048, 3072), start=1):
        assert model is not None
        model = run_round(strategy, model, [state(answer)] * 2, number=number)
    assert model is not None
    assert model[WEIGHT].tolist() == [3584.25] * 2


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_optimizers_leave_statistics_and_steps_alone(name: str) -> None:
    """Their step has a fixed size, here 100: it would throw a variance of 1 far below zero."""
    strategy = strategy_of(name, server_learning_rate=100.0)
    result = run_round(strategy, state(0), [state(-1, 0.5, 0.25), state(-1, 1.5, 0.75)])
    assert result is not None
    assert result[WEIGHT][0] < -10
    assert result[VARIANCE].tolist() == [1, 1]
    assert result[STEP] == 0.5


def test_fedadam_by_its_formula() -> None:
    """Change 1, beta_1 0.5, beta_2 0.75, tau 0.5, eta 1: m = 0.5, v = 0.25, sqrt(v) + tau = 1.

    Flower corrects the rate by sqrt(1 - beta_2^2) / (1 - beta_1^2) in round 1, so the step is
    sqrt(1 - 0.5625) / 0.75 * 0.5 / 1.
    """
    strategy = strategy_of("fedadam", beta_1=0.5, beta_2=0.75, tau=0.5)
    result = run_round(strategy, state(3), [state(4)] * 2)
    assert result is not None
    expected = 3 + np.sqrt(0.4375) / 0.75 * 0.5
    np.testing.assert_allclose(result[WEIGHT], expected, rtol=1e-6)


def test_qfedavg_with_q_zero_is_a_plain_mean() -> None:
    """q = 0: every device counts the same, whatever its images: (1 + 5) / 2."""
    strategy = strategy_of("qfedavg", fairness_q=0.0)
    result = run_round(strategy, state(0), [state(1), state(5)], examples=[10, 30])
    assert result is not None
    np.testing.assert_allclose(result[WEIGHT], 3, rtol=1e-6)


def test_fedprox_tells_the_devices_its_mu() -> None:
    strategy = strategy_of("fedprox", proximal_mu=0.125)
    (message,) = strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(1))
    assert TrainRequest.from_record(message.content).proximal_mu == 0.125


def test_requests_are_packed_and_ordered() -> None:
    strategy = make_strategy(
        StrategyConfig(name="fedavg"), plan(teacher_hash="abc"), learning_rate=1.0
    )
    messages = list(strategy.configure_train(2, to_record(state(1)), ConfigRecord(), view_of(5)))
    assert [m.metadata.dst_node_id for m in messages] == [node_id_of(k) for k in range(5)]
    assert {m.metadata.message_type for m in messages} == {MessageType.TRAIN}
    request = TrainRequest.from_record(messages[0].content)
    assert (request.stage, request.round_index, request.num_rounds) == (Stage.QUANTIZED, 1, 3)
    assert (request.teacher_hash, request.teacher, request.proximal_mu) == ("abc", b"", 0.0)
    assert decode_state(request.model)[WEIGHT].tolist() == [1, 1]


@pytest.mark.parametrize("downlink_format", ["float16", "int8"])
def test_a_change_is_relative_to_what_the_devices_got(downlink_format: str) -> None:
    """The server's values are rounded on their way down; the base is what arrives.

    No change against it gives exactly what arrived, not what the server had.
    """
    start = {**state(0.1, 3.3, 0.7), WEIGHT: np.array([[0.1, 0.033]], np.float32)}
    shapes = {name: values.shape for name, values in start.items()}
    strategy = make_strategy(
        StrategyConfig(name="fedavg"),
        plan(downlink_format=downlink_format, update_shapes=shapes),
        learning_rate=1.0,
    )
    (message,) = strategy.configure_train(1, to_record(start), ConfigRecord(), view_of(1))
    request = TrainRequest.from_record(message.content)
    received = decode_state(request.model)
    update, _ = encode_delta(
        received,
        received,
        4,
        None,
        np.random.default_rng(0),
        {"base-hash": request.model_hash},
    )
    reply = Message(good_reply(0, update).to_record(), reply_to=message)
    aggregated, _ = strategy.aggregate_train(1, [reply])
    assert aggregated is not None
    for name, values in to_state(aggregated).items():
        assert values.tobytes() == received[name].tobytes()
    assert received[WEIGHT].tobytes() != start[WEIGHT].tobytes()


def test_the_model_goes_as_changes_that_replies_are_relative_to() -> None:
    """Round 1: whole. Round 2: the change from it to what the strategy made of the replies. Where
    devices change nothing of what they start from, the server's own, not rounded, stays."""
    start = {**state(0.0), WEIGHT: np.tile(np.array([0.1, 0.033], np.float32), (16, 16))}
    shapes = {name: values.shape for name, values in start.items()}
    strategy = make_strategy(
        StrategyConfig(name="fedavg"), plan(downlink_bits=4, update_shapes=shapes)
    )
    (first,) = strategy.configure_train(1, to_record(start), ConfigRecord(), view_of(1))
    whole = TrainRequest.from_record(first.content)
    assert whole.changes == {}
    moved = {**start, WEIGHT: np.tile(np.array([0.4, 0.133], np.float32), (16, 16))}
    (second,) = strategy.configure_train(2, to_record(moved), ConfigRecord(), view_of(1))
    request = TrainRequest.from_record(second.content)
    ((base_hash, change),) = request.changes.items()
    assert base_hash == whole.model_hash
    received = decode_state(change, base=decode_state(whole.model), base_hash=base_hash)
    for name, values in decode_state(request.model).items():
        assert values.tobytes() == received[name].tobytes()
    # A step of the change is a seventh of 0.3, the largest.
    np.testing.assert_allclose(received[WEIGHT], moved[WEIGHT], atol=0.3 / 7)
    assert received[WEIGHT].tobytes() != moved[WEIGHT].tobytes()
    update, _ = encode_delta(
        received, received, 4, None, np.random.default_rng(0), {"base-hash": request.model_hash}
    )
    reply = good_reply(0, update, round_index=1)
    aggregated, _ = strategy.aggregate_train(2, [Message(reply.to_record(), reply_to=second)])
    assert aggregated is not None
    np.testing.assert_allclose(to_state(aggregated)[WEIGHT], moved[WEIGHT], rtol=1e-6)


@pytest.mark.parametrize("missing", ["nobody", "one that is not asked", "all replies"])
def test_what_rounding_loses_is_made_good_whoever_has_a_part_in_a_round(missing: str) -> None:
    """Devices of two bit-widths change nothing; in round 3 one is not asked, or nobody answers and
    the round is skipped. 2-bit changes lose at most half: after 20 less than a millionth is left
    of the largest weight, which is below 4; float32's own error in such weights is 2.4e-7."""
    target = {WEIGHT: np.random.default_rng(0).standard_normal((16, 64), np.float32)}
    entries = BitEntries(bits=(2, 4), names=(WEIGHT,))
    strategy = make_strategy(
        StrategyConfig(name="fedavg"),
        plan(downlink_bits=2, update_shapes={WEIGHT: (16, 64)}, entries=entries),
    )
    two, four = (
        replace(device, weight_bits=bits)
        for device, bits in zip(view_of(2).devices, (2, 4), strict=True)
    )
    server: State = {WEIGHT: np.zeros((16, 64), np.float32)}
    for number in range(1, 23):
        asked = [four] if number == 3 and missing == "one that is not asked" else [two, four]
        grid = SampledGrid(view_of(2).grid, asked)
        messages = strategy.configure_train(number, to_record(server), ConfigRecord(), grid)
        replies, errors = [], []
        for device, message in zip(asked, messages, strict=True):
            request = TrainRequest.from_record(message.content)
            received = decode_state(request.model)
            errors.append(float(np.abs(received[WEIGHT] - target[WEIGHT]).max()))
            update = encode_float(received, "float32", {"base-hash": request.model_hash})
            reply = good_reply(device.partition_id, update, round_index=number - 1)
            replies.append(Message(reply.to_record(), reply_to=message))
        if number == 3 and missing == "all replies":
            replies.clear()
        aggregated, _ = strategy.aggregate_train(number, replies)
        if number == 1:
            server = target
        elif aggregated is not None:
            server = to_state(aggregated)
    assert max(errors) < 4e-6


def test_changes_go_on_after_a_checkpoint() -> None:
    """After two rounds a new strategy with the old one's memory sends the same third request."""
    states = [{**state(0.0), WEIGHT: np.full((16, 64), value, np.float32)} for value in (1, 2, 4)]
    shapes = {name: values.shape for name, values in states[0].items()}
    old, new = (
        make_strategy(StrategyConfig(name="fedavg"), plan(downlink_bits=4, update_shapes=shapes))
        for _ in range(2)
    )
    for number in (1, 2):
        list(old.configure_train(number, to_record(states[number - 1]), ConfigRecord(), view_of(1)))
    attributes, arrays = strategy_state(old, PackedUpdates.OWN_ATTRIBUTES)
    restore_strategy(new, json.loads(json.dumps(attributes)), load(save(arrays)))
    requests = []
    for strategy in (old, new):
        (message,) = strategy.configure_train(3, to_record(states[2]), ConfigRecord(), view_of(1))
        requests.append(TrainRequest.from_record(message.content))
    assert requests[0] == requests[1]
    assert len(requests[0].changes) == 2


def test_every_round_rounds_otherwise() -> None:
    """The same change in round 2 of one run and in round 3 of another: what is half a step up in
    the one is half a step down in the other, for some weights."""
    start = {**state(0.0), WEIGHT: np.zeros((16, 64), np.float32)}
    moved = {**start, WEIGHT: np.tile(np.array([7.0, 0.5], np.float32), (16, 32))}
    shapes = {name: values.shape for name, values in start.items()}
    received = []
    for number in (2, 3):
        strategy = make_strategy(
            StrategyConfig(name="fedavg"), plan(downlink_bits=4, update_shapes=shapes)
        )
        list(strategy.configure_train(1, to_record(start), ConfigRecord(), view_of(1)))
        (message,) = strategy.configure_train(number, to_record(moved), ConfigRecord(), view_of(1))
        received.append(decode_state(TrainRequest.from_record(message.content).model)[WEIGHT])
    assert {*received[0][:, 1::2].ravel().tolist()} == {0.0, 1.0}
    assert (received[0] != received[1]).any()


def test_the_order_of_replies_does_not_matter() -> None:
    """Bit for bit: float sums depend on their order, so replies are sorted first."""
    generator = np.random.default_rng(1)
    states = [state(float(generator.normal())) for _ in range(9)]
    examples = [3, 7, 11, 2, 9, 5, 8, 1, 6]
    results = [
        run_round(strategy_of("fedavg"), state(0), states, examples=examples, order=order)
        for order in (list(range(9)), [8, 3, 1, 0, 7, 5, 2, 6, 4])
    ]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0][WEIGHT].tobytes() == results[1][WEIGHT].tobytes()


def test_too_few_good_replies_skip_the_round() -> None:
    """A third with an impossible step is none of them."""
    strategy = strategy_of("fedavg", min_replies=3)
    assert run_round(strategy, state(0), [state(1), state(1), state(1, step=-0.5)]) is None
    assert len(strategy.judgement.accepted) == 2


def test_a_step_of_the_server_beyond_float32_skips_the_round() -> None:
    """The devices' change of 1 by a rate of 1e39."""
    strategy = strategy_of("fedavgm", server_learning_rate=1e39)
    with np.errstate(over="ignore"):
        assert run_round(strategy, state(0), [state(1)] * 2) is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_update_that_overflows_a_mean_costs_its_device_alone(name: str) -> None:
    """Seven devices send 1, one the largest float32, whose sums and squares are not finite."""
    strategy = strategy_of(name)
    largest = float(np.finfo(np.float32).max)
    with np.errstate(all="raise", under="ignore"):
        result = run_round(strategy, state(0), [state(largest), *[state(1)] * 7])
    assert result is not None
    assert np.isfinite(result[WEIGHT]).all()
    assert [refusal.kind for refusal in strategy.judgement.refused] == [RefusalKind.BAD_UPDATE]
    assert WEIGHT in strategy.judgement.refused[0].reason


@pytest.mark.parametrize(
    ("hostile", "name"),
    [(state(1, step=-0.5), STEP), (state(1, step=0.0), STEP), (state(1, variance=-0.1), VARIANCE)],
)
def test_impossible_steps_and_variances_cost_their_device_alone(hostile: State, name: str) -> None:
    strategy = strategy_of("fedavg")
    result = run_round(strategy, state(0), [hostile, state(1, step=0.25)])
    assert result is not None
    assert result[STEP] == 0.25
    assert name in strategy.judgement.refused[0].reason


def test_a_rounded_change_may_end_just_below_zero() -> None:
    """Steps and variances of shape () and [2] go as float16, which is off by up to 2**-11 of the
    change: a step that falls from 0.5 to 1e-6 may arrive as -2.4e-4. It counts as the smallest.
    """
    strategy = strategy_of("fedavg")
    (message,) = strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(1))
    request = TrainRequest.from_record(message.content)
    metadata: Metadata = {"base-hash": request.model_hash, "round": 0}
    for step, is_good in ((-2.4e-4, True), (-0.1, False)):
        changed = state(1, variance=-2.4e-4, step=step)
        update, _ = encode_delta(changed, state(0), 4, None, np.random.default_rng(0), metadata)
        reply = Message(good_reply(0, update).to_record(), reply_to=message)
        aggregated, _ = strategy.aggregate_train(1, [reply])
        assert (aggregated is not None) == is_good
        if aggregated is not None:
            assert to_state(aggregated)[STEP] > 0
            assert to_state(aggregated)[VARIANCE].tolist() == [0, 0]


def test_channels_that_are_always_zero_have_no_variance() -> None:
    strategy = strategy_of("fedavg")
    dead = state(0, variance=0)
    (message,) = strategy.configure_train(1, to_record(dead), ConfigRecord(), view_of(1))
    request = TrainRequest.from_record(message.content)
    metadata: Metadata = {"base-hash": request.model_hash, "round": 0}
    delta, _ = encode_delta(dead, dead, 4, None, np.random.default_rng(0), metadata)
    for update in (delta, encode_float(dead, "float32", metadata)):
        reply = Message(good_reply(0, update).to_record(), reply_to=message)
        aggregated, _ = strategy.aggregate_train(1, [reply])
        assert aggregated is not None
        assert to_state(aggregated)[VARIANCE].tolist() == [0, 0]


def test_an_update_of_an_earlier_round_in_a_new_reply_is_refused() -> None:
    strategy = strategy_of("fedavg")
    (message,) = strategy.configure_train(3, to_record(state(0)), ConfigRecord(), view_of(1))
    for metadata in ({"round": 1}, {"base-hash": "another model"}):
        update = encode_float(state(1), "float32", metadata)
        reply = good_reply(0, update, round_index=2)
        strategy.aggregate_train(3, [Message(reply.to_record(), reply_to=message)])
        assert [refusal.kind for refusal in strategy.judgement.refused] == [RefusalKind.BAD_UPDATE]


def test_a_device_cannot_count_for_more_images_than_it_has() -> None:
    """1000 images were registered: up to 2000 are believed, should the folder have grown."""
    strategy = strategy_of("fedavg")
    result = run_round(strategy, state(0), [state(1), state(9)], examples=[2000, 2001])
    assert result is not None
    assert result[WEIGHT].tolist() == [1, 1]
    assert strategy.judgement.refused[0].kind is RefusalKind.BAD_METRICS


@pytest.mark.parametrize(
    "metric",
    [
        {"train-loss": -1.0},
        {"train-loss": math.nan},
        {"train-seconds": math.inf},
        {"coreset-size": 1e300},
        {"num-steps": 10**400},
        {"coreset-size": 5.5},
        {"num-examples": 2.5},
        {"Train loss\n": 1.0},
        {f"figure-{number}": 1.0 for number in range(31)},
    ],
)
def test_metrics_that_lie_are_refused(metric: dict[str, float]) -> None:
    strategy = strategy_of("fedavg")
    (message,) = strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(1))
    metrics = {"num-examples": 10, "train-loss": 1.0, **metric}
    reply = good_reply(0, encode_float(state(1), "float32", {}), metrics=metrics)
    strategy.aggregate_train(1, [Message(reply.to_record(), reply_to=message)])
    assert [refusal.kind for refusal in strategy.judgement.refused] == [RefusalKind.BAD_METRICS]


def test_a_reason_cannot_write_to_the_terminal() -> None:
    strategy = strategy_of("fedavg")
    (message,) = strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(1))
    reply = good_reply(0, b"", status=Status.DIVERGED, reason="\x1b[2J" + "x" * 1000)
    strategy.aggregate_train(1, [Message(reply.to_record(), reply_to=message)])
    assert strategy.judgement.refused[0].reason == "?[2J" + "x" * 296


def test_bad_replies_are_refused_by_reason_and_the_rest_counts() -> None:
    """Device 0 is good; 1 sends another shape, 2 is of another round, 3 diverged, 4 has no
    images, 5 says it is device 0, 6 sends noise, 7 has no loss, 8 answers twice, 9 says that it
    lacks a teacher. The last comes first.
    """
    strategy = strategy_of("fedavg")
    view = view_of(10)
    messages = list(strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view))
    good = encode_float(state(7), "float32", {})
    short = encode_float({**state(7), WEIGHT: np.zeros(3, np.float32)}, "float32", {})
    examples = {"num-examples": 10}
    contents = [
        good_reply(0, good),
        good_reply(1, short),
        good_reply(2, good, round_index=5),
        good_reply(3, b"", status=Status.DIVERGED, reason="loss is nan in step 3"),
        good_reply(4, good, metrics={"num-examples": 0, "train-loss": 1.0}),
        good_reply(0, good),
        good_reply(6, b"\x00" * 50),
        good_reply(7, good, metrics=examples),
        good_reply(8, good),
        good_reply(9, good, status=Status.TEACHER_MISSING),
    ]
    replies = [
        Message(reply.to_record(), reply_to=message)
        for reply, message in zip(contents, messages, strict=True)
    ]
    replies.append(Message(contents[8].to_record(), reply_to=messages[8]))
    aggregated, _ = strategy.aggregate_train(1, reversed(replies))
    assert aggregated is not None
    assert to_state(aggregated)[WEIGHT].tolist() == [7, 7]
    judgement = strategy.judgement
    assert [reply.partition_id for reply in judgement.accepted] == [0, 8]
    assert {reply.update for reply in judgement.accepted} == {b""}
    assert [(refusal.partition_id, refusal.kind) for refusal in judgement.refused] == [
        (1, RefusalKind.BAD_UPDATE),
        (2, RefusalKind.WRONG_ROUND),
        (3, RefusalKind.DIVERGED),
        (4, RefusalKind.BAD_METRICS),
        (5, RefusalKind.WRONG_DEVICE),
        (6, RefusalKind.BAD_UPDATE),
        (7, RefusalKind.BAD_METRICS),
        (8, RefusalKind.DUPLICATE),
        (9, RefusalKind.MALFORMED),
    ]
    reasons = {refusal.partition_id: refusal.reason for refusal in judgement.refused}
    assert WEIGHT in reasons[1]
    assert reasons[3] == "loss is nan in step 3"
    assert "train-loss" in reasons[7]


@pytest.mark.parametrize("partition_id", [-1, 0, 1])
def test_a_node_that_was_not_asked_is_nobody(partition_id: int) -> None:
    """Whoever it says it is, nobody included."""
    strategy = strategy_of("fedavg")
    strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(2))
    stranger = Message(RecordDict(), dst_node_id=node_id_of(2), message_type=MessageType.TRAIN)
    reply = good_reply(partition_id, encode_float(state(7), "float32", {}))
    strategy.aggregate_train(1, [Message(reply.to_record(), reply_to=stranger)])
    assert [refusal.kind for refusal in strategy.judgement.refused] == [RefusalKind.WRONG_DEVICE]


def test_a_delta_against_another_model_is_refused() -> None:
    strategy = strategy_of("fedavg")
    (message,) = strategy.configure_train(1, to_record(state(0)), ConfigRecord(), view_of(1))
    update, _ = encode_delta(
        state(1), state(0), 4, None, np.random.default_rng(0), {"base-hash": "0123"}
    )
    reply = Message(good_reply(0, update).to_record(), reply_to=message)
    assert strategy.aggregate_train(1, [reply]) == (None, None)
    assert [refusal.kind for refusal in strategy.judgement.refused] == [RefusalKind.BAD_UPDATE]


def test_evaluation_asks_for_the_model_as_sent_and_adds_up() -> None:
    """2 of 4 and 4 of 4 right: 6 of 8 = 75 %; a device without held-out images adds nothing."""
    strategy = strategy_of("fedavg")
    messages = list(strategy.configure_evaluate(3, to_record(state(1)), ConfigRecord(), view_of(3)))
    request = EvaluateRequest.from_record(messages[0].content)
    assert (request.stage, request.round_index) == (Stage.QUANTIZED, 2)
    assert decode_state(request.model)[WEIGHT].tolist() == [1, 1]
    counts = [(4, 2, 3, 2.0), (4, 4, 4, 2.0), (0, 0, 0, 0.0)]
    names = ("num-examples", "correct", "correct-top5", "loss-sum")
    replies = [
        Message(
            Reply(
                partition_id=k, round_index=2, metrics=dict(zip(names, figures, strict=True))
            ).to_record(),
            reply_to=messages[k],
        )
        for k, figures in enumerate(counts)
    ]
    metrics = strategy.aggregate_evaluate(3, replies)
    assert dict(metrics) == {
        "device_accuracy": 75.0,
        "device_top5_accuracy": 87.5,
        "device_loss": 0.5,
        "device_num_examples": 8,
    }
    assert not strategy.judgement.refused


def test_more_right_answers_than_images_are_refused() -> None:
    strategy = strategy_of("fedavg")
    (message,) = strategy.configure_evaluate(1, to_record(state(1)), ConfigRecord(), view_of(1))
    metrics = {"num-examples": 4, "correct": 5, "correct-top5": 4, "loss-sum": 1.0}
    reply = Reply(partition_id=0, round_index=0, metrics=metrics)
    strategy.aggregate_evaluate(1, [Message(reply.to_record(), reply_to=message)])
    assert [refusal.kind for refusal in strategy.judgement.refused] == [RefusalKind.BAD_METRICS]


@pytest.mark.parametrize(("num_examples", "is_good"), [(2500, True), (2501, False)])
def test_a_device_evaluates_on_hardly_more_images_than_it_has(
    num_examples: int, is_good: bool
) -> None:
    """1,000 for training and a fifth held out: 1,250 in all, and it may have gained as many."""
    strategy = make_strategy(StrategyConfig(name="fedavg"), plan(holdout_fraction=0.2))
    (message,) = strategy.configure_evaluate(1, to_record(state(1)), ConfigRecord(), view_of(1))
    metrics = {"num-examples": num_examples, "correct": 4, "correct-top5": 4, "loss-sum": 1.0}
    reply = Reply(partition_id=0, round_index=0, metrics=metrics)
    strategy.aggregate_evaluate(1, [Message(reply.to_record(), reply_to=message)])
    assert bool(strategy.judgement.accepted) is is_good


def test_garbage_of_before_does_not_stay() -> None:
    """A cycle: frozen while Flower aggregates, it would come back as old."""

    class Node:
        neighbour: Node

    node = Node()
    node.neighbour = node
    trace = weakref.ref(node)
    del node
    with packed_updates._cheap_garbage_collection():
        pass
    assert trace() is None


def test_robust_strategies_need_more_replies() -> None:
    """Krum 2f + 3, Bulyan 4f + 3, Multi-Krum that or f more than it selects (5 by default); a
    trimmed mean as many that a fifth, its default, is one; the others min-devices alone."""

    def required(name: str, hostile: int) -> int:
        flat: dict[str, Scalar] = {"strategy.name": name, "strategy.num-malicious": hostile}
        return required_replies(Config.from_flat({**flat, "data.num-devices": 20}))

    assert required("fedavg", 4) == 2
    assert required("krum", 0) == 3
    assert required("krum", 4) == 11
    assert required("multikrum", 1) == 6
    assert required("multikrum", 3) == 9
    assert required("fedtrimmedavg", 0) == 5
    assert required("bulyan", 2) == 11


def test_more_hostile_devices_than_a_strategy_bears() -> None:
    flat: dict[str, Scalar] = {
        "strategy.name": "bulyan",
        "strategy.num-malicious": 2,
        "data.num-devices": 10,
    }
    with pytest.raises(UserError, match=r"num-malicious = 2: bulyan needs at least 11 devices"):
        required_replies(Config.from_flat(flat))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "multikrum",
            {"num-to-select": 10},
            r"num-to-select = 10: multikrum needs at least 11 dev",
        ),
        ("fedtrimmedavg", {"trim-fraction": 0.09}, r"= 0.09: fedtrimmedavg needs at least 12 dev"),
    ],
)
def test_more_updates_to_select_or_to_trim_from_than_there_are(
    name: str, settings: dict[str, float], message: str
) -> None:
    """Of ten devices: 10 to select and a hostile one are 11; 9 % of 11 are none, of 12 one."""
    flat: dict[str, Scalar] = {
        "strategy.name": name,
        "strategy.num-malicious": 1,
        "data.num-devices": 10,
        **{f"strategy.{key}": value for key, value in settings.items()},
    }
    with pytest.raises(UserError, match=message):
        required_replies(Config.from_flat(flat))


def test_parameters_reach_flowers_strategies() -> None:
    """Every parameter under the name that Flower's class gives it."""
    settings = StrategyConfig(
        name="fedadam", server_learning_rate=0.03, beta_1=0.8, beta_2=0.7, tau=0.02
    )
    assert strategy_parameters(settings, learning_rate=1.0) == {
        "eta": 0.03,
        "tau": 0.02,
        "beta_1": 0.8,
        "beta_2": 0.7,
    }
    strategy: Any = make_strategy(settings, plan(), learning_rate=1.0)
    assert (strategy.eta, strategy.tau) == (0.03, 0.02)
    assert (strategy.beta_1, strategy.beta_2) == (0.8, 0.7)
    fair: Any = strategy_of("qfedavg", fairness_q=0.3)
    assert (fair.q, fair.client_learning_rate) == (0.3, 1.0)


@pytest.mark.parametrize("chunk_values", [1, 3, 5, 100])
def test_krum_sees_whole_updates_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch, chunk_values: int
) -> None:
    monkeypatch.setattr("server.model.forms.CHUNK_VALUES", chunk_values)
    result = run_round(strategy_of("krum"), state(0), [state(1), state(2), state(9)])
    assert result is not None
    assert result[WEIGHT].tolist() == [1, 1]
