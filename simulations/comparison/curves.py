"""Accuracy over the course of the runs: mean and standard deviation over seeds, without drawing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.comparison.groups import Group
from simulations.comparison.positions import (
    PositionsOf,
    rounds_passed,
    running_total,
    virtual_clock,
)
from simulations.comparison.records import RunRecord
from simulations.results.spread import Spread


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What accuracy is drawn against."""

    name: str
    """For file names and ids."""
    title: str
    label: str
    """Of the axis, with its unit."""
    positions: PositionsOf


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The accuracy of one group."""

    x: Sequence[float]
    """Mean over seeds."""
    accuracy: Sequence[Spread]
    """Percent, as long as ``x``."""


AXES = (
    Axis(name="rounds", title="Accuracy by round", label="round", positions=rounds_passed),
    Axis(
        name="upload",
        title="Accuracy by bytes sent",
        label="megabytes sent by all devices",
        positions=running_total("upload_bytes", 1e-6),
    ),
    Axis(
        name="virtual",
        title="Accuracy by virtual time",
        label="virtual seconds",
        positions=virtual_clock,
    ),
    Axis(
        name="energy",
        title="Accuracy by energy",
        label="kilojoules of all devices, without warm-up",
        positions=running_total("joules", 1e-3),
    ),
)


def curve(group: Group, axis: Axis) -> Curve | None:
    """A group's accuracy at the rounds that all its runs evaluated; None when there is none."""
    runs = [(_accuracies(run), axis.positions(run.rounds)) for run in group.runs]
    shared = set.intersection(*[set(accuracies) & set(places) for accuracies, places in runs])
    rounds = sorted(shared)
    if not rounds:
        return None
    spreads = [Spread.of([accuracies[number] for accuracies, _ in runs]) for number in rounds]
    return Curve(
        x=[statistics.fmean(places[number] for _, places in runs) for number in rounds],
        accuracy=[spread for spread in spreads if spread is not None],
    )


def _accuracies(run: RunRecord) -> dict[int, float]:
    """Round -> Top-1 of the global model, percent."""
    return {
        line["round"]: line["accuracy"] for line in run.rounds if line.get("accuracy") is not None
    }
