"""Pure functions that turn many devices' figures and states into one.

A mean is kept as numerator and denominator until the end of a round and divided once, there:
averages of averages would weigh devices wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.messages import NUM_EXAMPLES, Reply
from common.models import RUNNING_VARIANCE, is_statistic
from common.payloads.wire import Codes
from common.qat import STEP_SUFFIX
from common.quantization import SMALLEST_STEP

State = dict[str, NDArray[np.float32]]

QUANTIZER = "quantizer."
"""Entries of a prepared model with this in their name are quantizer steps and offsets."""


@dataclass(frozen=True)
class Ratio:
    """A mean that is still to be taken."""

    numerator: float = 0.0
    denominator: float = 0.0

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.numerator + other.numerator, self.denominator + other.denominator)

    @property
    def value(self) -> float | None:
        """numerator / denominator; None without a denominator or where it is not finite."""
        if self.denominator <= 0 or not math.isfinite(self.numerator):
            return None
        return self.numerator / self.denominator


def is_learned(name: str) -> bool:
    """Whether a state entry is learned by gradient and on the weights' scale.

    Batch normalisation's statistics are measured, not learned, and quantizer steps must keep
    their sign and magnitude: a server optimizer's step (momentum, Adam) suits neither.
    """
    return QUANTIZER not in name and not is_statistic(name)


def average_states(
    states: Sequence[Mapping[str, NDArray[np.float32]]], weights: Sequence[float]
) -> State:
    """The weighted mean of states with the same entries, summed in the order given.

    Args:
        states: one or more, name -> float32 array of the same shape in all of them.
        weights: one per state, with a positive sum.

    Raises:
        ValueError: without states, with a different number of weights or without a positive sum.
    """
    total = math.fsum(weights)
    if not states or len(states) != len(weights) or total <= 0:
        raise ValueError(
            f"expected one weight per state with a positive sum, got {len(states)} states and "
            f"weights {list(weights)}"
        )
    mean: State = {name: np.zeros_like(array) for name, array in states[0].items()}
    for state, weight in zip(states, weights, strict=True):
        for name, accumulated in mean.items():
            accumulated += state[name] * np.float32(weight / total)
    return mean


def deployed_weights(quantized: Mapping[str, Codes]) -> State:
    """Quantized weights as a deployed model uses them: step * code."""
    return {name: codes.dequantize() for name, codes in quantized.items()}


def lift_codes(
    state: Mapping[str, NDArray[np.float32]],
    base: Mapping[str, NDArray[np.float32]],
    base_deployed: Mapping[str, NDArray[np.float32]],
) -> State:
    """Latent weights of a device that answered with codes: base + (its deployed - base deployed).

    Codes say where a weight ended on the coarse grid, not how far it moved. Taken as latent
    weights themselves they would throw away, in every round, all that the federation has gained
    within a quantization step. What they do say is which codes changed: that change, in steps, is
    added to the latent weights that the device was sent.

    Args:
        state: a decoded update; its quantized weights are step * code.
        base: what the device was sent.
        base_deployed: quantized weights of ``base`` as deployed, step * code.

    Returns:
        The entries of ``base_deployed``, float32.
    """
    return {name: base[name] + (state[name] - deployed) for name, deployed in base_deployed.items()}


def keep_valid(state: Mapping[str, NDArray[np.float32]]) -> State:
    """The state as float32 with steps > 0 and running variances >= 0.

    Rounded changes and robust means can leave the range by a little; a step of zero would divide
    by zero and a negative variance has no root. Entries within the range are returned as they are.
    """
    valid: State = {}
    for name, values in state.items():
        array = np.asarray(values, dtype=np.float32)
        if name.endswith(STEP_SUFFIX):
            array = array.clip(np.float32(SMALLEST_STEP))
        elif name.endswith(RUNNING_VARIANCE):
            array = array.clip(np.float32(0.0))
        # numpy turns what it computes from an array of shape () into a scalar.
        valid[name] = np.asarray(array)
    return valid


def is_finite(state: Mapping[str, NDArray[np.float32]]) -> bool:
    """Whether no entry holds a NaN or an infinity."""
    return all(bool(np.isfinite(values).all()) for values in state.values())


def training_metrics(replies: Iterable[Reply]) -> dict[str, float | int | None]:
    """One round's figures over its good replies: the mean loss by samples, sums of the rest."""
    replies = list(replies)
    loss = sum((_weighted(reply, "train-loss") for reply in replies), Ratio())
    return {
        "train_loss": loss.value,
        "num_examples": int(_total(replies, NUM_EXAMPLES)),
        "coreset_size": int(_total(replies, "coreset-size")),
        "num_steps": int(_total(replies, "num-steps")),
        "select_seconds": _total(replies, "select-seconds"),
        "train_seconds": _total(replies, "train-seconds"),
    }


def evaluation_metrics(replies: Iterable[Reply]) -> dict[str, float | int | None]:
    """Accuracies in percent and the mean loss over all devices' held-out images together."""
    replies = list(replies)
    num_examples = _total(replies, NUM_EXAMPLES)
    return {
        "device_accuracy": Ratio(100.0 * _total(replies, "correct"), num_examples).value,
        "device_top5_accuracy": Ratio(100.0 * _total(replies, "correct-top5"), num_examples).value,
        "device_loss": Ratio(_total(replies, "loss-sum"), num_examples).value,
        "device_num_examples": int(num_examples),
    }


def _weighted(reply: Reply, name: str) -> Ratio:
    if name not in reply.metrics:
        return Ratio()
    weight = float(reply.metrics[NUM_EXAMPLES])
    return Ratio(reply.metrics[name] * weight, weight)


def _total(replies: Iterable[Reply], name: str) -> float:
    return math.fsum(reply.metrics.get(name, 0) for reply in replies)
