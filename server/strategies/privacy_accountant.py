"""How much privacy a run has spent: epsilon over its rounds, by Renyi differential privacy.

Neighbours are two federations of the same devices in which all images of one device are exchanged
for any others. Its clipped change then moves the sum by up to 2 C: a noise multiplier of z counts
as z / 2. Rounds compose in Renyi divergence (Mironov, CSF 2017), with Google's dp-accounting.

Rounds that ask a share of the devices gain from sampling without replacement (Wang, Balle and
Kasiviswanathan, AISTATS 2019) only where a device answers from its images and the global model
alone. What it keeps between rounds (a coreset, error feedback, its pace) depends on the rounds
that it was in, which the theorem does not cover: each round then counts in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from common.config import Config
from common.extras import import_extra

EPSILON = "epsilon"
NUM_DEVICES = "privacy_num_devices"
"""Of a round's line: devices that the sample was drawn from."""


class PrivacyAccountant:
    """The account of one run.

    Args:
        config: of the run, with a privacy mechanism.

    Raises:
        UserError: if dp-accounting is missing.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.num_releases = 0
        self.is_amplified = config.federation.fraction < 1.0 and keeps_no_state(config)
        if not config.privacy.noise_multiplier:
            return
        self._library = import_extra("dp_accounting", needed_for="an epsilon", extra="privacy")
        rdp = import_extra("dp_accounting.rdp", needed_for="an epsilon", extra="privacy")
        self._account = rdp.RdpAccountant(
            neighboring_relation=self._library.NeighboringRelation.REPLACE_ONE
        )

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Count the rounds that an earlier part of this run recorded."""
        for line in lines:
            self.record(line, num_devices=line[NUM_DEVICES])

    def record(self, line: Mapping[str, Any], *, num_devices: int) -> dict[str, Any]:
        """Count a round, unless it released nothing.

        Args:
            line: the round's.
            num_devices: that its sample was drawn from.

        Returns:
            What belongs into the line as well.
        """
        if not line["skipped"]:
            self.spend(num_asked=line["num_asked"], num_devices=num_devices)
        return {EPSILON: self.epsilon, NUM_DEVICES: num_devices}

    def spend(self, *, num_asked: int, num_devices: int) -> None:
        """Count a release over ``num_asked`` devices, drawn from ``num_devices``."""
        self.num_releases += 1
        if not self.config.privacy.noise_multiplier:
            return
        event = self._library.GaussianDpEvent(self.config.privacy.noise_multiplier / 2)
        if self.is_amplified and num_asked < num_devices:
            event = self._library.SampledWithoutReplacementDpEvent(num_devices, num_asked, event)
        self._account.compose(event)

    @property
    def epsilon(self) -> float:
        """At the configured delta, over all releases so far; infinite without noise."""
        if not self.num_releases:
            return 0.0
        if not self.config.privacy.noise_multiplier:
            return math.inf
        return float(self._account.get_epsilon(self.config.privacy.delta))

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the run's privacy."""
        privacy = self.config.privacy
        return {
            "mechanism": privacy.mechanism,
            "protects": "all images of one device, exchanged for any others",
            "clipping_norm": privacy.clipping_norm,
            "noise_multiplier": privacy.noise_multiplier,
            "delta": privacy.delta,
            EPSILON: self.epsilon,
            "num_releases": self.num_releases,
            "amplified_by_sampling": self.is_amplified,
        }


def keeps_no_state(config: Config) -> bool:
    """Whether devices answer from their images and the global model alone."""
    federation = config.federation
    feeds_error = federation.update_format == "delta" and federation.error_feedback
    # Views of the images are drawn for the epoch in which a device was first asked.
    keeps_views = config.training.teacher_views > 0
    return config.coreset.selection == "full" and not (
        feeds_error or config.is_paced or keeps_views
    )
