"""Replies are fetched one by one: what Flower cannot read costs the device that sent it.

Flower's HttpGrid (1.41) fetches all replies that are there at once. The SuperLink deletes them as
it hands them out, and one whose records cannot be rebuilt raises in the ServerApp: it would end the
run and take the honest replies of the same fetch along. Whom a rebuilt message names as its sender
is what the sender wrote there: here it has to be who was asked. And a reply is there for Flower as
soon as its upload begins, for whose end it waits: here the other replies are fetched meanwhile, and
what is fetched is bounded in time and in size.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import HttpGrid, http_grid
from google.protobuf.message import DecodeError

from common.messages import message_bytes
from server.exchange.grid_view import GridView

POLL_SECONDS = 3.0
"""Between two looks for replies; Flower's own."""

TTL_MARGIN_SECONDS = 10.0
"""How much longer a message lives than its reply is waited for: Flower lets clocks of devices be
5 s ahead of the SuperLink's."""

LARGEST_SMALL_REPLY = 2**24
"""Bytes that any reply may have."""

MAX_GROWTH = 16
"""Bytes of a reply for each byte of its request beyond that: a model goes down in 2 bits a value at
least, as a change, and comes back in 32 at most."""

TOO_LATE = "was announced, but not all of it came in time"

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
        self._timeout_seconds = timeout_seconds
        self._due: dict[str, _Due] = {}
        """By message id."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._push(messages, self._timeout_seconds)

    def _push(self, messages: Iterable[Message], timeout: float) -> list[str]:
        """Send messages whose replies are waited for ``timeout`` seconds."""
        messages = list(messages)
        for message in messages:
            message.metadata.ttl = self._timeout_seconds + TTL_MARGIN_SECONDS
        message_ids = list(self.grid.push_messages(messages))
        for message_id, message in zip(message_ids, messages, strict=False):
            if message_id:  # empty where the SuperLink did not take the message
                self._due[message_id] = _Due(
                    message=_without_content(message),
                    until=time.monotonic() + timeout,
                    most_bytes=LARGEST_SMALL_REPLY + MAX_GROWTH * message_bytes(message),
                )
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for message_id in message_ids for reply in self._pull(message_id)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        seconds = math.inf if timeout is None else timeout
        due = self._push(messages, seconds)
        deadline = time.monotonic() + seconds
        replies: list[Message] = []
        while True:
            replies += self.pull_messages(due)
            due = [message_id for message_id in due if message_id in self._due]
            remaining = deadline - time.monotonic()
            if not due or remaining <= 0:
                return replies
            time.sleep(min(POLL_SECONDS, remaining))

    def _pull(self, message_id: str) -> list[Message]:
        """The reply to one message, if it is there; after its time it is looked for once."""
        due = self._due.get(message_id)
        if due is None:
            return []
        message, is_over = due.message, time.monotonic() >= due.until
        try:
            received = self._fetch(message_id, due)
        except _IncompleteError as error:
            del self._due[message_id]
            return [_failure(message, str(error))]
        except UNREADABLE as error:
            del self._due[message_id]
            return [_failure(message, f"can't be read: {type(error).__name__}: {error}")]
        if received or is_over:
            del self._due[message_id]
        return [
            reply
            if _is_answer(reply, message_id, message)
            else _failure(message, "poses as another device's")
            for reply in received
        ]

    def _fetch(self, message_id: str, due: _Due) -> list[Message]:
        try:
            if due.upload is not None:
                return [self._fetch_rest(due, due.upload)]
            with _pulls_by(due.pull_objects):
                return list(self.grid.pull_messages([message_id]))
        except _UnfinishedError:
            return []

    def _fetch_rest(self, due: _Due, upload: _Upload) -> Message:
        """What HttpGrid.pull_messages does with a reply that the SuperLink has handed out."""
        assert isinstance(self.grid, HttpGrid)
        contents = due.pull_objects(upload.object_ids, upload.pull)
        object_id = upload.object_ids[-1]  # what the message is made of comes before it
        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.grid.node, run_id=self.grid.run.run_id, message_object_id=object_id
            )
        )
        reply = cast(Message, inflatable_utils.inflate_object_from_contents(object_id, contents))
        reply.metadata.__dict__["_message_id"] = object_id
        return reply


class _IncompleteError(Exception):
    """A reply that can't be fetched as a whole."""


class _UnfinishedError(Exception):
    """A reply whose sender is still uploading it."""


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """A reply that was there in parts when it was looked for."""

    object_ids: list[str]
    """Of all that it consists of."""
    pull: Callable[[str], bytes]
    """Fetches one of these."""


@dataclass(kw_only=True)
class _Due:
    """What was sent and is not answered."""

    message: Message
    """Without its content."""
    until: float
    """When the reply has to be here, by time.monotonic()."""
    most_bytes: int
    """Of the reply."""
    upload: _Upload | None = None
    """The reply, if its upload has begun: the SuperLink hands it out once."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """What has been fetched of it."""
    num_bytes: int = 0
    """Of that."""

    def pull_objects(
        self, object_ids: list[str], pull_object_fn: Callable[[str], bytes]
    ) -> dict[str, bytes]:
        """Flower's, with bounds; it waits for nothing, and goes on where it was.

        Flower's own waits for as long as the sender goes on uploading, for hours, and nobody else's
        reply is fetched meanwhile. Pulls in several threads.

        Raises:
            _UnfinishedError: there is time left for what is missing.
            _IncompleteError: it is too late, or too much.
        """
        self.upload = _Upload(object_ids=object_ids, pull=pull_object_fn)
        lock = threading.Lock()

        def pull(object_id: str) -> bytes:
            try:
                content = pull_object_fn(object_id)
            except ObjectUnavailableError as error:
                if time.monotonic() < self.until:
                    raise _UnfinishedError from error
                raise _IncompleteError(TOO_LATE) from error
            with lock:
                self.contents[object_id] = content
                self.num_bytes += len(content)
                if self.num_bytes > self.most_bytes:
                    raise _IncompleteError(f"has more than {self.most_bytes} bytes")
            return content

        missing = [object_id for object_id in object_ids if object_id not in self.contents]
        try:
            inflatable_utils.pull_objects(missing, pull)
        except ObjectPullError as error:
            raise _IncompleteError(TOO_LATE) from error
        return self.contents


@contextmanager
def _pulls_by(pull_objects: Callable[..., dict[str, bytes]]) -> Iterator[None]:
    """Within, Flower's HttpGrid pulls the parts of a message like this."""
    http_grid.pull_objects = pull_objects
    try:
        yield
    finally:
        http_grid.pull_objects = inflatable_utils.pull_objects


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
