"""Replies are fetched one by one: what Flower cannot read costs the device that sent it.

Flower's HttpGrid (1.41) fetches all replies that are there at once. The SuperLink deletes them as
it hands them out, and one whose records cannot be rebuilt raises in the ServerApp: it would end the
run and take the honest replies of the same fetch along. Whom a rebuilt message names as its sender
is what the sender wrote there: here it has to be who was asked.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from google.protobuf.message import DecodeError

from server.exchange.grid_view import GridView

POLL_SECONDS = 3.0
"""Between two looks for replies; Flower's own."""

TTL_MARGIN_SECONDS = 10.0
"""How much longer a message lives than its reply is waited for: Flower lets clocks of devices be
5 s ahead of the SuperLink's."""

UNREADABLE = (
    DecodeError,
    UnexpectedObjectContentError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What rebuilding a malformed message raises. Errors of the connection are none of these."""


class GuardedGrid(GridView):
    """A grid for which an unreadable reply is an error reply of the node that was asked.

    A poll takes one request to the SuperLink for each reply that is still due.

    Messages also live no longer than their replies are waited for. Flower would deliver them for 12
    hours: a device that stood still would first train for every round that it missed.

    Args:
        grid: Flower's.
        timeout_seconds: how long a reply is waited for.
    """

    def __init__(self, grid: Grid, *, timeout_seconds: float) -> None:
        super().__init__(grid)
        self._ttl_seconds = timeout_seconds + TTL_MARGIN_SECONDS
        self._due: dict[str, Message] = {}
        """Message id -> what was sent and is not answered, without its content."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            message.metadata.ttl = self._ttl_seconds
        message_ids = list(self.grid.push_messages(messages))
        for message_id, message in zip(message_ids, messages, strict=False):
            if message_id:  # empty where the SuperLink did not take the message
                self._due[message_id] = _without_content(message)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for message_id in message_ids for reply in self._pull(message_id)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        due = [message_id for message_id in self.push_messages(messages) if message_id]
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while True:
            replies += self.pull_messages(due)
            due = [message_id for message_id in due if message_id in self._due]
            remaining = math.inf if deadline is None else deadline - time.monotonic()
            if not due or remaining <= 0:
                return replies
            time.sleep(min(POLL_SECONDS, remaining))

    def _pull(self, message_id: str) -> list[Message]:
        """The reply to one message, if it is there."""
        message = self._due.get(message_id)
        if message is None:
            return []
        try:
            received = list(self.grid.pull_messages([message_id]))
        except UNREADABLE as error:
            del self._due[message_id]
            return [_failure(message, f"can't be read: {type(error).__name__}: {error}")]
        if received:
            del self._due[message_id]
        return [
            reply
            if _is_answer(reply, message_id, message)
            else _failure(message, "poses as another device's")
            for reply in received
        ]


def _without_content(message: Message) -> Message:
    """A copy that an error reply can be made to: an answer that never comes holds no model."""
    emptied = copy.copy(message)
    emptied.content = RecordDict()
    return emptied


def _is_answer(reply: Message, message_id: str, message: Message) -> bool:
    """Whether a reply names the message and the node that it was fetched for.

    Errors that the SuperLink answers with have its own node id.
    """
    sender = message.metadata.dst_node_id if reply.has_content() else reply.metadata.src_node_id
    return (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (message_id, sender)


def _failure(message: Message, what: str) -> Message:
    return Message(Error(ErrorCode.UNKNOWN, f"its message {what}"), reply_to=message)
