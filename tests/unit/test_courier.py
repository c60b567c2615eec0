"""Messages out and in: the teacher's delivery, failures, bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from common.clock import Clock
from common.messages import Reply, Stage, Status, TrainRequest, message_bytes
from server.exchange.courier import Courier
from simulations.emulation.clock import VirtualClock
from tests.unit.fake_grid import FakeGrid, node_id_of

TEACHER = b"the teacher's payload" * 10


def train_messages(num_devices: int, teacher_hash: str = "t1") -> list[Message]:
    request = TrainRequest(
        stage=Stage.QUANTIZED,
        round_index=0,
        num_rounds=1,
        model=b"model",
        model_hash="m",
        teacher_hash=teacher_hash,
    )
    content = request.to_record()
    return [
        Message(content, dst_node_id=node_id_of(k), message_type=MessageType.TRAIN)
        for k in range(num_devices)
    ]


class Devices:
    """Devices that keep the teacher, except that ``forgetful`` ones lose it once."""

    def __init__(self, forgetful: set[int] | None = None) -> None:
        self.forgetful = forgetful or set()
        self.kept: dict[int, bytes] = {}

    def __call__(self, partition_id: int, message: Message) -> Reply:
        request = TrainRequest.from_record(message.content)
        if request.teacher:
            self.kept[partition_id] = request.teacher
        if partition_id not in self.kept:
            return Reply(partition_id=partition_id, status=Status.TEACHER_MISSING, reason="lost")
        return Reply(partition_id=partition_id, teacher_hash=request.teacher_hash, update=b"u" * 50)


def make_courier(
    answer: object, num_devices: int = 2, clock: Clock | None = None
) -> tuple[Courier, FakeGrid]:
    grid = FakeGrid(answer, range(num_devices))  # type: ignore[arg-type]
    courier = Courier(grid, timeout_seconds=5.0, clock=clock)
    courier.set_teacher("t1", TEACHER)
    return courier, grid


def test_the_teacher_travels_once() -> None:
    devices = Devices()
    courier, grid = make_courier(devices)
    first = courier.exchange(train_messages(2))
    second = courier.exchange(train_messages(2))
    assert devices.kept == {0: TEACHER, 1: TEACHER}
    sent = [TrainRequest.from_record(message.content).teacher for message in grid.sent]
    assert sent == [TEACHER, TEACHER, b"", b""]
    assert first.total().teacher_bytes == 2 * len(TEACHER)
    assert second.total().teacher_bytes == 0
    assert len(first.replies) == len(second.replies) == 2


def test_a_lost_teacher_is_sent_again_in_the_same_exchange() -> None:
    devices = Devices()
    courier, grid = make_courier(devices)
    courier.exchange(train_messages(2))
    del devices.kept[1]
    exchange = courier.exchange(train_messages(2))
    assert [m.metadata.dst_node_id for m in grid.sent[2:]] == [
        node_id_of(0),
        node_id_of(1),
        node_id_of(1),
    ]
    assert devices.kept[1] == TEACHER
    assert sorted(Reply.from_record(m.content).partition_id for m in exchange.replies) == [0, 1]
    assert not exchange.failures
    # Both requests and both replies of the forgetful device are counted.
    plain, lost = exchange.traffic[node_id_of(0)], exchange.traffic[node_id_of(1)]
    assert lost.download_bytes > 2 * plain.download_bytes
    assert lost.upload_bytes > plain.upload_bytes
    assert lost.teacher_bytes == len(TEACHER)


def test_a_lost_teacher_does_not_prolong_the_exchange() -> None:
    """Device 1 says after 3 of 5 s that it lost the teacher: 2 s are left for its second answer."""
    clock, devices, timeouts = VirtualClock(), Devices(), []

    class SlowGrid(FakeGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            timeouts.append(timeout)
            clock.sleep(3.0)
            return super().send_and_receive(messages, timeout=timeout)

    courier = Courier(SlowGrid(devices, range(2)), timeout_seconds=5.0, clock=clock)
    courier.set_teacher("t1", TEACHER)
    courier.exchange(train_messages(2))
    del devices.kept[1]
    courier.exchange(train_messages(2))
    assert timeouts == [5.0, 5.0, 2.0]


def test_a_device_that_never_keeps_the_teacher_fails() -> None:
    courier, grid = make_courier(
        lambda k, _: Reply(partition_id=k, status=Status.TEACHER_MISSING), num_devices=1
    )
    exchange = courier.exchange(train_messages(1))
    assert len(grid.sent) == 2
    assert not exchange.replies
    assert exchange.failures == {
        node_id_of(0): "asks again for the teacher or the model that it was sent"
    }


def test_a_new_teacher_is_delivered_to_all() -> None:
    courier, grid = make_courier(Devices())
    courier.exchange(train_messages(2))
    courier.set_teacher("t2", b"other")
    courier.exchange(train_messages(2, "t2"))
    assert {TrainRequest.from_record(m.content).teacher for m in grid.sent[2:]} == {b"other"}


class Holders:
    """Devices that hold the model that they were last sent, and the teacher."""

    def __init__(self) -> None:
        self.model_at: dict[int, str] = {}
        self.has_teacher: set[int] = set()
        self.requests: list[TrainRequest] = []

    def __call__(self, partition_id: int, message: Message) -> Reply:
        request = TrainRequest.from_record(message.content)
        self.requests.append(request)
        if not request.model and self.model_at.get(partition_id) not in request.changes:
            return Reply(partition_id=partition_id, status=Status.MODEL_MISSING)
        if request.teacher:
            self.has_teacher.add(partition_id)
        if partition_id not in self.has_teacher:
            return Reply(partition_id=partition_id, status=Status.TEACHER_MISSING)
        self.model_at[partition_id] = request.model_hash
        return Reply(
            partition_id=partition_id,
            teacher_hash=request.teacher_hash,
            model_hash=request.model_hash,
        )

    def sent(self) -> list[tuple[bytes, list[str], bytes]]:
        """Model, names of changes and teacher of the requests since the last call."""
        requests = [(r.model, list(r.changes), r.teacher) for r in self.requests]
        self.requests.clear()
        return requests


def round_messages(number: int, num_devices: int) -> list[Message]:
    """Of round ``number``, from 0: model m<number>, with changes from all before."""
    request = TrainRequest(
        stage=Stage.QUANTIZED,
        round_index=number,
        num_rounds=9,
        model=b"whole",
        model_hash=f"m{number}",
        changes={f"m{k}": b"change %d" % k for k in range(number)},
        teacher_hash="t1",
    )
    content = request.to_record()
    return [
        Message(content, dst_node_id=node_id_of(k), message_type=MessageType.TRAIN)
        for k in range(num_devices)
    ]


class TestChanges:
    def test_a_device_is_sent_what_came_since_the_model_that_it_holds(self) -> None:
        """Two devices in round 0, one in round 1, three in round 2."""
        devices = Holders()
        courier, grid = make_courier(devices, num_devices=3)
        courier.exchange(round_messages(0, 2))
        assert devices.sent() == [(b"whole", [], TEACHER)] * 2
        courier.exchange(round_messages(1, 1))
        assert devices.sent() == [(b"", ["m0"], b"")]
        exchange = courier.exchange(round_messages(2, 3))
        assert devices.sent() == [
            (b"", ["m1"], b""),
            (b"", ["m0", "m1"], b""),
            (b"whole", [], TEACHER),
        ]
        assert not exchange.failures
        sizes = [message_bytes(message) for message in grid.sent[-3:]]
        assert [exchange.traffic[node_id_of(k)].download_bytes for k in range(3)] == sizes
        assert len(set(sizes)) == 3
        assert dict(courier.model_at) == {node_id_of(k): "m2" for k in range(3)}

    def test_what_is_not_in_a_request_any_more_goes_whole(self) -> None:
        courier, _ = make_courier(devices := Holders(), num_devices=1)
        devices.has_teacher.add(0)
        courier.believe_teacher_at([node_id_of(0)])
        courier.believe_model_at(node_id_of(0), "older")
        courier.exchange(round_messages(2, 1))
        assert devices.sent() == [(b"whole", [], b"")]

    def test_a_device_that_lost_all_is_sent_all_in_the_same_exchange(self) -> None:
        courier, _ = make_courier(devices := Holders(), num_devices=2)
        courier.exchange(round_messages(0, 2))
        devices.model_at.clear()
        devices.has_teacher.clear()
        devices.sent()
        exchange = courier.exchange(round_messages(1, 1))
        assert devices.sent() == [(b"", ["m0"], b""), (b"whole", [], TEACHER)]
        assert len(exchange.replies) == 1
        assert not exchange.failures
        courier.post(round_messages(1, 2)[1])
        assert len(courier.collect().replies) == 1
        assert devices.sent() == [(b"", ["m0"], b""), (b"whole", [], TEACHER)]

    def test_a_device_that_says_so_again_fails(self) -> None:
        courier, grid = make_courier(
            lambda k, _: Reply(partition_id=k, status=Status.MODEL_MISSING), num_devices=1
        )
        failures = courier.exchange(round_messages(1, 1)).failures
        assert list(failures) == [node_id_of(0)]
        assert len(grid.sent) == 2

    def test_a_name_that_is_none_is_not_kept(self) -> None:
        """65 digits, or a number in place of them."""
        names: list[Any] = ["m" * 65, 7]

        def answer(partition_id: int, message: Message) -> RecordDict:
            record = Reply(partition_id=partition_id).to_record()
            record.config_records["reply"]["model-hash"] = names[partition_id]
            return record

        courier, _ = make_courier(answer)
        courier.exchange(round_messages(0, 2))
        assert not courier.model_at


def test_requests_without_a_teacher_get_none() -> None:
    courier, grid = make_courier(lambda k, _: Reply(partition_id=k))
    courier.exchange(train_messages(2, teacher_hash=""))
    assert {TrainRequest.from_record(m.content).teacher for m in grid.sent} == {b""}


def test_errors_and_silence_are_failures_of_their_node() -> None:
    """Device 0 answers, 1 fails with two lines, 2 says nothing."""
    answers = {0: Reply(partition_id=0), 1: Error(code=2, reason="it broke\nstack"), 2: None}
    courier, _ = make_courier(lambda k, _: answers[k], num_devices=3)
    exchange = courier.exchange(train_messages(3, teacher_hash=""))
    assert len(exchange.replies) == 1
    assert exchange.failures == {
        node_id_of(1): "it broke",
        node_id_of(2): "no reply within 5 s",
    }


def test_bytes_are_those_of_the_messages() -> None:
    """What is counted is what message_bytes says of the messages themselves."""
    replies: list[RecordDict] = []

    def answer(partition_id: int, message: Message) -> RecordDict:
        replies.append(
            RecordDict({"reply": ConfigRecord({"partition-id": partition_id, "b": b"x" * 99})})
        )
        return replies[-1]

    courier, grid = make_courier(answer)
    exchange = courier.exchange(train_messages(2))
    assert exchange.total().download_bytes == sum(message_bytes(m) for m in grid.sent)
    returned = [Message(reply, reply_to=grid.sent[0]) for reply in replies]
    assert exchange.total().upload_bytes == sum(message_bytes(m) for m in returned)
    assert exchange.total().upload_bytes > 2 * 99


def test_nothing_to_send_sends_nothing() -> None:
    courier, grid = make_courier(Devices())
    exchange = courier.exchange([])
    assert (grid.sent, exchange.replies, exchange.total().upload_bytes) == ([], [], 0)


class TestPosting:
    def test_every_message_is_an_exchange_of_its_own(self) -> None:
        courier, _ = make_courier(Devices())
        messages = train_messages(2)
        for message in messages:
            courier.post(message)
        for number, message in enumerate(messages):
            exchange = courier.collect()
            (reply,) = exchange.replies
            assert reply.metadata.src_node_id == node_id_of(number)
            (traffic,) = exchange.traffic.values()
            assert traffic.upload_bytes == message_bytes(reply)
            assert traffic.teacher_bytes == len(TEACHER)
            assert traffic.download_bytes > message_bytes(message)
        assert courier.collect() == type(exchange)()

    def test_a_lost_teacher_is_sent_again(self) -> None:
        """Believed at device 0, which answers that it has none: two messages, one exchange."""
        courier, grid = make_courier(Devices())
        courier.believe_teacher_at([node_id_of(0)])
        courier.post(train_messages(1)[0])
        exchange = courier.collect()
        sent = [TrainRequest.from_record(message.content).teacher for message in grid.sent]
        assert sent == [b"", TEACHER]
        assert len(exchange.replies) == 1
        assert exchange.traffic[node_id_of(0)].download_bytes == sum(map(message_bytes, grid.sent))

    def test_a_device_that_keeps_on_losing_it_is_no_endless_loop(self) -> None:
        lost = Reply(partition_id=0, status=Status.TEACHER_MISSING, reason="lost")
        courier, grid = make_courier(lambda *_: lost)
        courier.post(train_messages(1)[0])
        failures = courier.collect().failures
        assert failures == {
            node_id_of(0): "asks again for the teacher or the model that it was sent"
        }
        assert len(grid.sent) == 2

    def test_messages_that_are_not_taken_fail_at_once(self) -> None:
        """Flower's SuperLink names each of them by an empty string: none stands for the other."""
        clock = VirtualClock()
        courier, grid = make_courier(Devices(), clock=clock)
        grid.push_messages = lambda messages: ["" for _ in messages]  # type: ignore[method-assign]
        for message in train_messages(2):
            courier.post(message)
        for k in range(2):
            failures = courier.collect().failures
            assert failures == {node_id_of(k): "the message could not be sent"}
        assert clock.now() == 0.0

    def test_silence_is_given_up(self) -> None:
        """After 5 s, seen at the first look that is more than a second later: at 7 s. The
        device that fails is heard of at once."""
        clock = VirtualClock()
        answers = {0: None, 1: Error(0, "it broke\nand more")}
        courier, _ = make_courier(lambda partition_id, _: answers[partition_id], clock=clock)
        for message in train_messages(2):
            courier.post(message)
        assert courier.collect().failures == {node_id_of(1): "it broke"}
        assert clock.now() == 0.0
        assert courier.collect().failures == {node_id_of(0): "no reply within 5 s"}
        assert clock.now() == 7.0
