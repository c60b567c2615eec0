"""Wall-clock time of one thing after the other, or of two in turn.

Two things are compared by the ratio of neighbours in time: what else the machine does, and how
warm it is, then bears on both alike. The median of the ratios leaves out the moments where it
does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from simulations.bench.rows import Figure

Action = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timer:
    """How thoroughly time is taken."""

    repeats: int
    """Measurements of one thing, or pairs of two."""
    least_seconds: float
    """Of one measurement: what is shorter is done several times over; 0: once."""
    least_seconds_of_pairs: float = 0.0
    """Of all pairs together: what is short is compared more often than ``repeats``."""

    def ratio(self, subject: Action, peer: Action, *, settles: bool = False) -> Figure:
        """Seconds of ``subject`` over those of ``peer``, at least ``repeats`` pairs.

        Every other pair is in reverse order, so that neither is always the one that finds the
        caches as the other left them.

        Args:
            subject: what is measured.
            peer: what it is compared with.
            settles: each is done once before it is timed: what the other leaves to it, freed memory
                for one, is part of what is compared.
        """

        def seconds(action: Action, count: int) -> float:
            if settles:
                action()
            return _seconds(action, count)

        subject_count, peer_count = self._count(subject), self._count(peer)
        ratios: list[float] = []
        end = time.perf_counter() + self.least_seconds_of_pairs
        while len(ratios) < self.repeats or time.perf_counter() < end:
            if len(ratios) % 2:
                peer_seconds = seconds(peer, peer_count)
                subject_seconds = seconds(subject, subject_count)
            else:
                subject_seconds = seconds(subject, subject_count)
                peer_seconds = seconds(peer, peer_count)
            ratios.append(subject_seconds / peer_seconds)
        return Figure.of(ratios)

    def rate(self, action: Action, amount: float) -> Figure:
        """``amount`` a second, ``repeats`` times, after a first time that does not count."""
        count = self._count(action)
        return Figure.of([amount / _seconds(action, count) for _ in range(self.repeats)])

    def _count(self, action: Action) -> int:
        """How often ``action`` is done in one measurement; warms up."""
        action()
        if self.least_seconds == 0:
            return 1
        return max(1, math.ceil(self.least_seconds / max(_seconds(action, 1), 1e-9)))


def _seconds(action: Action, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - started) / count
