"""How far a run was after each of its rounds: in rounds, bytes, virtual time or energy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from simulations.comparison.records import Line

Positions = Mapping[int, float]
"""Round -> how far the run was after it."""

PositionsOf = Callable[[Sequence[Line]], Positions]
"""Of a run's rounds; empty where the figure was not recorded."""


def rounds_passed(lines: Sequence[Line]) -> Positions:
    """The rounds themselves."""
    return {line["round"]: line["round"] for line in lines}


def virtual_clock(lines: Sequence[Line]) -> Positions:
    """Virtual seconds since the start of the run, of an emulated fleet."""
    return {
        line["round"]: line["virtual_clock_seconds"]
        for line in lines
        if "virtual_clock_seconds" in line
    }


def running_total(name: str, scale: float = 1.0) -> PositionsOf:
    """The sum of a figure up to and with a round, times ``scale``."""

    def positions(lines: Sequence[Line]) -> Positions:
        if any(line.get(name) is None for line in lines):
            return {}
        totals = itertools.accumulate(line[name] * scale for line in lines)
        return dict(zip((line["round"] for line in lines), totals, strict=True))

    return positions
