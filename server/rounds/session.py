"""What the stages of a run share: its parts, and how the global model is measured after a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord

from common.config import Config
from server.checkpoints.resumption import Checkpoints
from server.checkpoints.stage_start import Progress
from server.exchange.courier import Courier
from server.exchange.registry import DeviceRegistry, SampledGrid
from server.model.aggregation import State
from server.model.evaluation import Evaluation
from server.model.forms import to_record
from server.records.recorder import Recorder
from server.records.reporting import Reporter
from server.records.round_lines import device_lines, refusal_counts, with_failures
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
            model_at=self.registry.model_at,
            query_traffic=self.registry.traffic,
            wall_seconds=time.perf_counter() - self.started,
        )


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
    if not grid.devices:  # asynchronous rounds end also when all have left
        session.reporter.note(f"{plan.stage} round {number}: no device is there to evaluate on")
        return {}
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
