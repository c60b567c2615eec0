"""Batch normalisation's statistics of the trained model, asked of the devices after the last round.

A mean of low-bit networks is another network: codes flip where latent weights are averaged, and
means and variances that devices kept while they trained are those of none. A correction of the
layers makes that worse, as the network then depends more on them (docs/results/correction.md).
"""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord

from common.messages import Stage
from common.models import is_statistic
from server.model.aggregation import State
from server.model.forms import to_record, to_state
from server.records.round_lines import (
    describe_refusals,
    device_lines,
    refusal_counts,
    with_failures,
)
from server.rounds.session import Session
from server.strategies.flower import averaging, make_strategy
from server.strategies.stage_plan import StagePlan

UNCHANGED = "statistics of batch normalisation stay those of the training"


def renew_statistics(
    session: Session, plan: StagePlan, state: State, number: int
) -> tuple[State, dict[str, Any]]:
    """The state with the mean of what a sample of devices measured, weighted by images.

    Robust strategies protect it as they do training. With too few good replies, or nobody there,
    the state stays as it is.

    Args:
        session: the run.
        plan: of the training.
        state: global, after the last round.
        number: of that round, from 1.

    Returns:
        The state, and figures for the round's line.
    """
    bits = plan.entries.bits[0]
    shapes = {
        name: values.shape
        for name, values in plan.entries.view(state, bits).items()
        if is_statistic(name)
    }
    statistics = StagePlan(
        stage=Stage.STATISTICS,
        num_rounds=1,
        downlink_format=plan.downlink_format,
        min_replies=plan.min_replies,
        update_shapes=shapes,
        entries=plan.entries,
        quantize=plan.quantize,
    )
    strategy = make_strategy(averaging(session.config.strategy), statistics)
    grid = session.sampled_grid(Stage.STATISTICS, 0, plan.min_replies)
    if not grid.devices:
        session.reporter.note(UNCHANGED)
        return state, {}
    messages = strategy.configure_train(1, to_record(state), ConfigRecord(), grid)
    exchange = session.courier.exchange(messages)
    aggregated, _ = strategy.aggregate_train(1, exchange.replies)
    judgement = with_failures(strategy.judgement, exchange, grid.partition_of)
    for line in device_lines(plan.stage, number, "statistics", judgement, exchange, grid.devices):
        session.recorder.write(line)
    if judgement.refused:
        problem = describe_refusals(judgement.refused)
        session.reporter.note(f"statistics of batch normalisation: none from {problem}")
    if aggregated is None:
        session.reporter.note(UNCHANGED)
    else:
        state = {**state, **to_state(aggregated)}
    traffic = exchange.total()
    return state, {
        "statistics_refused": refusal_counts(judgement.refused),
        "statistics_upload_bytes": traffic.upload_bytes,
        "statistics_download_bytes": traffic.download_bytes,
    }
