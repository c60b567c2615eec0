"""Epochs that devices train on kept outputs of the teacher (training.teacher-views)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.selection import first_scored_epoch
from common.config import Config, selection_interval


class KeptViews:
    """The views of their coresets that devices have the teacher's outputs on.

    Args:
        config: of the run.
        num_devices: of the run.
    """

    def __init__(self, config: Config, num_devices: int) -> None:
        self._interval = selection_interval(config.coreset)
        self._first_scored = first_scored_epoch(config.coreset)
        # Images that are not augmented have one view.
        num_views = config.training.teacher_views
        self._num_views = num_views if config.data.augment else min(1, num_views)
        num_epochs = config.federation.num_rounds * config.training.local_epochs
        # No coreset lives for longer, and so no view beyond is ever shown.
        shown = min(self._num_views, self._interval, num_epochs)
        self._is_kept = np.zeros((num_devices, shown), dtype=np.bool_)

    def num_kept_epochs(
        self, devices: NDArray[np.int64], coreset_epoch: NDArray[np.int32], first: int, last: int
    ) -> NDArray[np.int64]:
        """Of the epochs from ``first`` to before ``last``, those that need no pass of the teacher.

        Args:
            devices: int64 [n], who trains in these epochs.
            coreset_epoch: [n], when they chose the coreset that they begin with; -1: they have
                none.
            first: counted over all rounds.
            last: counted over all rounds.

        Returns:
            int64 [n]; what is kept by then is remembered.
        """
        num_kept = np.zeros(len(devices), dtype=np.int64)
        if not self._num_views:
            return num_kept
        chosen = coreset_epoch.astype(np.int64)
        for epoch in range(first, last):
            # The rule of client.selection.due_epoch.
            due = chosen + self._interval
            due = np.where(chosen < self._first_scored, np.minimum(due, self._first_scored), due)
            is_new = (chosen < 0) | (epoch >= due)
            chosen[is_new] = epoch
            self._is_kept[devices[is_new]] = False
            view = (epoch - chosen) % self._num_views
            num_kept += self._is_kept[devices, view]
            self._is_kept[devices, view] = True
        return num_kept
