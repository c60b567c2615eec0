"""FedBuff: changes from different versions of the global model, gathered into one step.

Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, Algorithm 1:
the server adds up what devices changed, each against the version that it began from, and takes a
step when K changes are in. A change that began s steps ago counts 1 / sqrt(1 + s).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.model.aggregation import State, is_learned, keep_valid

Arrays = Mapping[str, NDArray[np.float32]]


def staleness_weight(staleness: int) -> float:
    """1 / sqrt(1 + s): the paper's weight of a change that began s steps ago."""
    return 1.0 / math.sqrt(1 + staleness)


class UpdateBuffer:
    """Updates on their way into the next step; of their entries only sums are kept.

    Changes are weighted by images as well, as in all averages of this project: with the same
    number everywhere that is the paper's mean over the buffer, and without any staleness FedAvg.

    Batch normalisation's statistics and quantizer steps are measured or must keep their sign: the
    model moves from its own values to the devices' by the same weights, so that they stay between
    the two, where a sum of changes from different versions might leave their range.
    """

    def __init__(self) -> None:
        self.staleness: list[int] = []
        """Of the updates so far."""
        self._sums: State = {}
        self._num_examples = 0.0
        self._weight = 0.0

    def __len__(self) -> int:
        return len(self.staleness)

    def add(self, state: Arrays, base: Arrays, *, num_examples: int, staleness: int) -> None:
        """Take in an update.

        Args:
            state: what a device trained, name -> float32 array.
            base: the version that it began from; more entries do not matter.
            num_examples: images that it trained on, > 0.
            staleness: steps that the server has taken since that version.
        """
        weight = num_examples * staleness_weight(staleness)
        for name, values in state.items():
            part = values - base[name] if is_learned(name) else values
            part = part * np.float32(weight)
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._num_examples += num_examples
        self._weight += weight
        self.staleness.append(staleness)

    def state(self) -> tuple[dict[str, Any], State]:
        """What :meth:`restored` takes: facts as JSON can hold them, and the sums."""
        facts = {
            "staleness": self.staleness,
            "num_examples": self._num_examples,
            "weight": self._weight,
        }
        return facts, self._sums

    @classmethod
    def restored(cls, facts: Mapping[str, Any], sums: State) -> UpdateBuffer:
        """The buffer that :meth:`state` described."""
        buffer = cls()
        buffer.staleness = list(facts["staleness"])
        buffer._num_examples, buffer._weight = facts["num_examples"], facts["weight"]
        buffer._sums = dict(sums)
        return buffer

    def step(self, state: Arrays, learning_rate: float) -> State:
        """The entries of the updates after a step from ``state``.

        With n images, staleness weights s and changes D: w + eta * sum(n s D) / sum(n).

        Args:
            state: the global state now.
            learning_rate: the server's, eta; of learned entries.

        Raises:
            ValueError: if there are no updates.
        """
        if not self.staleness:
            raise ValueError("the buffer is empty")
        kept = np.float32(1 - self._weight / self._num_examples)
        result: State = {}
        for name, total in self._sums.items():
            mean = total / np.float32(self._num_examples)
            if is_learned(name):
                result[name] = state[name] + np.float32(learning_rate) * mean
            else:
                result[name] = kept * state[name] + mean
        return keep_valid(result)
