"""Tests of common.devices."""

import numpy as np
import pytest

from common.devices import (
    Availability,
    DeviceProfile,
    TaskCost,
    joules,
    task_cost,
    task_joules,
    training_seconds,
)


def profile(**figures: object) -> DeviceProfile:
    """2 GFLOP/s, 8 Mbit/s up (10^6 bytes a second), 16 Mbit/s down, half a second of latency."""
    defaults: dict[str, object] = {
        "class_name": "test",
        "training_gflops": 2.0,
        "memory_mb": 1000.0,
        "uplink_mbits": 8.0,
        "downlink_mbits": 16.0,
        "latency_seconds": 0.5,
        "training_watts": 5.0,
        "idle_watts": 1.0,
        "radio_watts": 3.0,
    }
    return DeviceProfile(**{**defaults, **figures})  # type: ignore[arg-type]


class TestCost:
    def test_a_task_by_hand(self) -> None:
        """Down 4e6 bytes at 2e6 a second + 0.5 = 2.5 s; 6e9 operations at 2e9 = 3 s; up 1e6 bytes
        at 1e6 a second + 0.5 = 1.5 s: 7 s together."""
        cost = task_cost(profile(), flops=6e9, download_bytes=4e6, upload_bytes=1e6)
        assert cost.virtual_download_seconds == pytest.approx(2.5, abs=1e-9)
        assert cost.virtual_compute_seconds == pytest.approx(3.0, abs=1e-9)
        assert cost.virtual_upload_seconds == pytest.approx(1.5, abs=1e-9)
        assert cost.virtual_seconds == pytest.approx(7.0, abs=1e-9)

    def test_energy_by_hand(self) -> None:
        """3 s of 5 W, 2.5 + 1.5 s of 3 W, 2 s of 1 W: 15 + 12 + 2 = 29 J."""
        cost = task_cost(profile(), flops=6e9, download_bytes=4e6, upload_bytes=1e6)
        assert task_joules(profile(), cost, idle_seconds=2.0) == pytest.approx(29.0, abs=1e-9)

    @pytest.mark.parametrize(
        ("after", "expected"),
        [
            (1.0, (1.0, 0.0, 0.0)),
            (4.0, (2.5, 1.5, 0.0)),
            (6.0, (2.5, 3.0, 0.5)),
            (9.0, (2.5, 3.0, 1.5)),
        ],
    )
    def test_a_task_broken_off(self, after: float, expected: tuple[float, float, float]) -> None:
        """Download to 2.5, computing to 5.5, upload to 7."""
        whole = TaskCost(
            virtual_download_seconds=2.5, virtual_compute_seconds=3.0, virtual_upload_seconds=1.5
        )
        part = whole.until(after)
        assert (
            part.virtual_download_seconds,
            part.virtual_compute_seconds,
            part.virtual_upload_seconds,
        ) == expected

    def test_arrays(self) -> None:
        """2e9 and 4e9 operations at 2e9 a second; the energy of 1 and 2 s of 5 W."""
        seconds = training_seconds(profile(), np.array([2e9, 4e9]))
        assert seconds.tolist() == [1.0, 2.0]
        nothing = np.zeros(2)
        energy = joules(
            profile(), training_seconds=seconds, radio_seconds=nothing, idle_seconds=nothing
        )
        assert energy.tolist() == [5.0, 10.0]


class TestProfile:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("training_gflops", 0.0),
            ("uplink_mbits", -1.0),
            ("latency_seconds", -0.1),
            ("latency_seconds", float("nan")),
            ("failure_rate", 1.1),
            ("data_share", 0.0),
            ("weight_bits", (1,)),
            ("weight_bits", ()),
        ],
    )
    def test_bad_figures_are_named(self, name: str, value: object) -> None:
        with pytest.raises(ValueError, match=f"^{name} = "):
            profile(**{name: value})


class TestAvailability:
    def test_periods_from_a_phase(self) -> None:
        """60 s there, 40 s not. At time 50 phases 0, 0.05, 0.1 and 0.5 are at 50, 55, 60 and 100,
        which is 0 of the next cycle."""
        availability = Availability(schedule=((60.0, True), (40.0, False)))
        phase = np.array([0.0, 0.05, 0.1, 0.5])
        assert availability.is_scheduled(50.0, phase).tolist() == [True, True, False, True]

    def test_one_phase_for_all(self) -> None:
        """All are at 70 of the cycle: not there."""
        availability = Availability(schedule=((60.0, True), (40.0, False)), same_phase=True)
        phase = np.array([0.0, 0.9])
        assert availability.is_scheduled(170.0, phase).tolist() == [False, False]

    def test_chance_and_slots(self) -> None:
        """A draw below the probability is there; a slot of 10 s begins at 0, 10, 20."""
        availability = Availability(probability=0.5, slot_seconds=10.0)
        phase = np.zeros(3)
        draw = np.array([0.0, 0.49, 0.5])
        assert availability.is_available(0.0, phase, draw).tolist() == [True, True, False]
        assert [availability.slot(seconds) for seconds in (0.0, 9.9, 10.0, 25.0)] == [0, 0, 1, 2]

    def test_bad_figures_are_named(self) -> None:
        with pytest.raises(ValueError, match="probability"):
            Availability(probability=1.5)
        with pytest.raises(ValueError, match="schedule seconds"):
            Availability(schedule=((0.0, True),))
