"""Replies are fetched one by one: what Flower cannot read costs the device that sent it.

Flower's HttpGrid (1.41) fetches all replies that are there at once. The SuperLink deletes them as
it hands them out, and one whose records cannot be rebuilt raises in the ServerApp: it would end the
run and take the honest replies of the same fetch along. Whom a rebuilt message names as its sender
is what the sender wrote there: here it has to be who was asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from google.protobuf.message import DecodeError

from server.grid_view import GridView

POLL_SECONDS = 3.0
"""Between two looks for replies; Flower's own."""

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
    """

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        # An id is empty where the SuperLink did not take the message.
        due = dict(zip(self.push_messages(messages), messages, strict=False))
        due.pop("", None)
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while True:
            for message_id in list(due):
                if received := self._pull(message_id, due[message_id]):
                    replies += received
                    del due[message_id]
            if not due or (deadline is not None and time.monotonic() >= deadline):
                return replies
            time.sleep(POLL_SECONDS)

    def _pull(self, message_id: str, message: Message) -> list[Message]:
        try:
            received = list(self.pull_messages([message_id]))
        except UNREADABLE as error:
            return [_failure(message, f"can't be read: {type(error).__name__}: {error}")]
        return [
            reply
            if _is_answer(reply, message_id, message)
            else _failure(message, "poses as another device's")
            for reply in received
        ]


def _is_answer(reply: Message, message_id: str, message: Message) -> bool:
    """Whether a reply names the message and the node that it was fetched for.

    Errors that the SuperLink answers with have its own node id.
    """
    sender = message.metadata.dst_node_id if reply.has_content() else reply.metadata.src_node_id
    return (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (message_id, sender)


def _failure(message: Message, what: str) -> Message:
    return Message(Error(ErrorCode.UNKNOWN, f"its message {what}"), reply_to=message)
