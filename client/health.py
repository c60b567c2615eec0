"""How the machine is: temperature, battery, throttling, as Linux tells it; empty elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys/class")

THROTTLED_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""Bits of the Raspberry Pi's ``vcgencmd get_throttled`` that tell about now."""

_UNPLAUSIBLE_CELSIUS = 150.0


@dataclass(frozen=True, kw_only=True)
class Health:
    """One look at the machine."""

    temperature_celsius: float | None = None
    """Of the hottest sensor; None: there is none."""
    battery_percent: float | None = None
    """Charge, while a battery is discharging; None: on mains, or no battery."""


def read_health(sys_class: Path = SYS) -> Health:
    """The machine as it is now."""
    return Health(temperature_celsius=_hottest(sys_class), battery_percent=_discharging(sys_class))


def read_throttling() -> list[str] | None:
    """What slows a Raspberry Pi down now; None: this machine cannot say."""
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, "get_throttled"], capture_output=True, text=True, timeout=10, check=True
        )
        bits = int(done.stdout.strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return [name for bit, name in THROTTLED_BITS.items() if bits >> bit & 1]


def _hottest(sys_class: Path) -> float | None:
    celsius = [
        value / 1000
        for path in sys_class.glob("thermal/thermal_zone*/temp")
        if (value := _number(path)) is not None
    ]
    plausible = [value for value in celsius if 0 < value < _UNPLAUSIBLE_CELSIUS]
    return max(plausible, default=None)


def _discharging(sys_class: Path) -> float | None:
    charges = [
        charge
        for supply in sys_class.glob("power_supply/*")
        if _text(supply / "type") == "Battery"
        and _text(supply / "scope") != "Device"  # of a mouse or a headset
        and _text(supply / "status") == "Discharging"
        and (charge := _number(supply / "capacity")) is not None
    ]
    return min(charges, default=None)


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # a sensor that is off cannot be read
        return ""
