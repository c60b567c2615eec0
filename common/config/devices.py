"""What devices are like: emulated hardware, hostile ones, and their privacy."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.settings import setting

ATTACKS = ("none", "sign-flip", "scale")

PRIVACY_MECHANISMS = ("none", "central")


@dataclass(frozen=True, kw_only=True)
class FleetConfig(Section, name="fleet"):
    """Emulated hardware, and what a round does about devices that are slow or fail."""

    name: str = setting("")
    """The hardware: a shipped fleet or a YAML file; empty: none is emulated."""
    deadline: float = setting(0.0, minimum=0.0)
    """Virtual seconds after which a round goes on without those that are late; 0: it waits."""
    over_selection: float = setting(1.0, minimum=1.0, maximum=10.0)
    """Devices asked for every reply that is used; the first are, so that a round can spare some."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Section, name="attack"):
    """Hostile devices, in simulations on the local engine only."""

    name: str = setting("none", choices=ATTACKS)
    """What they send in place of their change: minus or plus several times that change."""
    fraction: float = setting(0.2, minimum=0.0, maximum=1.0)
    """Share of the devices that are hostile."""
    scale: float = setting(4.0, above=0.0)
    """How many times the change."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig(Section, name="privacy"):
    """Differential privacy of devices towards all who see the models; the server is trusted."""

    mechanism: str = setting("none", choices=PRIVACY_MECHANISMS)
    """central: the server clips every device's change and adds Gaussian noise to their mean."""
    clipping_norm: float = setting(1.0, above=0.0)
    """Largest L2 norm that a device's change keeps, over all entries of the update."""
    noise_multiplier: float = setting(1.0, minimum=0.0)
    """Standard deviation of the noise on the sum of changes, in clipping norms; 0: clipped only."""
    delta: float = setting(1e-5, above=0.0, maximum=0.5)
    """Chance at which epsilon need not hold; usually less than one over the devices."""
