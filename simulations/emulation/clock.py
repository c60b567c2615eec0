"""Virtual time: it passes only when the emulation says so. Its real twin is common.clock's."""

from __future__ import annotations


class VirtualClock:
    """A `common.clock.Clock` that starts at 0 and waits without waiting."""

    def __init__(self) -> None:
        self._virtual_seconds = 0.0

    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._virtual_seconds

    def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass.

        Raises:
            ValueError: for less than nothing.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds = {seconds}: expected a number, >= 0")
        self._virtual_seconds += seconds
