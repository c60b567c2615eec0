"""Differential privacy of a device: its change is clipped, the mean of all changes gets noise.

DP-FedAvg with a fixed denominator (McMahan et al., ICLR 2018, arXiv 1710.06963): a round releases

    base + 1/m (sum_k c_k + N(0, (z C)^2 I)),    c_k = d_k min(1, C / |d_k|),

where m devices were asked, d_k is the change of every entry of device k's update, weights, batch
normalisation's statistics and quantizer steps alike (steps relative to their size in the base), C
the clipping norm and z the noise multiplier. Devices count the same, whatever number of images
they say; one without a good reply adds zero. All else that is made of a round's result (server
optimizers, evaluation, compression, the teacher) is post-processing.

Flower's wrappers do the same to float records, but not here: they draw from numpy's global state,
divide zero by zero on an update that did not change, give a round up where one reply is missing,
and account neither for exchanged devices nor for sampled ones.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.messages import Stage
from common.qat import STEP_SUFFIX
from common.quantization import SMALLEST_STEP
from common.seeding import numpy_generator
from server.exchange.registry import RegisteredDevice
from server.model.aggregation import State


@dataclass(frozen=True, kw_only=True)
class GaussianMechanism:
    """What a round's release does to the changes of its devices."""

    clipping_norm: float
    """C, the largest L2 norm that a device's change keeps."""
    noise_multiplier: float
    """z, standard deviation of the noise on the sum over C."""

    @classmethod
    def of(cls, config: Config) -> GaussianMechanism | None:
        """The configured one; None without privacy."""
        if config.privacy.mechanism == "none":
            return None
        return cls(
            clipping_norm=config.privacy.clipping_norm,
            noise_multiplier=config.privacy.noise_multiplier,
        )

    def release(
        self,
        base: Mapping[str, NDArray[np.float32]],
        states: Iterable[Mapping[str, NDArray[np.float32]]],
        *,
        num_asked: int,
        generator: np.random.Generator,
    ) -> State:
        """The base moved by the noisy mean of the clipped changes.

        Args:
            base: what the devices were sent: name -> float32 array, the entries that are released.
            states: what they answered, finite; the same names and shapes.
            num_asked: m, the devices that were asked, however many answered.
            generator: of the noise.

        Returns:
            float32 arrays of the names and shapes of ``base``.
        """
        scale = np.concatenate([_scale(name, values).ravel() for name, values in base.items()])
        total = np.zeros(scale.size)
        for state in states:
            change = np.concatenate(
                [np.subtract(state[name], base[name], dtype=np.float64).ravel() for name in base]
            )
            change /= scale
            norm = math.sqrt(change @ change)
            if norm > self.clipping_norm:
                change *= self.clipping_norm / norm
            total += change
        total += generator.normal(0.0, self.noise_multiplier * self.clipping_norm, total.size)
        total *= scale / num_asked
        ends = np.cumsum([values.size for values in base.values()])
        changes = np.split(total, ends[:-1])
        return {
            name: (values + change.reshape(values.shape)).astype(np.float32)
            for (name, values), change in zip(base.items(), changes, strict=True)
        }


def _scale(name: str, base: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a change of these entries is measured in: a quantizer step's own size, else 1.

    Steps are a hundred times smaller than weights: noise that these bear would wipe them out. The
    scale is a function of the base, which is public, and so costs no privacy.
    """
    if name.endswith(STEP_SUFFIX):
        return np.maximum(np.abs(base), np.float32(SMALLEST_STEP))
    return np.ones_like(base)


def noise_generator(
    seed: int, stage: Stage, round_index: int, devices: Sequence[RegisteredDevice]
) -> np.random.Generator:
    """The source of a round's noise.

    Devices know the run's seed and could take noise that is drawn from it away again. Only where
    all devices are emulated, so that there is nothing to protect, can a run be repeated.
    """
    if all(device.emulated for device in devices):
        return numpy_generator(seed, f"privacy-noise-{stage.value}", round_index)
    return np.random.default_rng(secrets.randbits(128))


def sampling_seed(config: Config, devices: Sequence[RegisteredDevice]) -> int:
    """The seed that a round's devices are drawn by; secret where the draw is to protect them."""
    is_public = config.privacy.mechanism == "none" or all(device.emulated for device in devices)
    return config.run.seed if is_public else secrets.randbits(63)
