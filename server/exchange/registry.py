"""Which devices are there: partition id <-> node id, and the seeded choice among them.

Flower's node ids are random in every run; a device is therefore known, and drawn, by the
partition id that it answers to a query.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from common.errors import UserError
from common.events import log_event
from common.messages import WEIGHT_BITS, Reply, Status
from common.seeding import numpy_generator
from server.exchange.courier import POLL_SECONDS, Courier, Traffic
from server.exchange.foreign_text import printable
from server.exchange.grid_view import GridView
from server.exchange.replies import MAX_EXAMPLES, Refusal, RefusalKind

QUERY_ATTEMPTS = 3
"""Queries to a node that answers with errors before it is refused."""


@dataclass(frozen=True, kw_only=True)
class RegisteredDevice:
    """A device that answered a query."""

    partition_id: int
    node_id: int
    num_samples: int
    """Training images that it says it holds."""
    emulated: bool
    """Whether its images are a part of the configured split."""
    weight_bits: int = 0
    """Bit-width that it trains at, where a run has several; 0: that of the run."""


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """A node that can't take part."""

    reason: str
    until_turn: int
    """It is asked again from this turn on, should what was wrong with it be mended."""


class DeviceRegistry:
    """The devices that are there now.

    Args:
        courier: asks them.
        note: told what a user should know, in a sentence.
        introduction: what a query tells a device about the run.
        mixed_bits: the bit-widths of a run that has several: a device must say which is its own.
    """

    def __init__(
        self,
        courier: Courier,
        note: Callable[[str], None],
        introduction: RecordDict | None = None,
        mixed_bits: Collection[int] = (),
    ) -> None:
        self.courier = courier
        self.note = note
        self.introduction = introduction or RecordDict()
        self.mixed_bits = mixed_bits
        self.traffic = Traffic()
        """Bytes of all queries."""
        self._by_partition: dict[int, RegisteredDevice] = {}
        self._refused: dict[int, _Refused] = {}
        """By node id."""
        self._turn = 0
        """Of those who were refused to be asked again."""
        self._failures: dict[int, int] = {}
        """Node id -> queries in a row that it answered with errors."""
        self._partition_of: dict[int, int] = {}
        """Node id -> partition id of all devices that ever were there."""
        self._owner_of: dict[int, int] = {}
        """Partition id -> node id of the device that had it first."""
        self._expected_holders: set[int] = set()
        """Partition ids of devices that hold the teacher and were not there yet."""
        self._expected_models: dict[int, str] = {}
        """Partition id -> model that a device holds that was not there yet."""

    @property
    def devices(self) -> list[RegisteredDevice]:
        """All devices, by partition id."""
        return [self._by_partition[partition] for partition in sorted(self._by_partition)]

    @property
    def teacher_partitions(self) -> list[int]:
        """Partition ids of the devices that hold the teacher, those that are away included."""
        # Any node can say that it holds the teacher, one that is refused as well.
        known = self.courier.teacher_nodes & self._partition_of.keys()
        return sorted({self._partition_of[node] for node in known} | self._expected_holders)

    def believe_teacher_at(self, partition_ids: Iterable[int]) -> None:
        """Take it that these devices hold the teacher, those that are yet to come included."""
        self._expected_holders = set(partition_ids)
        for device in self.devices:
            self._note_holder(device.partition_id, device.node_id)

    @property
    def model_at(self) -> dict[int, str]:
        """Partition id -> model that a device holds, those that are away included."""
        known = {
            self._partition_of[node]: name
            for node, name in self.courier.model_at.items()
            if node in self._partition_of
        }
        return self._expected_models | known

    def believe_model_at(self, names: Mapping[int, str]) -> None:
        """Take it that devices hold these models, by partition id, also those yet to come."""
        self._expected_models = dict(names)
        for device in self.devices:
            self._note_holder(device.partition_id, device.node_id)

    def _note_holder(self, partition_id: int, node_id: int) -> None:
        if partition_id in self._expected_holders:
            self._expected_holders.discard(partition_id)
            self.courier.believe_teacher_at([node_id])
        if partition_id in self._expected_models:
            self.courier.believe_model_at(node_id, self._expected_models.pop(partition_id))

    def refresh(self) -> None:
        """Forget devices that left; query nodes that are new, forgot the run or did not answer."""
        present = set(self.courier.grid.get_node_ids())
        self._refused = {node: why for node, why in self._refused.items() if node in present}
        out = {node for node, why in self._refused.items() if self._turn < why.until_turn}
        self._failures = {node: count for node, count in self._failures.items() if node in present}
        for device in self.devices:
            if device.node_id not in present or device.node_id in self.courier.forgetful_nodes:
                del self._by_partition[device.partition_id]
                log_event("device-left", device=device.partition_id)
        known = {device.node_id for device in self._by_partition.values()}
        new = sorted(present - known - out)
        exchange = self.courier.exchange(
            Message(self.introduction, dst_node_id=node_id, message_type=MessageType.QUERY)
            for node_id in new
        )
        self.courier.forgetful_nodes.clear()
        self.traffic.add(exchange.total())
        for message in exchange.replies:
            self._register(message)
        for node_id, reason in exchange.failures.items():
            self._failures[node_id] = self._failures.get(node_id, 0) + 1
            if self._failures[node_id] >= QUERY_ATTEMPTS:
                # A question to one that stands still takes a round's timeout: ever rarer ones.
                pause = 2 ** self._failures[node_id]
                self._refuse(node_id, f"a device can't be asked who it is: {reason}", pause)

    def _register(self, message: Message) -> None:
        node_id = message.metadata.src_node_id
        self._failures.pop(node_id, None)
        try:
            reply = Reply.from_record(message.content)
        except ValueError as error:
            self._refuse(node_id, f"a device does not speak this protocol: {error}")
            return
        partition_id = reply.partition_id
        if reply.status is not Status.OK:
            self._refuse(node_id, f"device {partition_id} can't take part: {reply.reason}")
        elif partition_id < 0:
            self._refuse(node_id, f"a device with the partition id {partition_id} is ignored")
        elif not _is_count(num_samples := reply.metrics.get("num-samples", 0)):
            self._refuse(node_id, f"device {partition_id} says an impossible number of images")
        elif self.mixed_bits and reply.metrics.get(WEIGHT_BITS) not in self.mixed_bits:
            self._refuse(node_id, f"device {partition_id} says none of the run's bit-widths")
        elif partition_id in self._by_partition and self._owner_of[partition_id] != node_id:
            self._refuse(node_id, f"a second device with partition id {partition_id} is ignored")
        else:
            self._by_partition[partition_id] = RegisteredDevice(
                partition_id=partition_id,
                node_id=node_id,
                num_samples=int(num_samples),
                emulated=bool(reply.metrics.get("emulated", 0)),
                weight_bits=int(reply.metrics[WEIGHT_BITS]) if self.mixed_bits else 0,
            )
            self._refused.pop(node_id, None)
            self._owner_of.setdefault(partition_id, node_id)
            log_event("device-joined", device=partition_id)
            self._partition_of[node_id] = partition_id
            self._note_holder(partition_id, node_id)

    def _refuse(self, node_id: int, reason: str, pause: int = 1) -> None:
        """Leave a node alone until ``pause`` turns later."""
        reason = printable(reason)
        if all(refused.reason != reason for refused in self._refused.values()):
            self.note(reason)
        self._refused[node_id] = _Refused(reason=reason, until_turn=self._turn + pause)

    def ask_again(self, refused: Iterable[Refusal]) -> None:
        """Have the next refresh ask devices anew whose figures were refused.

        They may have more images than they registered with.
        """
        for refusal in refused:
            device = self._by_partition.get(refusal.partition_id)
            if device is not None and refusal.kind is RefusalKind.BAD_METRICS:
                self.courier.forgetful_nodes.add(device.node_id)

    def give_turn(self) -> None:
        """Have the next refresh ask some of those again that were refused."""
        self._turn += 1

    def wait_for(self, num_devices: int, *, timeout_seconds: float) -> None:
        """Refresh until at least ``num_devices`` are there; those that were refused have a turn.

        Raises:
            UserError: if they are not within ``timeout_seconds``, or at once when enough nodes
                are there but too many of them are refused.
        """
        clock = self.courier.clock
        deadline = clock.now() + timeout_seconds
        self.give_turn()
        announced = -1
        while True:
            self.refresh()
            found = len(self._by_partition)
            if found >= num_devices:
                return
            num_nodes = len(set(self.courier.grid.get_node_ids()))
            is_hopeless = num_nodes >= num_devices and len(self._refused) >= num_nodes - found
            if is_hopeless or clock.now() >= deadline:
                distinct = sorted({refused.reason for refused in self._refused.values()})
                reasons = "".join(f"; {reason}" for reason in distinct)
                raise UserError(
                    f"{found} of {num_nodes} device(s) can take part: expected at least "
                    f"{num_devices}{reasons}"
                )
            if found != announced:
                log_event("waiting-for-devices", found=found, needed=num_devices)
                self.note(f"waiting for devices: {found} of at least {num_devices} are there")
                announced = found
            clock.sleep(min(POLL_SECONDS, timeout_seconds))

    def sample(
        self, seed: int, purpose: str, round_index: int, *, fraction: float, minimum: int
    ) -> list[RegisteredDevice]:
        """Devices drawn without replacement, by partition id.

        Their number is ``fraction`` of those that are there, rounded, but at least ``minimum``
        (all of them, if they are fewer).
        """
        devices = self.devices
        size = min(len(devices), max(minimum, round(fraction * len(devices))))
        generator = numpy_generator(seed, purpose, round_index)
        chosen = generator.permutation(len(devices))[:size]
        return [devices[index] for index in sorted(chosen.tolist())]


def _is_count(value: float) -> bool:
    return type(value) is int and 0 <= value <= MAX_EXAMPLES


class SampledGrid(GridView):
    """A view of a grid that knows the devices of one sample only.

    Flower's strategies draw nodes from all of a grid's without a seed: from this view they draw
    exactly the sample.
    """

    def __init__(self, grid: Grid, devices: Iterable[RegisteredDevice]) -> None:
        super().__init__(grid)
        self.devices = list(devices)
        self.partition_of = {device.node_id: device.partition_id for device in self.devices}
        """Node id -> partition id of the sample."""

    def get_node_ids(self) -> Iterable[int]:
        return list(self.partition_of)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [node for node in self.grid.get_nodes() if node.node_id in self.partition_of]
