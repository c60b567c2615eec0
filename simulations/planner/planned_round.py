"""What a plan says of one round."""

from __future__ import annotations

from dataclasses import dataclass

from common.devices import BITS_PER_BYTE
from simulations.planner.traffic import BITS_PER_GBIT


@dataclass(frozen=True, kw_only=True)
class PlannedRound:
    """The figures of one round."""

    round: int
    """From 1."""
    virtual_start_seconds: float
    """When the server began to look for devices."""
    virtual_waited_seconds: float
    """Until enough of them were there."""
    virtual_seconds: float
    """Of the round itself."""
    num_available: int
    num_asked: int
    num_trained: int
    num_late: int
    num_surplus: int
    num_failed: int
    is_skipped: bool
    """Whether too few replies came for a new model."""
    download_bytes: float
    """That left the server, those to devices that broke off or were too slow included."""
    upload_bytes: float
    """That reached the server."""
    egress_peak_gbits: float
    """Gbit/s."""
    ingress_peak_gbits: float
    """Gbit/s."""
    joules: float
    """Of all devices that were asked."""

    @property
    def egress_gbits(self) -> float:
        """Mean over the round, Gbit/s."""
        return _gbits(self.download_bytes, self.virtual_seconds)

    @property
    def ingress_gbits(self) -> float:
        """Mean over the round, Gbit/s."""
        return _gbits(self.upload_bytes, self.virtual_seconds)


def _gbits(num_bytes: float, seconds: float) -> float:
    return num_bytes * BITS_PER_BYTE / seconds / BITS_PER_GBIT if seconds else 0.0
