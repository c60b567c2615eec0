"""The rounds of one stage: sample, train, aggregate, evaluate, record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord

from common.config import Config
from common.errors import UserError
from common.events import log_event
from server.checkpoints.resumption import Checkpoints
from server.checkpoints.stage_start import Progress
from server.exchange.courier import Courier
from server.exchange.registry import DeviceRegistry, SampledGrid
from server.model.aggregation import State
from server.model.evaluation import Evaluation
from server.model.forms import to_record, to_state
from server.records.recorder import Recorder
from server.records.reporting import Reporter
from server.records.round_lines import (
    describe_refusals,
    device_lines,
    float32_reply_bytes,
    refusal_counts,
    round_line,
    with_failures,
)
from server.records.summary import of_stage
from server.strategies.packed_updates import PackedUpdates
from server.strategies.privacy import sampling_seed
from server.strategies.privacy_accountant import PrivacyAccountant

Evaluate = Callable[[State], Evaluation]
"""Measures a global state."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the stages of a run share."""

    config: Config
    courier: Courier
    registry: DeviceRegistry
    recorder: Recorder
    reporter: Reporter
    checkpoints: Checkpoints
    started: float
    """time.perf_counter() at the run's beginning; earlier where a run goes on."""
    accountant: PrivacyAccountant | None = None
    """Of a run whose devices have differential privacy."""

    def sampled_grid(self, purpose: str, round_index: int, minimum: int) -> SampledGrid:
        """This round's seeded sample of the devices that are there, with some to spare."""
        devices = self.registry.sample(
            sampling_seed(self.config, self.registry.devices),
            f"sampling-{purpose}",
            round_index,
            fraction=min(1.0, self.config.federation.fraction * self.config.fleet.over_selection),
            minimum=minimum,
        )
        return SampledGrid(self.courier.grid, devices)

    def save_checkpoint(
        self,
        number: int,
        state: State,
        strategy: PackedUpdates,
        *,
        float32_bytes: int,
        progress: Progress | None = None,
    ) -> None:
        """Keep what the round after ``number`` depends on."""
        self.checkpoints.save(
            strategy.plan.stage,
            number,
            state,
            strategy,
            self.recorder,
            float32_bytes=float32_bytes,
            progress=progress,
            teacher_partitions=self.registry.teacher_partitions,
            query_traffic=self.registry.traffic,
            wall_seconds=time.perf_counter() - self.started,
        )


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
            session.reporter.note(f"{plan.stage} round {number}: refused: {problem}")
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


def measure(
    session: Session,
    strategy: PackedUpdates,
    state: State,
    number: int,
    evaluate: Evaluate | None,
    device_interval: int,
) -> dict[str, Any]:
    """Figures of the global state after round ``number`` (from 1), where they are due."""
    figures: dict[str, Any] = {}
    is_last = number == strategy.plan.num_rounds
    if evaluate and (is_last or number % session.config.evaluation.interval == 0):
        started = time.perf_counter()
        figures |= evaluate(state).figures()
        figures["evaluation_seconds"] = time.perf_counter() - started
    if device_interval and number % device_interval == 0:
        figures |= _evaluate_on_devices(session, strategy, state, number)
    return figures


def _evaluate_on_devices(
    session: Session, strategy: PackedUpdates, state: State, number: int
) -> dict[str, Any]:
    """The global model on the held-out images of a sample of its own."""
    plan = strategy.plan
    grid = session.sampled_grid("evaluation", number - 1, plan.min_replies)
    messages = strategy.configure_evaluate(number, to_record(state), ConfigRecord(), grid)
    exchange = session.courier.exchange(messages)
    metrics = strategy.aggregate_evaluate(number, exchange.replies)
    judgement = with_failures(strategy.judgement, exchange, grid.partition_of)
    for line in device_lines(plan.stage, number, "evaluate", judgement, exchange, grid.devices):
        session.recorder.write(line)
    traffic = exchange.total()
    return {
        **metrics,
        "evaluation_refused": refusal_counts(judgement.refused),
        "evaluation_upload_bytes": traffic.upload_bytes,
        "evaluation_download_bytes": traffic.download_bytes,
    }
