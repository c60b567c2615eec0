"""What a device is able to do, and what a task costs it: seconds and joules, as pure functions.

Time that these functions predict is called virtual: in an emulation it is the only time there is,
on a device it is an estimate. It never shares a name with seconds that a clock measured. All
functions take numbers or NumPy arrays (one entry per device of the profile's class) alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common.config import BIT_CHOICES

Number = TypeVar("Number", float, NDArray[np.float64])

BITS_PER_BYTE = 8
FLOPS_PER_GFLOP = 1e9
BITS_PER_MBIT = 1e6
JOULES_PER_WH = 3600.0


@dataclass(frozen=True, kw_only=True)
class Availability:
    """When devices of a class can be asked to take part.

    A device is there when its schedule says so and, drawn anew in every slot, with
    ``probability``. The default is a device that always is.
    """

    probability: float = 1.0
    """Chance of being there in a slot, [0, 1]."""
    slot_seconds: float = 3600.0
    """Virtual time between two draws."""
    schedule: tuple[tuple[float, bool], ...] = ()
    """(Virtual seconds, there or not), one after the other, repeated for ever; empty: always
    there. On/off periods have two entries, a trace has many."""
    same_phase: bool = False
    """Whether all devices follow the schedule from its beginning at virtual time 0 (a trace of
    the time of day), or each from a random point of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability = {self.probability}: expected 0 to 1")
        _require_positive("slot_seconds", self.slot_seconds)
        for seconds, _ in self.schedule:
            _require_positive("schedule seconds", seconds)

    @property
    def cycle_seconds(self) -> float:
        """Virtual time after which the schedule begins anew; 0: there is no schedule."""
        return math.fsum(seconds for seconds, _ in self.schedule)

    @property
    def is_constant(self) -> bool:
        """Whether devices always are there."""
        return self.probability == 1.0 and not self.schedule

    def slot(self, virtual_seconds: float) -> int:
        """Which draw holds at this time: devices' chances are drawn once for every slot."""
        return int(virtual_seconds // self.slot_seconds)

    def is_available(
        self, virtual_seconds: float, phase: NDArray[np.float64], draw: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether each device is there, [devices].

        Args:
            virtual_seconds: since the start.
            phase: [devices], in [0, 1): the place in the cycle that a device starts from.
            draw: [devices], in [0, 1): the slot's random number of each device.
        """
        return (draw < self.probability) & self.is_scheduled(virtual_seconds, phase)

    def is_scheduled(self, virtual_seconds: float, phase: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the schedule alone lets each device be there, [devices]."""
        if not self.schedule:
            return np.ones(len(phase), dtype=np.bool_)
        cycle = self.cycle_seconds
        offset = np.zeros_like(phase) if self.same_phase else phase * cycle
        ends = np.cumsum([seconds for seconds, _ in self.schedule])
        position = (virtual_seconds + offset) % cycle
        index = np.minimum(np.searchsorted(ends, position, side="right"), len(ends) - 1)
        return np.array([is_on for _, is_on in self.schedule], dtype=np.bool_)[index]


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A class of devices: what one of them can do."""

    class_name: str
    training_gflops: float
    """Sustained rate of training a small network, GFLOP/s (10^9 a second); not the peak."""
    memory_mb: float
    """Memory that training may use, MB (10^6 bytes)."""
    uplink_mbits: float
    """From the device to the server, Mbit/s (10^6 bits a second)."""
    downlink_mbits: float
    """From the server to the device, Mbit/s."""
    latency_seconds: float
    """Virtual seconds that a message takes beside its bytes, one way."""
    mean_delay_seconds: float = 0.0
    """Mean of what a device waits in a round before it starts, exponentially distributed: it is
    busy with something else."""
    failure_rate: float = 0.0
    """Chance that a device breaks off in the middle of a round, [0, 1]."""
    training_watts: float
    """Power of the whole device while it computes."""
    idle_watts: float
    """Power while it waits."""
    radio_watts: float
    """Power of the whole device while it sends or receives."""
    battery_wh: float = 0.0
    """Energy of a full battery, Wh; 0: on mains."""
    weight_bits: tuple[int, ...] = BIT_CHOICES
    """Weight bit-widths that it can train at."""
    data_share: float = 1.0
    """Part of the images allotted to it that a device has room for, (0, 1]; the others are no
    device's."""
    availability: Availability = field(default_factory=Availability)

    def __post_init__(self) -> None:
        """Check every figure.

        Raises:
            ValueError: naming the figure and what is allowed.
        """
        for name in ("training_gflops", "memory_mb", "uplink_mbits", "downlink_mbits"):
            _require_positive(name, getattr(self, name))
        for name in (
            "latency_seconds",
            "mean_delay_seconds",
            "training_watts",
            "idle_watts",
            "radio_watts",
            "battery_wh",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value}: expected a number, >= 0")
        if not 0 <= self.failure_rate <= 1:
            raise ValueError(f"failure_rate = {self.failure_rate}: expected 0 to 1")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share = {self.data_share}: expected above 0, at most 1")
        unknown = set(self.weight_bits) - set(BIT_CHOICES)
        if unknown or not self.weight_bits:
            raise ValueError(
                f"weight_bits = {self.weight_bits}: expected some of "
                f"{', '.join(map(str, BIT_CHOICES))}"
            )


@dataclass(frozen=True, kw_only=True)
class TaskCost:
    """What one task costs a device: a delay, then download, computing and upload."""

    virtual_delay_seconds: float = 0.0
    virtual_download_seconds: float
    virtual_compute_seconds: float
    virtual_upload_seconds: float

    @property
    def virtual_seconds(self) -> float:
        """From the server's request to its having the reply."""
        return (
            self.virtual_delay_seconds
            + self.virtual_download_seconds
            + self.virtual_compute_seconds
            + self.virtual_upload_seconds
        )

    def until(self, virtual_seconds: float) -> TaskCost:
        """The part of the task that is done when it is broken off after so long."""
        delay = np.minimum(self.virtual_delay_seconds, virtual_seconds)
        left = virtual_seconds - delay
        download = np.minimum(self.virtual_download_seconds, left)
        compute = np.minimum(self.virtual_compute_seconds, left - download)
        upload = np.minimum(self.virtual_upload_seconds, left - download - compute)
        return TaskCost(
            virtual_delay_seconds=delay,
            virtual_download_seconds=download,
            virtual_compute_seconds=compute,
            virtual_upload_seconds=upload,
        )


def task_cost(
    profile: DeviceProfile,
    *,
    flops: float,
    download_bytes: float,
    upload_bytes: float,
    delay_seconds: float = 0.0,
) -> TaskCost:
    """The cost of receiving a request, computing and sending the reply, after a delay."""
    return TaskCost(
        virtual_delay_seconds=delay_seconds,
        virtual_download_seconds=download_seconds(profile, download_bytes),
        virtual_compute_seconds=training_seconds(profile, flops),
        virtual_upload_seconds=upload_seconds(profile, upload_bytes),
    )


def training_seconds(profile: DeviceProfile, flops: Number) -> Number:
    """Virtual seconds of so many floating-point operations at the sustained rate."""
    return flops / (profile.training_gflops * FLOPS_PER_GFLOP)


def download_seconds(profile: DeviceProfile, num_bytes: Number) -> Number:
    """Virtual seconds until a message of the server is on the device: latency and bytes."""
    return profile.latency_seconds + num_bytes * (
        BITS_PER_BYTE / (profile.downlink_mbits * BITS_PER_MBIT)
    )


def upload_seconds(profile: DeviceProfile, num_bytes: Number) -> Number:
    """Virtual seconds until a message of the device is on the server: latency and bytes."""
    return profile.latency_seconds + num_bytes * (
        BITS_PER_BYTE / (profile.uplink_mbits * BITS_PER_MBIT)
    )


def joules(
    profile: DeviceProfile,
    *,
    training_seconds: Number,
    radio_seconds: Number,
    idle_seconds: Number,
) -> Number:
    """Energy of the whole device over virtual seconds of computing, of transfer and of waiting."""
    return (
        profile.training_watts * training_seconds
        + profile.radio_watts * radio_seconds
        + profile.idle_watts * idle_seconds
    )


def task_joules(profile: DeviceProfile, cost: TaskCost, *, idle_seconds: float = 0.0) -> float:
    """Energy of a task, of the delay before it and of the waiting after it."""
    return joules(
        profile,
        training_seconds=cost.virtual_compute_seconds,
        radio_seconds=cost.virtual_download_seconds + cost.virtual_upload_seconds,
        idle_seconds=cost.virtual_delay_seconds + idle_seconds,
    )


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value}: expected a number, > 0")
