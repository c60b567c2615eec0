"""What ends a process that was told to end (SIGTERM)."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(SystemExit):
    """Ends the process with a clean-up, also in the middle of a device's task."""


def end_cleanly_when_told() -> None:
    """Have SIGTERM raise `Terminated`: what is told to end cleans up like what is interrupted."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)
