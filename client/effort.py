"""What a device has time for in a round: how large a coreset, how many epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import RecordDict

from client.deadline import (
    Pace,
    fitting_epochs,
    fitting_fraction,
    seconds_to_compute,
)
from client.device import Device
from client.quarc import QuarcResult
from client.selection import coreset_size, has_scored, is_due
from client.state import load_coreset, load_pace
from common.config import Config, CoresetConfig
from common.messages import TrainRequest

Effort = tuple[CoresetConfig, int]
"""Which coreset a device chooses, and how many epochs it trains on it in a round."""


def round_effort(
    config: Config, device: Device, request: TrainRequest, records: RecordDict
) -> Effort:
    """What is configured or, where the device is to look at its clock, what it has time for.

    A device that does not know its pace yet does what is configured.
    """
    coreset, num_epochs = config.coreset, config.training.local_epochs
    pace = device.pace or Pace.from_figures(load_pace(records))
    if pace is None or not config.is_paced:
        return coreset, num_epochs
    num_samples = len(device.train)
    seconds = seconds_to_compute(
        config,
        pace,
        model_bytes=len(request.model) + sum(map(len, request.changes.values())),
        num_changes=len(request.changes),
        teacher_bytes=len(request.teacher),
    )
    kept = load_coreset(records, device.train.digest)
    is_first = not has_scored(coreset, kept)
    if coreset.adaptive:
        fraction = fitting_fraction(
            config,
            pace,
            seconds=seconds,
            num_samples=num_samples,
            num_classes=device.dataset.train.num_classes,
            is_first=is_first,
        )
        coreset = replace(coreset, fraction=fraction)
    if config.training.partial_work:
        size = coreset_size(coreset, device.train.labels)
        epoch = request.round_index * config.training.local_epochs
        if (
            coreset.adaptive
            and kept is not None
            and not is_due(coreset, kept, device.train.labels, epoch)
        ):
            size = len(kept.indices)
        num_epochs = fitting_epochs(
            config,
            pace,
            seconds=seconds,
            coreset_size=size,
            num_samples=num_samples,
            is_first=is_first,
        )
    return coreset, num_epochs


def measured_pace(outcome: QuarcResult, earlier: Mapping[str, object]) -> dict[str, float]:
    """The device's pace in the round that ``outcome`` came of, by the wall clock.

    Args:
        outcome: of the round.
        earlier: the pace kept so far, of this function: a round in which no image was scored says
            nothing of scoring.
    """
    num_scored = outcome.num_scored + outcome.num_teacher_scored
    known = earlier.get("seconds-per-scored-sample", 0.0)
    assert isinstance(known, float)
    return {
        "seconds-per-sample": outcome.train_seconds / max(1, outcome.training.num_seen),
        "seconds-per-scored-sample": (outcome.select_seconds / num_scored if num_scored else known),
    }
