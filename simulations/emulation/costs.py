"""What the tasks of emulated devices cost: seconds and bytes, from messages and replies."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from common.config import Config
from common.devices import TaskCost, task_cost
from common.messages import Reply, Stage, Status, message_bytes
from simulations.emulation.hardware import Attempt, Emulation, require_possible
from simulations.emulation.workload import Workload
from simulations.engines.worker import FIRST_NODE_ID


class FleetCosts:
    """The costs of tasks on a fleet.

    Args:
        emulation: the devices.
        config: of the run.
        workload: what tasks compute.
        num_classes: of the data set.
    """

    def __init__(
        self, emulation: Emulation, config: Config, workload: Workload, num_classes: int
    ) -> None:
        self.emulation = emulation
        self.config = config
        self.workload = workload
        self.num_classes = num_classes
        self.num_samples: dict[int, int] = {}
        """Partition id -> training images, from the replies to queries."""

    def learn_samples(self, reply: Message) -> None:
        """Note what a reply to a query says."""
        metrics = Reply.from_record(reply.content).metrics
        self.num_samples[partition_of(reply)] = int(metrics.get("num-samples", 0))

    def attempt(
        self,
        stage: Stage,
        partition_id: int,
        download_bytes: int,
        *,
        delay_seconds: float,
        fails_at: float,
    ) -> Attempt:
        """A device's part in a round before its reply is known: the least that it can cost.

        Args:
            stage: of the round.
            partition_id: of the device.
            download_bytes: of the request.
            delay_seconds: before the device starts.
            fails_at: share of the task after which it breaks off; infinite: it does not.
        """
        cost = self.least(stage, partition_id, download_bytes, delay_seconds)
        return Attempt(
            partition_id=partition_id, cost=cost, fails_after=fails_at * cost.virtual_seconds
        )

    def least(
        self, stage: Stage, partition_id: int, download_bytes: int, delay_seconds: float = 0.0
    ) -> TaskCost:
        """The least that a task can cost."""
        num_samples = self.num_samples.get(partition_id, 0)
        return task_cost(
            self.emulation.profile(partition_id),
            flops=self.workload.least(stage, num_samples, self.num_classes),
            download_bytes=download_bytes,
            upload_bytes=0,
            delay_seconds=delay_seconds,
        )

    def of_reply(
        self, stage: Stage, least: TaskCost, download_bytes: int, reply: Message
    ) -> TaskCost:
        """What a task cost, from the reply.

        An error reply tells nothing of its work, nor does that of a training that diverged.
        """
        if not reply.has_content():
            return least
        partition_id = partition_of(reply)
        answer = Reply.from_record(reply.content)
        num_samples = self.num_samples.get(partition_id, 0)
        flops = self.workload.of_reply(stage, answer.metrics, num_samples)
        if answer.status is Status.DIVERGED:
            flops = self.workload.least(stage, num_samples, self.num_classes)
        return task_cost(
            self.emulation.profile(partition_id),
            flops=flops,
            download_bytes=download_bytes,
            upload_bytes=message_bytes(reply),
            delay_seconds=least.virtual_delay_seconds,
        )

    def require_possible(self, stage: Stage, download_bytes: int) -> None:
        """Refuse a deadline that no device that is known can meet, of this round or not.

        Raises:
            UserError: naming the fastest device's time.
        """
        deadline = self.config.fleet.deadline
        if not deadline:
            return
        attempts = [
            Attempt(partition_id=i, cost=self.least(stage, i, download_bytes))
            for i in sorted(self.num_samples)
        ]
        names = [self.emulation.profile(a.partition_id).class_name for a in attempts]
        require_possible(attempts, names, deadline)


def partition_of(reply: Message) -> int:
    """Partition id of the device that a reply comes from."""
    return reply.metadata.src_node_id - FIRST_NODE_ID


def message_sizes(messages: Iterable[Message]) -> dict[int, int]:
    """Node id -> bytes of its message; messages share few contents, each is measured once."""
    by_content: dict[int, int] = {}
    sizes = {}
    for message in messages:
        content = id(message.content)
        if content not in by_content:
            by_content[content] = message_bytes(message)
        sizes[message.metadata.dst_node_id] = by_content[content]
    return sizes
