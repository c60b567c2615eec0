"""One device's task on its own, in virtual time: when it is over, as far as that is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flwr.app import Message

from common.devices import TaskCost
from common.messages import Stage
from simulations.emulation.hardware import Attempt, doomed, settle_attempts


@dataclass(kw_only=True)
class FleetTask:
    """A device's part, from the server's message to what the server gets for it.

    The device is trained for real while the virtual clock stands still. What it took is known once
    its real reply is there, or at once where it will be dropped whatever it does; until then
    ``ends`` is the earliest moment at which it can be over. The task that ends first of all is thus
    found by waiting for the real reply of one that has no later end than the others, as long as
    that one's own is not known: the answer does not depend on which real reply was there first.
    """

    message: Message
    stage: Stage
    download_bytes: int
    starts: float
    """Virtual seconds since the beginning of the run."""
    limit: float
    """Virtual seconds after which the server gives the device up."""
    attempt: Attempt
    """With the least that the task can cost, or, once it is known, with what it cost."""
    reply: Message | None = None
    """The device's own."""

    def __post_init__(self) -> None:
        self.is_known = doomed(self.attempt, self.limit) is not None
        self._settle()

    @property
    def order(self) -> tuple[float, int]:
        """Tasks that end at the same moment do so by partition id."""
        return self.ends, self.attempt.partition_id

    def learn(self, reply: Message, cost: TaskCost) -> None:
        """The device has answered, for real: this is what the task cost."""
        self.reply, self.is_known = reply, True
        self.attempt = replace(self.attempt, cost=cost)
        self._settle()

    def _settle(self) -> None:
        (self.attempt,), self.virtual_seconds = settle_attempts(
            [self.attempt], num_wanted=1, deadline=self.limit
        )
        self.ends = self.starts + self.virtual_seconds
