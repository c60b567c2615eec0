"""The devices of one round by bit-width: what each group was sent, and what is made of its replies.

Where all devices train at one bit-width, they are one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from server.exchange.registry import RegisteredDevice
from server.exchange.replies import Expectation, Judgement, join_judgements, judge_replies
from server.model.aggregation import State
from server.model.bit_entries import ONE_WIDTH


@dataclass(frozen=True, kw_only=True)
class DeviceGroups:
    """The devices that were asked in a round."""

    devices: Mapping[int, list[RegisteredDevice]]
    """Bit-width -> its devices, ascending."""
    expected: dict[int, Expectation] = field(default_factory=dict)
    """Bit-width -> what a good reply of its devices looks like."""
    target: dict[int, State] = field(default_factory=dict)
    """Bit-width -> what its devices' changes are added to: what they were sent or, where they are
    sent changes, what that was before it was rounded."""

    @classmethod
    def of(cls, devices: Iterable[RegisteredDevice], *, is_mixed: bool) -> DeviceGroups:
        """The devices by bit-width, or all as one group."""
        groups: dict[int, list[RegisteredDevice]] = {}
        for device in devices:
            groups.setdefault(device.weight_bits if is_mixed else ONE_WIDTH, []).append(device)
        return cls(devices=dict(sorted(groups.items())))

    def __iter__(self) -> Iterator[int]:
        return iter(self.devices)

    @property
    def bits_of(self) -> dict[int, int]:
        """Partition id -> bit-width."""
        return {
            device.partition_id: bits for bits, group in self.devices.items() for device in group
        }

    def partition_of(self, bits: int) -> dict[int, int]:
        """Node id -> partition id of one group."""
        return {device.node_id: device.partition_id for device in self.devices[bits]}

    def base(self, bits: int) -> State:
        """The state that a group was sent."""
        base = self.expected[bits].base
        assert base is not None
        return base

    def fill(
        self, messages: Iterable[Message], contents: Mapping[int, RecordDict]
    ) -> list[Message]:
        """Flower's messages with their group's content, by partition id (Flower shuffles them)."""
        rank = {
            device.node_id: (device.partition_id, bits)
            for bits, group in self.devices.items()
            for device in group
        }
        ordered = sorted(messages, key=lambda message: rank[message.metadata.dst_node_id])
        for message in ordered:
            message.content = contents[rank[message.metadata.dst_node_id][1]]
        return ordered

    def judge(self, replies: Iterable[Message]) -> Judgement:
        """All replies, each by what its group was sent; a stranger's is refused by any group."""
        expectations = list(self.expected.values())
        if len(expectations) == 1:
            return judge_replies(replies, expectations[0])
        parts: list[list[Message]] = [[] for _ in expectations]
        for reply in replies:
            node_id = reply.metadata.src_node_id
            known = (i for i, e in enumerate(expectations) if node_id in e.partition_of)
            parts[next(known, 0)].append(reply)
        return join_judgements(map(judge_replies, parts, expectations))
