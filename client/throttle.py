"""Training that waits while the device is too hot or its battery too low."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.health import Health
from common.events import log_event

CHECK_SECONDS = 1.0
"""Between two looks at the sensors, while training."""

PAUSE_SECONDS = 5.0
"""Between two looks at the sensors, while paused."""

COOLING_CELSIUS = 5.0
"""Training goes on when it is so much below the limit: else it would stop again at once."""


class PausedTooLongError(RuntimeError):
    """The pause lasted for as long as the round can wait."""


@dataclass(frozen=True, kw_only=True)
class ThrottleLimits:
    """When training pauses."""

    max_celsius: float = 0.0
    """0: whatever the temperature."""
    min_battery_percent: float = 0.0
    """While on battery; 0: down to the last."""
    max_round_seconds: float = 600.0
    """Of a round, from its beginning on: a pause that lasts until then is given up."""


class Throttle:
    """Called in every step of a training; returns when the training may go on.

    Made when the round begins.

    Args:
        limits: when to pause.
        look: reads the sensors.
        now: seconds of a clock that never goes back.
        sleep: waits.
    """

    def __init__(
        self,
        limits: ThrottleLimits,
        look: Callable[[], Health],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = limits
        self._look = look
        self._now = now
        self._sleep = sleep
        self._round_started = self._next_look = now()
        self._hottest: float | None = None
        self._paused_seconds = 0.0

    def __call__(self, progress: float) -> None:
        """Wait if it has to be; ``progress`` is not looked at.

        Raises:
            PausedTooLongError: if a pause lasts until the round's time is over.
        """
        started = self._now()
        if started < self._next_look:
            return
        health = self._measure()
        reason = self._reason(health, 0.0)
        if reason:
            log_event("training-paused", reason, level=logging.WARNING)
            try:
                while self._reason(health, COOLING_CELSIUS):
                    if self._now() - self._round_started > self._limits.max_round_seconds:
                        raise PausedTooLongError(reason)
                    self._sleep(PAUSE_SECONDS)
                    health = self._measure()
            finally:
                self._paused_seconds += self._now() - started
            log_event("training-resumed")
        self._next_look = self._now() + CHECK_SECONDS

    def metrics(self) -> dict[str, int | float]:
        """What the round's reply says: seconds of pause and the highest temperature seen."""
        figures: dict[str, int | float] = {"paused-seconds": self._paused_seconds}
        if self._hottest is not None:
            figures["temperature-celsius"] = self._hottest
        return figures

    def _measure(self) -> Health:
        health = self._look()
        if health.temperature_celsius is not None:
            self._hottest = max(self._hottest or 0.0, health.temperature_celsius)
        return health

    def _reason(self, health: Health, margin: float) -> str:
        """Why not to train now, in words; empty: nothing is against it."""
        limits, celsius, battery = self._limits, health.temperature_celsius, health.battery_percent
        if limits.max_celsius and celsius is not None and celsius > limits.max_celsius - margin:
            return f"{celsius:.0f} degrees, the limit is {limits.max_celsius:g}"
        if battery is not None and battery < limits.min_battery_percent:
            return f"battery at {battery:.0f} %, the limit is {limits.min_battery_percent:g} %"
        return ""
