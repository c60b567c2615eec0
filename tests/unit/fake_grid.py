"""A Grid whose devices answer with hand-made replies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.messages import Reply

Answer = Callable[[int, Message], Reply | RecordDict | Error | None]
"""(partition id, message) -> what the device answers; None: nothing, ever."""


def node_id_of(partition_id: int) -> int:
    """Node ids in an order that is not that of the partition ids, as Flower's."""
    return 1000 - 7 * partition_id


def identify_as_server() -> None:
    """Message(...) asks Flower's process-wide identity who sends."""
    TaskIdentity.task_id = TaskIdentity.run_id = 1
    TaskIdentity.node_id = 1


class FakeGrid(Grid):
    """Devices by partition id; ``sent`` keeps every message."""

    def __init__(self, answer: Answer, partition_ids: Sequence[int] = (0, 1, 2)) -> None:
        identify_as_server()
        self.answer = answer
        self.partition_ids = list(partition_ids)
        self.sent: list[Message] = []
        self.pushed: dict[str, Message] = {}
        """Message id -> the reply, until it is pulled."""
        self._numbers = itertools.count(1)

    def partition_of(self, node_id: int) -> int:
        """The inverse of `node_id_of`; a grid may have other node ids."""
        return (1000 - node_id) // 7

    def get_node_ids(self) -> Iterable[int]:
        return [node_id_of(partition_id) for partition_id in self.partition_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            self.sent.append(message)
            answer = self.answer(self.partition_of(message.metadata.dst_node_id), message)
            if isinstance(answer, Reply):
                answer = answer.to_record()
            if answer is not None:
                replies.append(Message(answer, reply_to=message))
        return replies

    def sent_of(self, message_type: str) -> list[Message]:
        """Messages of one type."""
        return [m for m in self.sent if m.metadata.message_type == message_type]

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            replies = list(self.send_and_receive([message]))
            if replies:
                self.pushed[message.metadata.message_id] = replies[0]
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.pushed.pop(key) for key in message_ids if key in self.pushed]


def query_reply(partition_id: int, *, emulated: int = 0) -> Reply:
    """What a device answers to a query."""
    return Reply(partition_id=partition_id, metrics={"num-samples": 10, "emulated": emulated})


def is_query(message: Message) -> bool:
    """Whether a message asks a device who it is."""
    return message.metadata.message_type == MessageType.QUERY
