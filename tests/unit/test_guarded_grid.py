"""Replies between machines: unreadable and forged ones cost their sender only."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid import HttpGrid

from server.exchange import guarded_grid
from server.exchange.courier import Courier
from server.exchange.guarded_grid import GuardedGrid
from tests.unit.fake_grid import identify_as_server
from tests.waiting import wait_until

METRIC_WITHOUT_VALUE = b"\n\x03\n\x01m"
"""ProtoMetricRecord: items (field 1) = [{key (field 1): "m"}], no value."""


class FakeSuperLink:
    """What HttpGrid asks over the network; every device answers at once.

    ``broken`` nodes send a metric without a value, ``forgers`` name another node as sender.
    """

    def __init__(self, broken: tuple[int, ...] = (), forgers: tuple[int, ...] = ()) -> None:
        self.broken, self.forgers = broken, forgers
        self.replies: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.fault: Exception | None = None
        self.unfinished: set[bytes] = set()
        """Contents of objects whose upload has begun."""

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:  # noqa: N802
        ids = []
        for proto in request.messages_list:
            ids.append(proto.metadata.message_id)
            self.replies[ids[-1]] = self._reply(message_from_proto(proto))
        return PushAppMessagesResponse(message_ids=ids, session_id="s")

    def _reply(self, asked: Message) -> tuple[Any, Any]:
        node_id = asked.metadata.dst_node_id
        content = RecordDict({"metrics": MetricRecord({"m": node_id}), "c": ConfigRecord()})
        reply = Message(content, reply_to=asked)
        sender = 999 if node_id in self.forgers else node_id
        reply.metadata.__dict__["_src_node_id"] = sender
        reply.metadata.__dict__["_message_id"] = reply.object_id
        for object_id, item in get_all_nested_objects(reply).items():
            data = item.deflate()
            if node_id in self.broken and isinstance(item, MetricRecord):
                data = b"MetricRecord  5\x00" + METRIC_WITHOUT_VALUE
            self.objects[object_id] = data
        empty = Message(RecordDict(), reply_to=asked)
        empty.metadata.__dict__["_message_id"] = reply.object_id
        return message_to_proto(empty), get_object_tree(reply)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        if self.fault is not None:
            raise self.fault
        # Handed out once, as the SuperLink does.
        found = [self.replies.pop(i) for i in request.message_ids if i in self.replies]
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PushObject(self, request: Any) -> PushObjectResponse:  # noqa: N802
        return PushObjectResponse(stored=True)

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        data = self.objects[request.object_id]
        if data in self.unfinished:
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=data)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        pass


def http_grid(superlink: FakeSuperLink) -> HttpGrid:
    identify_as_server()
    grid = HttpGrid(token="token")
    grid.set_run(Run.create_empty(1))
    grid._client = superlink  # type: ignore[assignment]
    return grid


def guarded(superlink: FakeSuperLink) -> GuardedGrid:
    return GuardedGrid(http_grid(superlink), timeout_seconds=5)


def requests(*node_ids: int) -> list[Message]:
    content = RecordDict({"c": ConfigRecord({"a": 1})})
    return [Message(content, dst_node_id=i, message_type=MessageType.QUERY) for i in node_ids]


def test_flowers_own_grid_raises_for_one_malformed_message() -> None:
    """Why there is a guard: when this fails, Flower has mended it."""
    with pytest.raises(AttributeError):
        http_grid(FakeSuperLink(broken=(12,))).send_and_receive(requests(11, 12, 13), timeout=5)


def test_an_unreadable_reply_is_a_failure_of_its_sender() -> None:
    grid = guarded(FakeSuperLink(broken=(12,), forgers=(13,)))
    exchange = Courier(grid, timeout_seconds=5).exchange(requests(11, 12, 13, 14))
    values = [reply.content["metrics"]["m"] for reply in exchange.replies]  # type: ignore[index]
    assert sorted(values) == [11, 14]  # type: ignore[type-var]
    assert exchange.failures.keys() == {12, 13}
    assert exchange.failures[12].startswith("its message can't be read: AttributeError")
    assert exchange.failures[13] == "its message poses as another device's"


def test_errors_of_the_connection_are_not_taken_for_a_devices() -> None:
    superlink = FakeSuperLink()
    superlink.fault = httpx.ConnectError("gone")
    with pytest.raises(httpx.ConnectError):
        guarded(superlink).send_and_receive(requests(11), timeout=5)


class FakeTime:
    """Time that passes in sleep alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_who_does_not_answer_is_waited_for_until_the_timeout_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looks after 0, 3 and 6 s, and at the end: the last one does not wait for a whole poll."""
    clock = FakeTime()
    monkeypatch.setattr(guarded_grid, "time", clock)
    looks = []
    superlink = FakeSuperLink()

    def pull(request: Any) -> PullAppMessagesResponse:
        looks.append(clock.now - 100.0)
        return PullAppMessagesResponse()

    superlink.PullMessages = pull  # type: ignore[method-assign]
    assert list(guarded(superlink).send_and_receive(requests(11), timeout=7.5)) == []
    assert looks == [0.0, 3.0, 6.0, 7.5]


def test_a_message_that_the_superlink_does_not_take_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeTime()
    monkeypatch.setattr(guarded_grid, "time", clock)
    superlink = FakeSuperLink()
    push = superlink.PushMessages

    def push_all_but_one(request: Any) -> PushAppMessagesResponse:
        taken = push(request)
        return PushAppMessagesResponse(
            message_ids=[taken.message_ids[0], ""], session_id=taken.session_id
        )

    superlink.PushMessages = push_all_but_one  # type: ignore[method-assign]
    (reply,) = guarded(superlink).send_and_receive(requests(11, 12), timeout=5)
    assert reply.metadata.src_node_id == 11
    assert clock.now == 100.0


def test_a_reply_that_is_not_all_here_at_the_timeout_is_a_failure_and_holds_up_nobody() -> None:
    """Node 12 has announced its reply, whose metrics never come."""
    superlink = FakeSuperLink()
    grid = guarded(superlink)
    superlink.unfinished = {MetricRecord({"m": 12}).deflate()}
    started = time.monotonic()
    exchange = Courier(grid, timeout_seconds=1.0).exchange(requests(12, 11))
    assert time.monotonic() - started < 4.0
    assert [reply.metadata.src_node_id for reply in exchange.replies] == [11]
    assert exchange.failures[12] == "its message was announced, but not all of it came in time"


def test_a_reply_that_is_still_uploaded_holds_up_no_other() -> None:
    """Node 12 has announced its reply, whose metrics come after the first look: in 5 s of time."""
    superlink = FakeSuperLink()
    confirmed: list[Any] = []
    superlink.ConfirmMessageReceived = confirmed.append  # type: ignore[method-assign,assignment]
    grid = guarded(superlink)
    superlink.unfinished = {MetricRecord({"m": 12}).deflate()}
    message_ids = list(grid.push_messages(requests(12, 11)))
    started = time.monotonic()
    (reply,) = grid.pull_messages(message_ids)
    assert time.monotonic() - started < 2.5
    assert reply.metadata.src_node_id == 11
    superlink.unfinished.clear()
    (reply,) = grid.pull_messages(message_ids)
    assert reply.metadata.src_node_id == 12
    assert reply.content["metrics"]["m"] == 12  # type: ignore[index]
    assert len({request.message_object_id for request in confirmed}) == 2
    assert reply.metadata.message_id == confirmed[1].message_object_id
    # The other one was confirmed by Flower.
    assert len({(request.node.node_id, request.run_id) for request in confirmed}) == 1
    assert list(grid.pull_messages(message_ids)) == []


def test_what_is_here_of_a_reply_is_not_fetched_again() -> None:
    """At the first look all of it is here but the message itself."""
    superlink = FakeSuperLink()
    grid = guarded(superlink)
    (message_id,) = grid.push_messages(requests(12))
    last = superlink.replies[message_id][0].metadata.message_id
    fetched: Counter[str] = Counter()
    pull = superlink.PullObject

    def pull_object(request: Any) -> PullObjectResponse:
        object_id = request.object_id
        fetched[object_id] += 1
        if object_id == last and fetched[last] == 1:
            others = superlink.objects.keys() - {last}
            contents = grid._due[message_id].contents
            wait_until(lambda: contents.keys() == others, "the others are here", interval=0.01)
            return PullObjectResponse(object_found=True, object_available=False)
        return pull(request)

    superlink.PullObject = pull_object  # type: ignore[method-assign]
    assert list(grid.pull_messages([message_id])) == []
    (reply,) = grid.pull_messages([message_id])
    assert reply.content["metrics"]["m"] == 12  # type: ignore[index]
    assert fetched == {object_id: 1 + (object_id == last) for object_id in superlink.objects}


def test_a_reply_that_is_too_large_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests have less than 100 bytes, an answer with nothing but a metric more than 20."""
    monkeypatch.setattr(guarded_grid, "LARGEST_SMALL_REPLY", 20)
    monkeypatch.setattr(guarded_grid, "MAX_GROWTH", 0)
    grid = guarded(FakeSuperLink())
    exchange = Courier(grid, timeout_seconds=5).exchange(requests(11))
    assert exchange.failures[11] == "its message has more than 20 bytes"
    assert not grid._due


def test_the_bounds_are_those_of_one_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's grid pulls by a function of its module, put there for a fetch: its own is back."""
    monkeypatch.setattr(guarded_grid, "LARGEST_SMALL_REPLY", 20)
    monkeypatch.setattr(guarded_grid, "MAX_GROWTH", 0)
    (refused,) = guarded(FakeSuperLink()).send_and_receive(requests(11), timeout=5)
    (reply,) = http_grid(FakeSuperLink()).send_and_receive(requests(12), timeout=5)
    assert (refused.has_content(), reply.has_content()) == (False, True)


def test_messages_live_little_longer_than_their_replies_are_waited_for() -> None:
    """5 s of timeout and a margin of 10 s, whichever way they are sent."""
    grid, asked, pushed = guarded(FakeSuperLink()), requests(11), requests(12)
    grid.send_and_receive(asked, timeout=2)
    grid.push_messages(pushed)
    assert [message.metadata.ttl for message in asked + pushed] == [15, 15]


def test_messages_that_are_pulled_one_by_one_are_guarded_as_well() -> None:
    """The asynchronous server pushes and pulls; every reply comes once."""
    grid = guarded(FakeSuperLink(broken=(12,)))
    asked = requests(11, 12)
    first, second = grid.push_messages(asked)
    (failure,) = grid.pull_messages([second])
    assert failure.metadata.src_node_id == 12
    assert failure.has_error()
    (reply,) = grid.pull_messages([first, second])
    assert reply.content["metrics"]["m"] == 11  # type: ignore[index]
    assert list(grid.pull_messages([first, second])) == []
    assert all("c" in message.content for message in asked)


def test_replies_that_never_come_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers, whichever way they are asked; the last look is when the time is over."""
    clock = FakeTime()
    monkeypatch.setattr(guarded_grid, "time", clock)
    superlink = FakeSuperLink()
    superlink.PullMessages = lambda _: PullAppMessagesResponse()  # type: ignore[method-assign,assignment]
    grid = guarded(superlink)
    assert list(grid.send_and_receive(requests(11, 12), timeout=2.0)) == []
    message_ids = list(grid.push_messages(requests(13)))
    assert list(grid.pull_messages(message_ids)) == []
    (due,) = grid._due.values()
    assert not due.message.content
    clock.sleep(5.0)
    assert list(grid.pull_messages(message_ids)) == []
    assert not grid._due
