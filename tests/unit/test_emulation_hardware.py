"""Tests of simulations.emulation.hardware and simulations.emulation.clock."""

import math

import numpy as np
import pytest

from common.devices import Availability, DeviceProfile, TaskCost, task_cost
from common.errors import UserError
from simulations.emulation.clock import VirtualClock
from simulations.emulation.fleet import DeviceFleet, FleetClass
from simulations.emulation.hardware import (
    Attempt,
    Emulation,
    Fate,
    doomed,
    require_possible,
    settle_attempts,
)


def profile(name: str = "test", **figures: object) -> DeviceProfile:
    """2 GFLOP/s, 8 Mbit/s each way, no latency; 5, 1 and 3 W."""
    defaults: dict[str, object] = {
        "training_gflops": 2.0,
        "memory_mb": 1000.0,
        "uplink_mbits": 8.0,
        "downlink_mbits": 8.0,
        "latency_seconds": 0.0,
        "training_watts": 5.0,
        "idle_watts": 1.0,
        "radio_watts": 3.0,
    }
    return DeviceProfile(class_name=name, **{**defaults, **figures})  # type: ignore[arg-type]


def fleet(*classes: tuple[DeviceProfile, int]) -> DeviceFleet:
    members = tuple(FleetClass(profile=made, count=count) for made, count in classes)
    return DeviceFleet(name="made", classes=members)


def attempt(partition_id: int, seconds: float, fails_after: float = math.inf) -> Attempt:
    """A task of so many virtual seconds of computing alone."""
    cost = TaskCost(
        virtual_download_seconds=0.0,
        virtual_compute_seconds=seconds,
        virtual_upload_seconds=0.0,
    )
    return Attempt(partition_id=partition_id, cost=cost, fails_after=fails_after)


class TestSettle:
    def test_all_are_waited_for(self) -> None:
        settled, seconds = settle_attempts(
            [attempt(0, 7.0), attempt(1, 3.0)], num_wanted=2, deadline=0.0
        )
        assert [a.fate for a in settled] == [Fate.TRAINED, Fate.TRAINED]
        assert seconds == 7.0

    def test_a_deadline_drops_the_late(self) -> None:
        attempts = [attempt(0, 7.0), attempt(1, 3.0), attempt(2, 5.0)]
        settled, seconds = settle_attempts(attempts, num_wanted=3, deadline=5.0)
        assert [a.fate for a in settled] == [Fate.LATE, Fate.TRAINED, Fate.TRAINED]
        assert seconds == 5.0

    def test_a_round_ends_before_its_deadline_when_nobody_is_left(self) -> None:
        settled, seconds = settle_attempts([attempt(0, 4.0)], num_wanted=1, deadline=10.0)
        assert [a.fate for a in settled] == [Fate.TRAINED]
        assert seconds == 4.0

    def test_the_first_replies_are_enough(self) -> None:
        """Three are asked for two: the slowest is not waited for."""
        attempts = [attempt(0, 7.0), attempt(1, 3.0), attempt(2, 5.0)]
        settled, seconds = settle_attempts(attempts, num_wanted=2, deadline=0.0)
        assert [a.fate for a in settled] == [Fate.SURPLUS, Fate.TRAINED, Fate.TRAINED]
        assert seconds == 5.0

    def test_of_devices_with_the_same_time_the_smaller_partition_id_comes_first(self) -> None:
        settled, _ = settle_attempts([attempt(1, 3.0), attempt(0, 3.0)], num_wanted=1, deadline=0.0)
        assert [a.fate for a in settled] == [Fate.SURPLUS, Fate.TRAINED]

    def test_a_spare_device_replaces_one_that_fails(self) -> None:
        attempts = [attempt(0, 7.0), attempt(1, 3.0, fails_after=2.0), attempt(2, 5.0)]
        settled, seconds = settle_attempts(attempts, num_wanted=2, deadline=0.0)
        assert [a.fate for a in settled] == [Fate.TRAINED, Fate.FAILED, Fate.TRAINED]
        assert seconds == 7.0

    def test_who_is_doomed_is_known_before(self) -> None:
        assert doomed(attempt(0, 7.0), deadline=5.0) is Fate.LATE
        assert doomed(attempt(0, 7.0, fails_after=1.0), deadline=5.0) is Fate.FAILED
        assert doomed(attempt(0, 5.0), deadline=5.0) is None
        assert doomed(attempt(0, 7.0), deadline=0.0) is None

    def test_sixteen_devices_with_random_delays(self) -> None:
        """16 devices, delays exponential with means 100 (6 devices), 200 (5) and 400 s (5), and
        2.5 s of transfer each way: 5 s. Waiting for all of them takes E[max] + 5 s, with E[max] the
        integral of 1 - prod_i (1 - exp(-t / m_i)), here by the trapezoidal rule in steps of 0.5 s.
        """
        means = [100.0] * 6 + [200.0] * 5 + [400.0] * 5
        times = np.arange(0.0, 12_000.0, 0.5)
        cdf = np.prod([1 - np.exp(-times / mean) for mean in means], axis=0)
        expected = float(np.trapezoid(1 - cdf, times)) + 5.0

        classes = [
            (profile(str(mean), mean_delay_seconds=mean), means.count(mean))
            for mean in (100.0, 200.0, 400.0)
        ]
        emulation = Emulation(fleet(*classes), num_devices=16, seed=0)
        clock = VirtualClock()
        num_rounds = 4000
        for index in range(num_rounds):
            delays = emulation.delays("test", index)
            attempts = [
                Attempt(
                    partition_id=i,
                    cost=task_cost(
                        emulation.profile(i),
                        flops=0.0,
                        download_bytes=2.5e6,
                        upload_bytes=2.5e6,
                        delay_seconds=float(delays[i]),
                    ),
                )
                for i in range(16)
            ]
            clock.sleep(settle_attempts(attempts, num_wanted=16, deadline=0.0)[1])
        assert clock.now() / num_rounds == pytest.approx(expected, rel=0.02)


class TestDeadlineNobodyCanMeet:
    def test_the_fastest_device_is_named(self) -> None:
        attempts = [attempt(4, 9.0), attempt(7, 6.5)]
        with pytest.raises(UserError) as error:
            require_possible(attempts, ["slow", "quick"], deadline=5.0)
        assert str(error.value) == (
            "fleet.deadline = 5: no device can meet it; the fastest, device 7 (quick), needs at "
            "least 6.5 virtual seconds"
        )

    def test_one_device_is_enough(self) -> None:
        require_possible([attempt(4, 9.0), attempt(7, 5.0)], ["slow", "quick"], deadline=5.0)
        require_possible([attempt(4, 9.0)], ["slow"], deadline=0.0)


class TestEmulation:
    def test_availability_is_a_function_of_time_and_seed(self) -> None:
        """Half of 2,000 devices, 1,000, are there; the standard deviation is 22. Other devices in
        another slot."""
        half = profile(availability=Availability(probability=0.5, slot_seconds=10.0))
        first = Emulation(fleet((half, 2000)), num_devices=2000, seed=1)
        second = Emulation(fleet((half, 2000)), num_devices=2000, seed=1)
        there = first.available(3.0)
        assert abs(int(there.sum()) - 1000) < 110
        second.available(55.0)
        assert (there == second.available(9.0)).all()
        assert (there != second.available(10.0)).any()

    def test_failures_follow_the_rate(self) -> None:
        """A quarter of 2,000 is 500, standard deviation 19; the others have the rate 0."""
        made = fleet((profile(failure_rate=0.25), 2000), (profile("sound"), 100))
        emulation = Emulation(made, num_devices=2100, seed=0)
        failures = emulation.failures("quantized", 3)
        assert abs(int(np.isfinite(failures).sum()) - 500) < 95
        assert np.isinf(failures[emulation.class_of == 1]).all()
        assert (failures[np.isfinite(failures)] < 1).all()

    def test_classes_that_delay_or_leave_are_told_from_those_before_them(self) -> None:
        away = Availability(probability=0.0, slot_seconds=10.0)
        slow = profile("slow", mean_delay_seconds=9.0, availability=away)
        emulation = Emulation(fleet((profile("sound"), 5), (slow, 5)), num_devices=10, seed=0)
        is_slow = emulation.class_of == 1
        assert ((emulation.delays("quantized", 0) > 0) == is_slow).all()
        assert (emulation.available(3.0) == ~is_slow).all()

    def test_energy_by_hand(self) -> None:
        """Trained: 4 s of 5 W and 6 s of waiting for the round's end at 1 W: 26 J. Late: 10 s of
        5 W. Failed after 2 s: 10 J, no waiting."""
        emulation = Emulation(fleet((profile(), 3)), num_devices=3, seed=0)
        late = attempt(1, 20.0)
        failed = Attempt(partition_id=2, cost=late.cost, fails_after=2.0, fate=Fate.FAILED)
        assert emulation.spend(attempt(0, 4.0), 10.0) == pytest.approx(26.0, abs=1e-9)
        assert emulation.spend(late, 10.0) == pytest.approx(50.0, abs=1e-9)
        assert emulation.spend(failed, 10.0) == pytest.approx(10.0, abs=1e-9)
        assert emulation.spent_joules.tolist() == pytest.approx([26.0, 50.0, 10.0], abs=1e-9)

    def test_an_empty_battery_keeps_a_device_away(self) -> None:
        """0.01 Wh are 36 J: 7 s of 5 W leave some, 8 s do not."""
        emulation = Emulation(fleet((profile(battery_wh=0.01), 2)), num_devices=2, seed=0)
        emulation.spend(attempt(0, 7.0), 7.0)
        emulation.spend(attempt(1, 8.0), 8.0)
        assert emulation.available(0.0).tolist() == [True, False]


def test_the_clock_passes_only_when_told() -> None:
    clock = VirtualClock()
    clock.sleep(2.5)
    clock.sleep(0.0)
    assert clock.now() == 2.5
    with pytest.raises(ValueError, match="seconds = -1"):
        clock.sleep(-1)
