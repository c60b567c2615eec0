"""A fleet: which devices there are, one profile per class and a class per device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.bit_widths import choose_bits
from common.config import Config
from common.devices import DeviceProfile
from common.errors import UserError
from common.seeding import numpy_generator

NUM_DEVICES = "data.num-devices"


@dataclass(frozen=True, kw_only=True)
class FleetClass:
    """One class of devices and how many there are."""

    profile: DeviceProfile
    count: int = 0
    """Devices; 0 where a share is given."""
    share: float = 0.0
    """Part of all devices; 0 where a count is given."""


@dataclass(frozen=True, kw_only=True)
class DeviceFleet:
    """The devices of an emulation."""

    name: str
    classes: tuple[FleetClass, ...]

    @property
    def profiles(self) -> tuple[DeviceProfile, ...]:
        """The classes' profiles, in the file's order."""
        return tuple(member.profile for member in self.classes)

    @property
    def num_devices(self) -> int:
        """Devices that the fleet itself fixes; 0: as many as the run has."""
        return sum(member.count for member in self.classes)

    @property
    def fingerprint(self) -> str:
        """A digest of every figure of every class."""
        return hashlib.blake2b(repr(self.classes).encode(), digest_size=16).hexdigest()

    def class_counts(self, num_devices: int) -> list[int]:
        """Devices of every class; shares are rounded by largest remainder.

        Raises:
            UserError: if the fleet fixes another number of devices.
        """
        if self.num_devices:
            if num_devices != self.num_devices:
                raise UserError(
                    f"fleet {self.name} has {self.num_devices} devices: data.num-devices = "
                    f"{num_devices} is not that number"
                )
            return [member.count for member in self.classes]
        exact = np.array([member.share for member in self.classes]) * num_devices
        counts = np.floor(exact + 1e-9).astype(np.int64)
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: num_devices - int(counts.sum())]] += 1
        return [int(count) for count in counts]

    def assign(self, num_devices: int, seed: int) -> NDArray[np.int64]:
        """Index of the class of every device, [devices], by partition id.

        Shuffled: which images a device holds has nothing to do with its class.

        Raises:
            UserError: if the fleet fixes another number of devices.
        """
        counts = self.class_counts(num_devices)
        classes = np.repeat(np.arange(len(counts)), counts)
        numpy_generator(seed, "device-classes").shuffle(classes)
        return classes


def check_fleet(fleet: DeviceFleet, config: Config) -> None:
    """Refuse a fleet that can't do what a run asks for.

    Raises:
        UserError: naming the class or the setting.
    """
    chosen = {choose_bits(config.device_bits, p.weight_bits, 0) for p in fleet.profiles}
    for bits in config.device_bits:
        if bits not in chosen:
            mixed = config.federation.mixed_bits
            setting = f"{bits} of federation.mixed-bits" if mixed else "quantization.weight-bits"
            raise UserError(
                f"fleet {fleet.name}: no class trains at {setting} = {mixed or bits}"
                + (" (each takes the largest of its weight-bits that is allowed)" if mixed else "")
            )
