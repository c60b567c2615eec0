"""Errors in place of replies that the server does not get from an emulated device."""

from __future__ import annotations

import itertools

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client.deadline import round_deadline
from common.config import Config
from common.units import format_number
from simulations.emulation.hardware import Attempt, Fate


class Dropped:
    """Answers to messages whose device was late, not needed or broke off.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._numbers = itertools.count(1)

    def answer(self, message: Message, attempt: Attempt, round_seconds: float) -> Message:
        """The error that says why there is no reply."""
        self.number(message)
        took = f"{format_number(attempt.virtual_seconds, 4)} virtual seconds"
        others = format_number(round_seconds, 4)
        reasons = {
            Fate.LATE: f"late: at least {took}, the deadline is {round_deadline(self.config):g}",
            Fate.SURPLUS: f"surplus: {took}, enough others took {others}",
            Fate.FAILED: f"broke off after {took}",
        }
        reason = reasons.get(attempt.fate, "the device failed")
        return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason=reason), reply_to=message)

    def number(self, message: Message) -> None:
        """Give an id to a message that is not handed to the engine, which numbers what it sends."""
        if not message.metadata.message_id:
            message.metadata.__dict__["_message_id"] = f"dropped-{next(self._numbers)}"
