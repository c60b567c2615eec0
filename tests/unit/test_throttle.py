"""Training pauses when the device is hot or its battery low; sensors as Linux shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from client.health import Health, read_health
from client.throttle import PausedTooLongError, Throttle, ThrottleLimits


class Machine:
    """Sensors that follow a script, and a clock that only sleeping moves on."""

    def __init__(self, readings: Sequence[Health]) -> None:
        self.readings = list(readings)
        self.seconds = 100.0

    def look(self) -> Health:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def throttle(self, **limits: float) -> Throttle:
        return Throttle(ThrottleLimits(**limits), self.look, lambda: self.seconds, self.sleep)


def hot(*celsius: float) -> Machine:
    return Machine([Health(temperature_celsius=value) for value in celsius])


def test_it_waits_until_the_device_is_well_below_the_limit() -> None:
    """76 is over 75; 71 is not 5 below it yet, 70 is: two waits of 5 s."""
    machine = hot(76, 71, 70)
    throttle = machine.throttle(max_celsius=75)
    throttle(0.0)
    assert machine.seconds == 110.0
    assert throttle.metrics() == {"paused-seconds": 10.0, "temperature-celsius": 76}


def test_below_the_limit_nothing_waits() -> None:
    machine = hot(74)
    throttle = machine.throttle(max_celsius=75)
    throttle(0.0)
    assert throttle.metrics() == {"paused-seconds": 0.0, "temperature-celsius": 74}


def test_without_limits_nothing_waits() -> None:
    machine = Machine([Health(temperature_celsius=99, battery_percent=1)])
    machine.throttle()(0.0)
    assert machine.seconds == 100.0


def test_a_low_battery_waits_for_the_charger() -> None:
    """15 % is below 20 %; on the charger there is no reading: two waits of 5 s."""
    machine = Machine([Health(battery_percent=15), Health(battery_percent=15), Health()])
    throttle = machine.throttle(min_battery_percent=20)
    throttle(0.0)
    assert throttle.metrics() == {"paused-seconds": 10.0}


def test_a_pause_that_never_ends_is_given_up() -> None:
    """After 13 waits of 5 s 65 s are over, more than 60: the reply says so."""
    machine = hot(80)
    throttle = machine.throttle(max_celsius=75, max_round_seconds=60)
    with pytest.raises(PausedTooLongError, match="80 degrees, the limit is 75"):
        throttle(0.0)
    assert machine.seconds - 100 == 65
    assert throttle.metrics() == {"paused-seconds": 65.0, "temperature-celsius": 80}


def test_a_pause_is_given_up_while_the_server_still_waits() -> None:
    """It begins 50 s into the round: three waits of 5 s later 65 of its 60 s are over."""
    machine = hot(80)
    throttle = machine.throttle(max_celsius=75, max_round_seconds=60)
    machine.sleep(50)
    with pytest.raises(PausedTooLongError):
        throttle(0.0)
    assert machine.seconds - 100 == 65
    assert throttle.metrics()["paused-seconds"] == 15.0


def test_sensors_are_looked_at_once_a_second() -> None:
    """Three calls in one second: one reading of two is taken."""
    machine = hot(50, 60)
    throttle = machine.throttle(max_celsius=75)
    for _ in range(3):
        throttle(0.0)
    assert [reading.temperature_celsius for reading in machine.readings] == [60]


def write(root: Path, **files: str) -> None:
    root.mkdir(parents=True)
    for name, text in files.items():
        (root / name).write_text(text + "\n")


def test_linux_sensors(tmp_path: Path) -> None:
    """The hottest of two zones; a broken one is passed over; the mains adapter is no battery,
    a mouse's is not the machine's."""
    write(tmp_path / "thermal/thermal_zone0", temp="48312")
    write(tmp_path / "thermal/thermal_zone1", temp="61200")
    write(tmp_path / "thermal/thermal_zone2", temp="")
    write(tmp_path / "power_supply/AC", type="Mains", status="Discharging", capacity="1")
    write(tmp_path / "power_supply/BAT0", type="Battery", status="Discharging", capacity="37")
    write(
        tmp_path / "power_supply/hidpp_battery_0",
        **{"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "4"},
    )
    assert read_health(tmp_path) == Health(temperature_celsius=61.2, battery_percent=37)
    (tmp_path / "power_supply/BAT0/status").write_text("Charging\n")
    assert read_health(tmp_path).battery_percent is None


def test_no_sensors(tmp_path: Path) -> None:
    assert read_health(tmp_path) == Health()
