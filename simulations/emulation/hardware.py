"""Emulated hardware: who is there, who fails, how long a task takes, when a round is over.

Knows nothing of Flower: `simulations.emulation.grid` puts it between server and devices. Everything
that is random is drawn from (seed, purpose, slot or round), so that it does not depend on what was
asked before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from common.devices import JOULES_PER_WH, DeviceProfile, TaskCost, task_joules
from common.errors import UserError
from common.seeding import numpy_generator
from common.units import format_number
from simulations.emulation.fleet import DeviceFleet
from simulations.emulation.settling import settle


class Fate(StrEnum):
    """What became of a device that was asked to train."""

    TRAINED = "trained"
    """Its reply came in time and was used."""
    LATE = "late"
    """Its reply would have come after the deadline."""
    SURPLUS = "surplus"
    """Enough others were faster (over-selection)."""
    FAILED = "failed"
    """It broke off."""


FATES = tuple(Fate)
"""In the order of `simulations.emulation.settling`."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One device's part in one round."""

    partition_id: int
    cost: TaskCost
    """Of the whole task; of a device that is not trained, the least that it could be."""
    fails_after: float = math.inf
    """Virtual seconds after which it breaks off."""
    fate: Fate = Fate.TRAINED

    @property
    def virtual_seconds(self) -> float:
        """When the server hears of it: of the reply, or that the device is gone."""
        return min(self.cost.virtual_seconds, self.fails_after)


class Emulation:
    """The devices of a fleet in a run.

    Args:
        fleet: which devices there are.
        num_devices: of the run.
        seed: of the run.

    Raises:
        UserError: if the fleet fixes another number of devices.
    """

    def __init__(self, fleet: DeviceFleet, *, num_devices: int, seed: int) -> None:
        self.fleet = fleet
        self.seed = seed
        self.num_devices = num_devices
        self.class_of: NDArray[np.int64] = fleet.assign(num_devices, seed)
        self._phase = numpy_generator(seed, "availability-phase").random(num_devices)
        self.spent_joules = np.zeros(num_devices)
        """Energy of every device so far."""

    def profile(self, partition_id: int) -> DeviceProfile:
        """What a device is able to do."""
        return self.fleet.classes[self.class_of[partition_id]].profile

    def available(self, virtual_seconds: float) -> NDArray[np.bool_]:
        """Which devices are there, [devices]: by availability and battery."""
        there = np.ones(self.num_devices, dtype=np.bool_)
        for index, profile in enumerate(self.fleet.profiles):
            availability = profile.availability
            # A planned fleet has a million devices: nothing is drawn for those that always are.
            if availability.is_constant and not profile.battery_wh:
                continue
            members = self.class_of == index
            slot = availability.slot(virtual_seconds)
            draw = numpy_generator(self.seed, "availability", index, slot).random(self.num_devices)
            there[members] = availability.is_available(
                virtual_seconds, self._phase[members], draw[members]
            )
            if profile.battery_wh:
                capacity = profile.battery_wh * JOULES_PER_WH
                there[members] &= self.spent_joules[members] < capacity
        return there

    def failures(self, purpose: str, round_index: int) -> NDArray[np.float64]:
        """Part of its task after which each device breaks off, [devices]; infinite: it does not."""
        generator = numpy_generator(self.seed, f"failures-{purpose}", round_index)
        chance, part = generator.random((2, self.num_devices))
        rates = np.array([profile.failure_rate for profile in self.fleet.profiles])
        return np.where(chance < rates[self.class_of], part, math.inf)

    def delays(self, purpose: str, round_index: int) -> NDArray[np.float64]:
        """Virtual seconds that each device waits before it starts, [devices]."""
        means = np.array([profile.mean_delay_seconds for profile in self.fleet.profiles])
        if not means.any():
            return np.zeros(self.num_devices)
        generator = numpy_generator(self.seed, f"delays-{purpose}", round_index)
        return generator.standard_exponential(self.num_devices) * means[self.class_of]

    def spend(self, attempt: Attempt, round_seconds: float) -> float:
        """Charge a device for its part in a round of ``round_seconds``; returns the joules.

        A device stops when it fails, when the round is over or when its reply is sent, and waits
        for the end of the round from then on, unless it failed.
        """
        stopped = min(attempt.virtual_seconds, round_seconds)
        idle = 0.0 if attempt.fate is Fate.FAILED else round_seconds - stopped
        profile = self.profile(attempt.partition_id)
        energy = task_joules(profile, attempt.cost.until(stopped), idle_seconds=idle)
        self.spent_joules[attempt.partition_id] += energy
        return energy


def doomed(attempt: Attempt, deadline: float) -> Fate | None:
    """Why a device will be dropped whatever it does, if so: it need not be trained for real.

    Args:
        attempt: with the least that the task can cost.
        deadline: virtual seconds; 0: there is none.
    """
    if deadline and attempt.virtual_seconds > deadline:
        return Fate.LATE
    return Fate.FAILED if math.isfinite(attempt.fails_after) else None


def settle_attempts(
    attempts: Sequence[Attempt], *, num_wanted: int, deadline: float
) -> tuple[list[Attempt], float]:
    """Who made it (see `settle`), and the virtual seconds that the round took.

    Of devices with the same time the one with the smaller partition id comes first.
    """
    in_order = sorted(range(len(attempts)), key=lambda index: attempts[index].partition_id)
    fates, round_seconds = settle(
        np.array([attempts[index].virtual_seconds for index in in_order], dtype=np.float64),
        np.array(
            [math.isfinite(attempts[index].fails_after) for index in in_order], dtype=np.bool_
        ),
        num_wanted=num_wanted,
        deadline=deadline,
    )
    settled = list(attempts)
    for index, fate in zip(in_order, fates.tolist(), strict=True):
        settled[index] = replace(attempts[index], fate=FATES[fate])
    return settled, round_seconds


def require_possible(
    attempts: Sequence[Attempt], class_names: Sequence[str], deadline: float
) -> None:
    """Refuse a deadline that none of these devices can meet.

    Args:
        attempts: with the least that each task can cost.
        class_names: of the same devices.
        deadline: virtual seconds; 0: there is none.

    Raises:
        UserError: naming the fastest device's time.
    """
    if not deadline or not attempts:
        return
    fastest = min(range(len(attempts)), key=lambda index: attempts[index].cost.virtual_seconds)
    least = attempts[fastest].cost.virtual_seconds
    if least > deadline:
        raise UserError(
            f"fleet.deadline = {deadline:g}: no device can meet it; the fastest, device "
            f"{attempts[fastest].partition_id} ({class_names[fastest]}), needs at least "
            f"{format_number(least, 4)} virtual seconds"
        )
