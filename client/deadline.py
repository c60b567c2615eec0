"""Deadline-aware coresets: as many images as a device can train on and still answer in time.

A device knows its own speed, from its operator or from its last round, and the deadline from the
run config. Instead of being dropped, a slow device trains on a smaller coreset; a quick one takes
more images than the common share. The other answer to slow devices, FedProx's partial work
(Li et al., MLSys 2020), keeps the images and does fewer epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from client.coreset import STUDENT_FREE
from client.selection import needs_teacher_outputs
from common.config import FLOAT_BITS, Config, CoresetConfig, pool_factor, selection_interval
from common.devices import BITS_PER_BYTE, BITS_PER_MBIT
from common.errors import UserError
from common.settings import kebab

MARGIN = 0.05
"""Part of the deadline that is left unused: transfers and speeds are estimates."""

UPDATE_OVERHEAD = 1.25
"""An update's bytes over those of its packed values alone: steps, statistics, names."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a device is, in the seconds that its deadline is in."""

    seconds_per_sample: float
    """Of training on one image once, the teacher's pass included."""
    seconds_per_scored_sample: float = 0.0
    """Of running one model on one image for a selection."""
    downlink_mbits: float = 0.0
    """0: transfers are not counted."""
    uplink_mbits: float = 0.0
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            UserError: naming the key of the node config, the value and what is allowed.
        """
        for name, value in vars(self).items():
            at_least = "> 0" if name == "seconds_per_sample" else ">= 0"
            if not (value > 0 if name == "seconds_per_sample" else value >= 0):
                key = kebab(name)
                raise UserError(f"node config {key} = {value}: expected a number, {at_least}")

    @classmethod
    def from_figures(cls, figures: Mapping[str, object]) -> Pace | None:
        """The pace under its names as keys (``seconds-per-sample``); None where it is not there."""
        values = {name: figures.get(kebab(name)) for name in cls.__dataclass_fields__}
        numbers = {
            name: float(value) for name, value in values.items() if isinstance(value, int | float)
        }
        return cls(**numbers) if "seconds_per_sample" in numbers else None

    def transfer_seconds(self, download_bytes: float, upload_bytes: float) -> float:
        """Of the request and the reply."""
        if not self.downlink_mbits or not self.uplink_mbits:
            return 0.0
        seconds_per_byte_down = BITS_PER_BYTE / (self.downlink_mbits * BITS_PER_MBIT)
        seconds_per_byte_up = BITS_PER_BYTE / (self.uplink_mbits * BITS_PER_MBIT)
        return (
            2 * self.latency_seconds
            + download_bytes * seconds_per_byte_down
            + upload_bytes * seconds_per_byte_up
        )


def round_deadline(config: Config) -> float:
    """Seconds that a device has: the fleet's deadline, else the time that the server waits."""
    return config.fleet.deadline or config.federation.round_timeout


def update_bytes(config: Config, model_bytes: int, num_changes: int = 0) -> float:
    """About how large an update will be, from the size of the model, or its changes, that came."""
    federation = config.federation
    whole_bits = {"float32": FLOAT_BITS, "float16": 16, "int8": 8}[config.whole_format]
    down_bits = num_changes * federation.downlink_bits or whole_bits
    up_bits = {
        "codes": config.quantization.weight_bits,
        "delta": federation.delta_bits,
        "float32": FLOAT_BITS,
    }[federation.update_format]
    return UPDATE_OVERHEAD * model_bytes * up_bits / down_bits


def seconds_to_compute(
    config: Config, pace: Pace, *, model_bytes: int, teacher_bytes: int, num_changes: int = 0
) -> float:
    """What the deadline leaves for selecting and training: less transfers and a margin.

    Args:
        config: of the run.
        pace: the device's.
        model_bytes: of the model that came, or of its changes.
        teacher_bytes: of the teacher that came with it.
        num_changes: that came in the model's place.
    """
    transfers = pace.transfer_seconds(
        model_bytes + teacher_bytes, update_bytes(config, model_bytes, num_changes)
    )
    return round_deadline(config) * (1 - MARGIN) - transfers


def selection_seconds(
    coreset: CoresetConfig,
    pace: Pace,
    *,
    coreset_size: float,
    num_samples: int,
    num_epochs: int,
    is_first: bool,
) -> float:
    """What selections take; a selection that needs no outputs of a model does not run it.

    All images are scored by the student, and once by the teacher, or, with a pool of p coresets
    that is not all of them, p times the coreset by both.

    Args:
        coreset: its settings.
        pace: the device's.
        coreset_size: images that are selected.
        num_samples: training images of the device.
        num_epochs: of a round, which has as many selections as can be due in it.
        is_first: whether the teacher's outputs are still to be computed.
    """
    runs_student, runs_teacher = _models_that_score(coreset)
    num_selections = _num_selections(coreset, num_epochs)
    pool = pool_factor(coreset) * coreset_size
    if 0 < pool < num_samples:
        num_passes = num_selections * pool * (runs_student + runs_teacher)
    else:
        num_passes = num_samples * (num_selections * runs_student + (runs_teacher and is_first))
    return num_passes * pace.seconds_per_scored_sample


def _num_selections(coreset: CoresetConfig, num_epochs: int) -> int:
    return math.ceil(num_epochs / selection_interval(coreset))


def _models_that_score(coreset: CoresetConfig) -> tuple[bool, bool]:
    """Whether a selection runs the student, and whether the teacher."""
    return coreset.selection not in STUDENT_FREE, needs_teacher_outputs(coreset.selection)


def fitting_fraction(
    config: Config,
    pace: Pace,
    *,
    seconds: float,
    num_samples: int,
    num_classes: int,
    is_first: bool,
) -> float:
    """The share of its images that a device can select and train on in ``seconds``.

    A round with as many selections as can be due in it is what must fit.

    Args:
        config: of the run: floor and cap, epochs, pool.
        pace: the device's.
        seconds: of :func:`seconds_to_compute`.
        num_samples: training images of the device.
        num_classes: of the data set.
        is_first: whether the teacher's outputs are still to be computed.

    Returns:
        At least coreset.adaptive-floor, at most coreset.adaptive-cap.
    """
    coreset, factor = config.coreset, pool_factor(config.coreset)
    num_epochs = config.training.local_epochs
    per_image = num_epochs * pace.seconds_per_sample
    # A balanced coreset rounds every class, to at least one image: up by less than one.
    rounding = num_classes if coreset.balanced else 0.5
    scoring_all = selection_seconds(
        coreset,
        pace,
        coreset_size=num_samples,
        num_samples=num_samples,
        num_epochs=num_epochs,
        is_first=is_first,
    )
    size = (seconds - scoring_all) / per_image - rounding
    surely = min(coreset.adaptive_cap * num_samples, size) - rounding
    # Of a coreset that may be too small for it to hold all images, the pool grows with it.
    if factor and factor * surely < num_samples:
        num_passes = _num_selections(coreset, num_epochs) * sum(_models_that_score(coreset))
        scoring = factor * num_passes * pace.seconds_per_scored_sample
        size = seconds / (per_image + scoring) - rounding
    return min(coreset.adaptive_cap, max(coreset.adaptive_floor, size / num_samples))


def fitting_epochs(
    config: Config,
    pace: Pace,
    *,
    seconds: float,
    coreset_size: float,
    num_samples: int,
    is_first: bool,
) -> int:
    """FedProx's partial work: as many of the epochs of a round as fit, at least one.

    Args:
        config: of the run: epochs, selections.
        pace: the device's.
        seconds: of :func:`seconds_to_compute`.
        coreset_size: images that are trained on.
        num_samples: training images of the device.
        is_first: whether the teacher's outputs are still to be computed.
    """

    def fits(num_epochs: int) -> bool:
        selecting = selection_seconds(
            config.coreset,
            pace,
            coreset_size=coreset_size,
            num_samples=num_samples,
            num_epochs=num_epochs,
            is_first=is_first,
        )
        training = num_epochs * max(1.0, coreset_size) * pace.seconds_per_sample
        return selecting + training <= seconds

    return next((n for n in range(config.training.local_epochs, 1, -1) if fits(n)), 1)
