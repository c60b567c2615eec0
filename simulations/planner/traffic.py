"""What the server's line has to carry in a round: bytes, and the peak of all transfers together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.devices import BITS_PER_BYTE

NUM_STEPS = 500
"""A round is cut into so many steps; a peak is the highest load of a step."""
BITS_PER_GBIT = 1e9

Floats = NDArray[np.float64]


class LoadCurve:
    """Sum of the rates of all transfers over the time of a round.

    A transfer goes at its device's rate from its beginning to its end: the server's own line is
    taken to be as wide as it has to be. A step counts every transfer that goes on in it in full.

    Args:
        round_seconds: virtual; transfers end with the round.
    """

    def __init__(self, round_seconds: float) -> None:
        self._step_seconds = max(round_seconds, 1e-9) / NUM_STEPS
        self._starts = np.zeros((2, NUM_STEPS))
        self._ends = np.zeros((2, NUM_STEPS))

    def add_downloads(self, cost: Any, done: Any, num_bytes: Floats) -> float:
        """Count the downloads of some devices; returns the bytes that went.

        Args:
            cost: a `TaskCost` of their tasks, of arrays [devices].
            done: the part of them that was done in the round.
            num_bytes: of their requests, [devices].
        """
        begin = np.asarray(done.virtual_delay_seconds) + np.zeros_like(num_bytes)
        return self._add(
            0, begin, done.virtual_download_seconds, cost.virtual_download_seconds, num_bytes
        )

    def add_uploads(self, cost: Any, done: Any, num_bytes: Floats) -> float:
        """Count the uploads of some devices; returns the bytes that went.

        Args:
            cost: a `TaskCost` of their tasks, of arrays [devices].
            done: the part of them that was done in the round.
            num_bytes: of their replies, [devices].
        """
        begin = (
            done.virtual_delay_seconds + done.virtual_download_seconds
        ) + done.virtual_compute_seconds
        return self._add(
            1, begin, done.virtual_upload_seconds, cost.virtual_upload_seconds, num_bytes
        )

    @property
    def download_peak_gbits(self) -> float:
        """Gbit/s that leave the server at the busiest time."""
        return self._peak(0)

    @property
    def upload_peak_gbits(self) -> float:
        """Gbit/s that reach the server at the busiest time."""
        return self._peak(1)

    def _add(
        self, row: int, begin: Floats, seconds: Floats, full_seconds: Floats, num_bytes: Floats
    ) -> float:
        going = np.flatnonzero(np.asarray(seconds) > 0)
        begin, seconds, full = begin[going], seconds[going], full_seconds[going]
        rate = num_bytes[going] / full
        for steps, times in ((self._starts, begin), (self._ends, begin + seconds)):
            index = np.minimum((times / self._step_seconds).astype(np.int64), NUM_STEPS - 1)
            steps[row] += np.bincount(index, weights=rate, minlength=NUM_STEPS)
        return float((rate * seconds).sum())

    def _peak(self, row: int) -> float:
        ended_before = np.concatenate([[0.0], np.cumsum(self._ends[row])[:-1]])
        load = np.cumsum(self._starts[row]) - ended_before
        return float(load.max() * BITS_PER_BYTE / BITS_PER_GBIT)
