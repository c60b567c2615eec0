"""Rounds that all devices begin together: sample, train, aggregate, evaluate, record."""

from __future__ import annotations

import time

from flwr.app import ConfigRecord

from common.errors import UserError
from common.events import log_event
from server.model.aggregation import State
from server.model.forms import to_record, to_state
from server.records.round_lines import (
    describe_refusals,
    device_lines,
    float32_reply_bytes,
    round_line,
    with_failures,
)
from server.records.summary import of_stage
from server.rounds.session import Evaluate, Session, measure
from server.rounds.statistics import renew_statistics
from server.strategies.packed_updates import PackedUpdates


def run_stage(
    session: Session,
    strategy: PackedUpdates,
    state: State,
    *,
    evaluate: Evaluate | None = None,
    device_interval: int = 0,
) -> State:
    """All rounds of the strategy's stage; returns the global state after the last.

    Every round ends with a checkpoint; a run that goes on begins after the one it has.
    A round with too few good replies is recorded as skipped and leaves the state as it is.

    Args:
        session: the run.
        strategy: knows its stage.
        state: the global state at the start, name -> float32 array.
        evaluate: called after every evaluation.interval rounds and the last one.
        device_interval: rounds between two evaluations on the devices; 0: none.

    Raises:
        UserError: if devices stay away, or not one round gave a new state.
    """
    config, plan = session.config, strategy.plan
    session.reporter.stage(plan.stage, plan.num_rounds)
    start = session.checkpoints.start(plan.stage, state, strategy)
    state, float32_bytes = start.state, start.float32_bytes
    earlier = of_stage(session.recorder.rounds, plan.stage)
    num_done = sum(not line["skipped"] for line in earlier)
    problem = ""
    for round_index in range(start.num_done, plan.num_rounds):
        started = time.perf_counter()
        number = round_index + 1
        session.registry.wait_for(plan.min_replies, timeout_seconds=config.federation.round_timeout)
        grid = session.sampled_grid(plan.stage, round_index, plan.min_replies)
        log_event(
            "round-started", stage=plan.stage.value, round=number, num_asked=len(grid.devices)
        )
        messages = strategy.configure_train(number, to_record(state), ConfigRecord(), grid)
        exchange = session.courier.exchange(messages)
        aggregated, _ = strategy.aggregate_train(number, exchange.replies)
        judgement = with_failures(strategy.judgement, exchange, grid.partition_of)
        for device_line in device_lines(
            plan.stage, number, "train", judgement, exchange, grid.devices
        ):
            session.recorder.write(device_line)
        if judgement.refused:
            problem = describe_refusals(judgement.refused)
            session.reporter.note(f"{plan.stage} round {number}: no update from {problem}")
            session.registry.ask_again(judgement.refused)
        if aggregated is not None:
            num_done += 1
            state = {**state, **to_state(aggregated)}
        if judgement.accepted and not float32_bytes:
            view = plan.entries.view(state, plan.entries.bits[0])
            sent = {name: view[name] for name in plan.update_shapes}
            float32_bytes = float32_reply_bytes(judgement.accepted[0], sent)

        line = round_line(
            plan.stage, number, judgement, exchange, grid.devices, float32_bytes=float32_bytes
        )
        line["skipped"] = aggregated is None
        if session.accountant:
            line |= session.accountant.record(line, num_devices=len(session.registry.devices))
        if plan.renews_statistics and number == plan.num_rounds:
            state, figures = renew_statistics(session, plan, state, number)
            line |= figures
        line |= measure(session, strategy, state, number, evaluate, device_interval)
        line["round_seconds"] = time.perf_counter() - started
        line = session.recorder.write(line)
        session.save_checkpoint(number, state, strategy, float32_bytes=float32_bytes)
        session.reporter.round_done(plan.stage, round_index, line)
    if not num_done:
        raise UserError(
            f"stage {plan.stage}: no round of {plan.num_rounds} had {plan.min_replies} good "
            f"replies and a finite result{'; ' + problem if problem else ''}"
        )
    return state
