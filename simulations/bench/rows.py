"""What a benchmark gives: figures, each with its spread and, where one is set, its target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The median of repeated measurements, and the quartiles around it."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    count: int
    """Measurements."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value; quartiles lie between values (inclusive method)."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], count=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, count=len(values))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a median is to reach."""

    bound: float
    at_least: bool = False
    """False: the median is to be at most the bound."""

    def is_met(self, figure: Figure) -> bool:
        """Whether the median is within the bound."""
        return figure.median >= self.bound if self.at_least else figure.median <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


FASTER = Target(bound=1.0)
"""Of the time of a peer."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the report."""

    group: str
    """Rows of a group make a table."""
    subject: str
    """What was measured."""
    against: str = ""
    """What it is compared with; empty: nothing."""
    unit: str
    """Of the figure; "x the time" is the subject's time over the peer's."""
    figure: Figure | None
    """None: not measured; the note says why."""
    target: Target | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None: there is none, or nothing was measured."""
        if self.figure is None or self.target is None:
            return None
        return self.target.is_met(self.figure)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Something to measure."""

    title: str
    run: Callable[[], list[Row]]
