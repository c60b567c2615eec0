"""What trainings show while they run: which one, the epoch and the time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn

from common.units import format_duration
from simulations.display.terminal import LiveLines

SECONDS_BETWEEN_LINES = 60.0
"""Without a terminal: how often a training that takes long says where it is."""


class TrainingProgress(LiveLines):
    """Progress of trainings one after the other; a context manager.

    On a terminal the current one is shown live below the lines of the finished ones; elsewhere
    there are only lines.

    Args:
        console: where to.
        total_work: of everything that is still to be done, in any unit.
    """

    def __init__(self, console: Console, total_work: float) -> None:
        super().__init__(
            console,
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[left]}"),
        )
        self._total = total_work
        self._done = 0.0
        self._earlier = 0.0
        self._current = 0.0
        self._title = ""
        self._num_epochs = 0
        self._epoch = -1
        self._started = self._spoken = time.monotonic()
        self._task = self._progress.add_task("", total=max(total_work, 1e-9), left="")

    def begin(self, title: str, work: float, num_epochs: int, *, done: float = 0.0) -> None:
        """A training begins, or goes on where a share of it is ``done`` already."""
        if not self._title:
            # What comes before the first one, as loading data, does not come again.
            self._started = time.monotonic()
        self._title, self._current, self._num_epochs = title, work, num_epochs
        self._epoch = -1
        self._earlier += done * work
        self._show(done)

    def advance(self, share: float, work_share: float | None = None) -> None:
        """``share`` in [0, 1) of the current training's epochs is done.

        ``work_share`` is that of its work; None: the same.
        """
        epoch = int(share * self._num_epochs + 1e-6)
        if epoch != self._epoch:
            self._epoch = epoch
            self._show(share if work_share is None else work_share)

    def end(self, line: str) -> None:
        """The current training is over: say what came of it."""
        self._done += self._current
        self._current = 0.0
        self._say(_joined(line, self._left(self._done)))
        self._progress.update(self._task, completed=self._done)

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._say(text)

    def _show(self, share: float) -> None:
        done = self._done + share * self._current
        where = f"{self._title}, epoch {max(self._epoch, 0) + 1}/{self._num_epochs}"
        left = self._left(done)
        self._progress.update(self._task, description=where, completed=done, left=left)
        is_silent = time.monotonic() - self._spoken < SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and not is_silent:
            self._say(_joined(where, left))

    def _left(self, done: float) -> str:
        if not self._earlier < done < self._total:
            return ""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        speed = (done - self._earlier) / elapsed
        return f"about {format_duration((self._total - done) / speed)} left"

    def _say(self, text: str) -> None:
        self._spoken = time.monotonic()
        self._line(text)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
