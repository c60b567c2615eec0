"""Requests out, replies in: every message of the server passes here and its bytes are counted.

The courier also leaves out what a device holds. The teacher travels with a device's first request
that names it, until the device has said that it holds it; of a request with changes, those go to a
device that has said that it holds an earlier model, and the whole model to any other. A device that
answers that it lost either is sent it again, in the same round and once.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.clock import Clock, WallClock
from common.messages import CHANGES, REPLY, REQUEST, Status, TrainRequest, message_bytes
from server.exchange.foreign_text import printable

POLL_SECONDS = 1.0
"""Between two looks for what may have come."""

MOST_NAME_DIGITS = 64
"""Of a model's name; what is longer is none, and not kept."""

STILL_MISSING = "asks again for the teacher or the model that it was sent"


@dataclass
class Traffic:
    """Bytes of serialized messages; up is from a device to the server."""

    upload_bytes: int = 0
    download_bytes: int = 0
    teacher_bytes: int = 0
    """The part of ``download_bytes`` that is the teacher's payload."""

    def add(self, other: Traffic) -> None:
        """Add the bytes of ``other``."""
        self.upload_bytes += other.upload_bytes
        self.download_bytes += other.download_bytes
        self.teacher_bytes += other.teacher_bytes


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What came of one set of messages."""

    replies: list[Message] = field(default_factory=list)
    """Replies with a content, in no particular order."""
    failures: dict[int, str] = field(default_factory=dict)
    """Node id -> why there is no such reply."""
    traffic: dict[int, Traffic] = field(default_factory=dict)
    """Node id -> bytes, of all nodes that were asked."""

    def total(self) -> Traffic:
        """Bytes of all nodes together."""
        total = Traffic()
        for traffic in self.traffic.values():
            total.add(traffic)
        return total


@dataclass(kw_only=True)
class _Posted:
    """A message that is under way on its own."""

    message: Message
    """As it was posted, before anything was added or left out."""
    exchange: Exchange
    """What came of it so far."""
    expires: float
    """When it is given up, by the courier's clock."""
    is_second: bool = False
    """Whether it was sent again, with what the node had lost."""

    @property
    def node_id(self) -> int:
        return self.message.metadata.dst_node_id


class Courier:
    """Sends messages through a grid and waits for their replies.

    Args:
        grid: Flower's grid, of any engine.
        timeout_seconds: how long the replies to one set of messages are waited for.
        clock: what waiting for devices goes by; None: the machine's own.
    """

    def __init__(self, grid: Grid, *, timeout_seconds: float, clock: Clock | None = None) -> None:
        self.grid = grid
        self.clock = clock or WallClock()
        self.timeout_seconds = timeout_seconds
        self._teacher_hash = ""
        self._teacher = b""
        self._teacher_nodes: set[int] = set()
        self._model_at: dict[int, str] = {}
        """Node id -> name of the model that it said it holds."""
        self.forgetful_nodes: set[int] = set()
        """Nodes that said that they lost what a query told them: started anew, for example; or are
        to be asked anew for another reason."""
        self._posted: dict[str, _Posted] = {}
        """Message id -> a message that is under way on its own."""
        self._settled: deque[Exchange] = deque()

    def set_teacher(self, teacher_hash: str, payload: bytes) -> None:
        """Deliver this teacher with requests that name ``teacher_hash``."""
        self._teacher_hash, self._teacher = teacher_hash, payload
        self._teacher_nodes.clear()

    @property
    def teacher_nodes(self) -> frozenset[int]:
        """Nodes that said that they hold the teacher."""
        return frozenset(self._teacher_nodes)

    def believe_teacher_at(self, node_ids: Iterable[int]) -> None:
        """Take it that these nodes still hold the teacher; one that lost it will say so."""
        self._teacher_nodes.update(node_ids)

    @property
    def model_at(self) -> Mapping[int, str]:
        """Node id -> name of the model that it said it holds for changes to come."""
        return self._model_at

    def believe_model_at(self, node_id: int, name: str) -> None:
        """Take it that a node still holds a model; one that lost it will say so."""
        self._model_at[node_id] = name

    def exchange(self, messages: Iterable[Message]) -> Exchange:
        """Send messages, at most one per node, and collect what comes back in time.

        What is sent again gets no time of its own.
        """
        messages = list(messages)
        result = Exchange()
        deadline = self.clock.now() + self.timeout_seconds
        lost = self._send(messages, result, self.timeout_seconds)
        if lost:
            again = [m for m in messages if m.metadata.dst_node_id in lost]
            remaining = max(0.0, deadline - self.clock.now())
            still_lost = self._send([_new_message(m, m.content) for m in again], result, remaining)
            for node_id in still_lost:
                result.failures[node_id] = STILL_MISSING
        return result

    def _send(self, messages: list[Message], result: Exchange, timeout: float) -> set[int]:
        """One exchange, added to ``result``; returns the nodes that miss what was left out."""
        outgoing = self._completed(messages, result)
        if not outgoing:
            return set()
        received = list(self.grid.send_and_receive(outgoing, timeout=timeout))
        asked = {m.metadata.message_id: m.metadata.dst_node_id for m in outgoing}
        waiting = {m.metadata.dst_node_id for m in outgoing}
        lost: set[int] = set()
        for reply in received:
            # An error that the SuperLink itself answers with does not come from the node's id.
            node_id = asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            if node_id not in result.traffic:
                continue
            waiting.discard(node_id)
            if self._receive(node_id, reply, result):
                lost.add(node_id)
        for node_id in waiting:
            result.failures[node_id] = self._no_reply()
        return lost

    @property
    def under_way(self) -> Traffic:
        """Bytes of messages that are waited for, first tries that missed something included."""
        total = Traffic()
        for posted in self._posted.values():
            total.add(posted.exchange.total())
        return total

    def post(self, message: Message) -> None:
        """Send a message without waiting; what comes of it is for `collect`."""
        self._push(_Posted(message=message, exchange=Exchange(), expires=0.0))

    def collect(self) -> Exchange:
        """Wait until one of the messages that were posted is answered or given up; what came of it.

        Empty where no message is under way. Replies that are there together come one by one, in
        the order in which the grid gives them.
        """
        while self._posted and not self._settled:
            received = list(self.grid.pull_messages(list(self._posted)))
            for reply in received:
                posted = self._posted.pop(reply.metadata.reply_to_message_id, None)
                if posted is not None:
                    self._settle(posted, reply)
            self._give_up()
            if not received and not self._settled:
                self.clock.sleep(POLL_SECONDS)
        return self._settled.popleft() if self._settled else Exchange()

    def _push(self, posted: _Posted) -> None:
        (outgoing,) = self._completed([posted.message], posted.exchange)
        # Flower's SuperLink names a message that it does not take by an empty string.
        message_id = next(iter(self.grid.push_messages([outgoing])), "")
        if not message_id:
            posted.exchange.failures[posted.node_id] = "the message could not be sent"
            self._settled.append(posted.exchange)
        else:
            posted.expires = self.clock.now() + self.timeout_seconds
            self._posted[message_id] = posted

    def _settle(self, posted: _Posted, reply: Message) -> None:
        is_lost = self._receive(posted.node_id, reply, posted.exchange)
        if is_lost and not posted.is_second:
            again = _new_message(posted.message, posted.message.content)
            self._push(dataclasses.replace(posted, message=again, is_second=True))
            return
        if is_lost:
            posted.exchange.failures[posted.node_id] = STILL_MISSING
        self._settled.append(posted.exchange)

    def _give_up(self) -> None:
        """Messages whose time is over, by more than a poll: an emulation ends them itself."""
        now = self.clock.now()
        for message_id, posted in list(self._posted.items()):
            if now > posted.expires + POLL_SECONDS:
                del self._posted[message_id]
                posted.exchange.failures[posted.node_id] = self._no_reply()
                self._settled.append(posted.exchange)

    def _receive(self, node_id: int, reply: Message, result: Exchange) -> bool:
        """Add a node's reply to ``result``, or say True where it misses what was left out."""
        if not reply.has_content():
            result.failures[node_id] = _first_line(reply.error.reason)
            return False
        result.traffic[node_id].upload_bytes += message_bytes(reply)
        if _status(reply.content) == Status.NO_INPUT_SPEC.value:
            self.forgetful_nodes.add(node_id)
        if self._is_missing(node_id, reply.content):
            return True
        result.replies.append(reply)
        return False

    def _no_reply(self) -> str:
        return f"no reply within {self.timeout_seconds:g} s"

    def _completed(self, messages: list[Message], result: Exchange) -> list[Message]:
        """The messages with what their nodes need and without what they hold; bytes are counted.

        Messages of one round share few contents: each is packed and measured once.
        """
        outgoing: list[Message] = []
        packed: dict[tuple[int, bool, str], RecordDict] = {}
        sizes: dict[int, int] = {}
        for message in messages:
            node_id, content = message.metadata.dst_node_id, message.content
            with_teacher, held = self._needs_teacher(message), self._held_model(message)
            if with_teacher or held is not None:
                form = id(content), with_teacher, held or ""
                if form not in packed:
                    packed[form] = self._packed(content, with_teacher=with_teacher, held=held)
                message = _new_message(message, packed[form])
            if id(message.content) not in sizes:
                sizes[id(message.content)] = message_bytes(message)
            traffic = Traffic(
                download_bytes=sizes[id(message.content)],
                teacher_bytes=len(self._teacher) if with_teacher else 0,
            )
            result.traffic.setdefault(node_id, Traffic()).add(traffic)
            outgoing.append(message)
        return outgoing

    def _packed(self, content: RecordDict, *, with_teacher: bool, held: str | None) -> RecordDict:
        """A train request for nodes that need the teacher, or that hold a model ("": none)."""
        request = TrainRequest.from_record(content)
        if with_teacher:
            request = dataclasses.replace(request, teacher=self._teacher)
        if held:
            since = list(request.changes).index(held)
            changes = dict(islice(request.changes.items(), since, None))
            request = dataclasses.replace(request, model=b"", changes=changes)
        elif held is not None:
            request = dataclasses.replace(request, changes={})
        return request.to_record()

    def _needs_teacher(self, message: Message) -> bool:
        if message.metadata.message_type != MessageType.TRAIN or not self._teacher_hash:
            return False
        named = message.content.config_records[REQUEST]["teacher-hash"]
        return named == self._teacher_hash and (
            message.metadata.dst_node_id not in self._teacher_nodes
        )

    def _held_model(self, message: Message) -> str | None:
        """The model, among those that a request has changes from, that its node holds.

        Empty: none of them; None: it is no request with changes.
        """
        fields = message.content.config_records.get(REQUEST, ConfigRecord())
        if CHANGES not in fields:
            return None
        held = self._model_at.get(message.metadata.dst_node_id, "")
        return held if held in cast(list[str], fields[CHANGES]) else ""

    def _is_missing(self, node_id: int, content: RecordDict) -> bool:
        """Whether the reply says that something is; also notes what the node holds."""
        fields = content.config_records.get(REPLY, ConfigRecord())
        if self._teacher_hash and fields.get("teacher-hash") == self._teacher_hash:
            self._teacher_nodes.add(node_id)
        held = fields.get("model-hash")
        if isinstance(held, str) and len(held) <= MOST_NAME_DIGITS:
            self._model_at[node_id] = held
        status = _status(content)
        if status not in (Status.MODEL_MISSING.value, Status.TEACHER_MISSING.value):
            return False
        # It looks for the model first: a device that was started anew may have lost both.
        self._teacher_nodes.discard(node_id)
        if status == Status.MODEL_MISSING.value:
            self._model_at.pop(node_id, None)
        return True


def _status(content: RecordDict) -> object:
    return content.config_records.get(REPLY, ConfigRecord()).get("status")


def _new_message(message: Message, content: RecordDict) -> Message:
    """A message to the same node: one that was sent has an id already and cannot go twice."""
    return Message(
        content=content,
        dst_node_id=message.metadata.dst_node_id,
        message_type=message.metadata.message_type,
    )


def _first_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines() or ["unknown error"]
    return printable(lines[0], most=200)
