"""Messages that are pushed to an emulated fleet: every device works on its own, in virtual time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from client.deadline import round_deadline
from common.devices import TaskCost
from common.messages import REQUEST, Stage
from simulations.emulation.clock import VirtualClock
from simulations.emulation.costs import FleetCosts
from simulations.emulation.drops import Dropped
from simulations.emulation.hardware import Attempt, Fate, doomed, settle_attempts
from simulations.emulation.ledger import FleetLedger
from simulations.engines.worker import FIRST_NODE_ID


@dataclass(kw_only=True)
class FleetTask:
    """A device's part, from the server's message to what the server gets for it.

    The device is trained for real while the virtual clock stands still. What it took is known once
    its real reply is there, or at once where it will be dropped whatever it does; until then
    ``ends`` is the earliest moment at which it can be over. The task that ends first of all is thus
    found by waiting for the real reply of one that has no later end than the others, as long as
    that one's own is not known: the answer does not depend on which real reply was there first.
    """

    message: Message
    stage: Stage
    download_bytes: int
    starts: float
    """Virtual seconds since the beginning of the run."""
    limit: float
    """Virtual seconds after which the server gives the device up."""
    attempt: Attempt
    """With the least that the task can cost, or, once it is known, with what it cost."""
    reply: Message | None = None
    """The device's own."""

    def __post_init__(self) -> None:
        self.is_known = doomed(self.attempt, self.limit) is not None
        self._settle()

    @property
    def order(self) -> tuple[float, int]:
        """Tasks that end at the same moment do so by partition id."""
        return self.ends, self.attempt.partition_id

    def learn(self, reply: Message, cost: TaskCost) -> None:
        """The device has answered, for real: this is what the task cost."""
        self.reply, self.is_known = reply, True
        self.attempt = replace(self.attempt, cost=cost)
        self._settle()

    def _settle(self) -> None:
        (self.attempt,), self.virtual_seconds = settle_attempts(
            [self.attempt], num_wanted=1, deadline=self.limit
        )
        self.ends = self.starts + self.virtual_seconds


class FleetTasks:
    """The tasks that are under way on a fleet.

    Args:
        grid: runs the messages; it has to wait for the reply that it is asked for.
        costs: of tasks.
        ledger: of what becomes of devices.
        clock: passes until the next answer.
        dropped: makes the errors in place of replies that the server does not get.
    """

    def __init__(
        self,
        grid: Grid,
        costs: FleetCosts,
        ledger: FleetLedger,
        clock: VirtualClock,
        dropped: Dropped,
    ) -> None:
        self.grid = grid
        self.costs = costs
        self.emulation = costs.emulation
        self.ledger = ledger
        self.clock = clock
        self.dropped = dropped
        self._tasks: dict[str, FleetTask] = {}
        """Message id -> what a device is doing."""
        self._num_tasks: Counter[int] = Counter()
        """Partition id -> tasks so far."""
        self._resumed: dict[int, float] = {}
        """Partition id -> when a task began that was under way when the run was killed, and that
        the server is yet to push again."""
        self.unfinished_joules = 0.0
        """What devices had spent on tasks that were given up."""
        self._given_up: list[int] = []
        """Partition ids of the devices that had begun these."""

    @property
    def busy_nodes(self) -> set[int]:
        """Node ids of the devices that are doing something."""
        return {task.message.metadata.dst_node_id for task in self._tasks.values()}

    @property
    def under_way(self) -> list[int]:
        """Partition ids of the devices that have begun before now and not answered by now."""
        now = self.clock.now()
        begun = [t.attempt.partition_id for t in self._tasks.values() if t.starts < now]
        return sorted([*begun, *self._given_up])

    def is_resumed(self, message: Message) -> bool:
        """Whether a message stands for a task that began before the run was killed."""
        return message.metadata.dst_node_id - FIRST_NODE_ID in self._resumed

    def push(self, message: Message, download_bytes: int) -> None:
        """Have a device train from now on; see `FleetTask`."""
        task = self._start(message, download_bytes)
        if task.is_known:
            self.dropped.number(message)
        else:
            self.grid.push_messages([message])
        self._tasks[message.metadata.message_id] = task

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply, or the error in its place, that comes first: virtual time passes until then.

        Empty where none of these messages is waited for.
        """
        message_ids = list(message_ids)
        while tasks := [self._tasks[key] for key in message_ids if key in self._tasks]:
            first = min(tasks, key=lambda task: task.order)
            message_id = first.message.metadata.message_id
            if first.is_known:
                del self._tasks[message_id]
                return [self._finish(first)]
            (reply,) = self.grid.pull_messages([message_id])
            least = first.attempt.cost
            cost = self.costs.of_reply(first.stage, least, first.download_bytes, reply)
            first.learn(reply, cost)
        return []

    def _start(self, message: Message, download_bytes: int) -> FleetTask:
        partition_id = message.metadata.dst_node_id - FIRST_NODE_ID
        stage = Stage(str(message.content.config_records[REQUEST]["stage"]))
        self.costs.require_possible(stage, download_bytes)
        number = self._num_tasks[partition_id]
        self._num_tasks[partition_id] += 1
        return FleetTask(
            message=message,
            stage=stage,
            download_bytes=download_bytes,
            starts=self._resumed.pop(partition_id, self.clock.now()),
            limit=round_deadline(self.costs.config),
            attempt=self.costs.attempt(
                stage,
                partition_id,
                download_bytes,
                delay_seconds=float(self.emulation.delays(stage, number)[partition_id]),
                fails_at=float(self.emulation.failures(stage, number)[partition_id]),
            ),
        )

    def _finish(self, task: FleetTask) -> Message:
        self.clock.sleep(max(0.0, task.ends - self.clock.now()))
        self.ledger.record(task.attempt, task.virtual_seconds)
        if task.attempt.fate is Fate.TRAINED and task.reply is not None:
            return task.reply
        return self.dropped.answer(task.message, task.attempt, task.virtual_seconds)

    def give_up(self) -> None:
        """Charge devices for what they have done by now of tasks that nobody waits for any more.

        What a device does is known as far as the clock has come.
        """
        now = self.clock.now()
        tasks = sorted(self._tasks.values(), key=lambda task: task.attempt.partition_id)
        self._given_up = self.under_way
        self._tasks.clear()
        self.unfinished_joules += math.fsum(
            self.emulation.spend(task.attempt, now - task.starts) for task in tasks
        )

    def state(self) -> dict[str, Any]:
        """What is under way, and how many tasks each device had before it."""
        under_way = {task.attempt.partition_id: task.starts for task in self._tasks.values()}
        counts = {
            partition_id: count - (partition_id in under_way)
            for partition_id, count in self._num_tasks.items()
        }
        return {"starts": list(under_way.items()), "num_tasks": list(counts.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`: a task that was under way keeps its beginning."""
        self._resumed = dict(state["starts"])
        self._num_tasks = Counter(dict(state["num_tasks"]))
