"""Accuracy over the course of the runs: mean and standard deviation over seeds, without drawing."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simulations.comparison.groups import Group
from simulations.comparison.records import Line, RunRecord
from simulations.paper.table import Spread

Positions = Mapping[int, float]
"""Round -> where it is on the x axis."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What accuracy is drawn against."""

    name: str
    """For file names and ids."""
    title: str
    label: str
    """Of the axis, with its unit."""
    positions: Callable[[Sequence[Line]], Positions]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The accuracy of one group."""

    label: str
    x: Sequence[float]
    """Mean over seeds."""
    accuracy: Sequence[Spread]
    """Percent, as long as ``x``."""


def _rounds(lines: Sequence[Line]) -> Positions:
    return {line["round"]: line["round"] for line in lines}


def running_total(name: str, scale: float = 1.0) -> Callable[[Sequence[Line]], Positions]:
    """Positions by the sum of a figure up to and with a round; none where it was not recorded."""

    def positions(lines: Sequence[Line]) -> Positions:
        if any(line.get(name) is None for line in lines):
            return {}
        totals = itertools.accumulate(line[name] * scale for line in lines)
        return dict(zip((line["round"] for line in lines), totals, strict=True))

    return positions


AXES = (
    Axis(name="rounds", title="Accuracy by round", label="round", positions=_rounds),
    Axis(
        name="upload",
        title="Accuracy by bytes sent",
        label="megabytes sent by all devices",
        positions=running_total("upload_bytes", 1e-6),
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
        label=group.label,
        x=[statistics.fmean(places[number] for _, places in runs) for number in rounds],
        accuracy=[spread for spread in spreads if spread is not None],
    )


def _accuracies(run: RunRecord) -> dict[int, float]:
    """Round -> Top-1 of the global model, percent."""
    return {
        line["round"]: line["accuracy"] for line in run.rounds if line.get("accuracy") is not None
    }
