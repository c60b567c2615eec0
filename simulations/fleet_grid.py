"""A Grid between the server and the engine's grid that gives devices emulated hardware.

Training is real, its duration is not: each train message takes the virtual time of receiving its
actual bytes, of computing what the reply says was computed, and of sending the reply's bytes.
Devices that are away are not among the grid's nodes; devices that break off or are late answer
with an error that says so. Those that are dropped whatever they would do are not trained. Queries
and evaluations on devices are the harness's own measurements: they take no virtual time.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from client.deadline import round_deadline
from common.config import Config
from common.devices import TaskCost, task_cost
from common.errors import UserError
from common.messages import NUM_EXAMPLES, REQUEST, Reply, Stage, message_bytes
from server.grid_view import GridView
from simulations.clock import VirtualClock
from simulations.emulation import (
    Attempt,
    Emulation,
    Fate,
    doomed,
    require_possible,
    settle_attempts,
)
from simulations.fleet_task import FleetTask
from simulations.worker import FIRST_NODE_ID
from simulations.workload import Workload

CLASS_ACCURACY = "class_accuracy"


class FleetGrid(GridView):
    """Emulated hardware around the grid of an engine.

    Args:
        grid: runs the messages; its nodes are numbered by partition id from `FIRST_NODE_ID`. For
            messages that are pushed, it has to wait for the reply that it is asked for.
        emulation: the devices.
        config: of the run.
        workload: what tasks compute.
        num_classes: of the data set.
        clock: passes with every round.
        unable: partition ids of the devices that don't have the memory to train.
    """

    def __init__(
        self,
        grid: Grid,
        emulation: Emulation,
        config: Config,
        workload: Workload,
        *,
        num_classes: int,
        clock: VirtualClock,
        unable: Collection[int] = (),
    ) -> None:
        super().__init__(grid)
        self.emulation = emulation
        self.config = config
        self.workload = workload
        self.num_classes = num_classes
        self.clock = clock
        self.unable = unable
        self._num_samples: dict[int, int] = {}
        """Partition id -> training images, from the replies to queries."""
        self._numbers = itertools.count(1)
        self._figures: dict[int, dict[str, Any]] = {}
        """Partition id -> figures of a device that was asked, until its line is written."""
        self._told: list[dict[str, Any]] = []
        """The figures of the device lines since the last round line."""
        self._tasks: dict[str, FleetTask] = {}
        """Message id -> what a device is doing on its own."""
        self._num_tasks: Counter[int] = Counter()
        """Partition id -> tasks of its own so far."""
        self._round_start = 0.0
        self._away: list[int] = []
        self._participation: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._evaluated: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._evaluated_round = (Stage.FLOAT.value, 0)

    def get_node_ids(self) -> list[int]:
        """The nodes of the devices that are there now and can train: at a run's bits, in memory."""
        available = self.emulation.available(self.clock.now())
        bits = set(self.config.device_bits)
        return [
            FIRST_NODE_ID + partition_id
            for partition_id in available.nonzero()[0].tolist()
            if not bits.isdisjoint(self.emulation.profile(partition_id).weight_bits)
            and partition_id not in self.unable
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and receive what comes back in virtual time; ``timeout`` is not needed."""
        messages = list(messages)
        if messages and messages[0].metadata.message_type == MessageType.TRAIN:
            return self._train(messages)
        replies = list(self.grid.send_and_receive(messages, timeout=None))
        for reply in replies:
            if reply.metadata.message_type == MessageType.QUERY and reply.has_content():
                metrics = Reply.from_record(reply.content).metrics
                self._num_samples[_partition_of(reply)] = int(metrics.get("num-samples", 0))
        return replies

    def _train(self, messages: list[Message]) -> list[Message]:
        """One round, or the second try of it with devices that had lost the teacher."""
        request = messages[0].content.config_records[REQUEST]
        stage, round_index = Stage(str(request["stage"])), int(str(request["round-index"]))
        deadline = self.config.fleet.deadline
        self._note_away({m.metadata.dst_node_id for m in messages})
        failures = self.emulation.failures(stage, round_index)
        delays = self.emulation.delays(stage, round_index)
        sizes = _message_sizes(messages)
        attempts: dict[int, Attempt] = {}
        for message in messages:
            node_id = message.metadata.dst_node_id
            delay = float(delays[node_id - FIRST_NODE_ID])
            least = self._least_cost(stage, node_id - FIRST_NODE_ID, sizes[node_id])
            cost = replace(least, virtual_delay_seconds=delay)
            attempts[node_id] = Attempt(
                partition_id=node_id - FIRST_NODE_ID,
                cost=cost,
                fails_after=float(failures[node_id - FIRST_NODE_ID]) * cost.virtual_seconds,
            )
        self._require_possible(stage, max(sizes.values()), deadline)
        alive = [m for m in messages if not doomed(attempts[m.metadata.dst_node_id], deadline)]
        replies = {
            reply.metadata.src_node_id: reply
            for reply in (self.grid.send_and_receive(alive, timeout=None) if alive else ())
        }
        for node_id, reply in replies.items():
            least = attempts[node_id].cost
            attempts[node_id] = replace(
                attempts[node_id], cost=self._cost(stage, least, sizes[node_id], reply)
            )

        num_wanted = math.ceil(len(messages) / self.config.fleet.over_selection)
        settled, round_seconds = settle_attempts(
            list(attempts.values()), num_wanted=num_wanted, deadline=deadline
        )
        self.clock.sleep(round_seconds)
        for attempt in settled:
            self._record(attempt, round_seconds)
        fates = {FIRST_NODE_ID + attempt.partition_id: attempt for attempt in settled}
        return [
            replies[node_id]
            if fates[node_id].fate is Fate.TRAINED and node_id in replies
            else self._dropped(message, fates[node_id], round_seconds)
            for message in messages
            for node_id in [message.metadata.dst_node_id]
        ]

    def _least_cost(self, stage: Stage, partition_id: int, download_bytes: int) -> TaskCost:
        num_samples = self._num_samples.get(partition_id, 0)
        return task_cost(
            self.emulation.profile(partition_id),
            flops=self.workload.least(stage, num_samples, self.num_classes),
            download_bytes=download_bytes,
            upload_bytes=0,
        )

    def _cost(self, stage: Stage, least: TaskCost, download_bytes: int, reply: Message) -> TaskCost:
        """What the task cost, from the reply; an error reply tells nothing of its work."""
        if not reply.has_content():
            return least
        partition_id = _partition_of(reply)
        metrics = Reply.from_record(reply.content).metrics
        return task_cost(
            self.emulation.profile(partition_id),
            flops=self.workload.of_reply(stage, metrics, self._num_samples.get(partition_id, 0)),
            download_bytes=download_bytes,
            upload_bytes=message_bytes(reply),
            delay_seconds=least.virtual_delay_seconds,
        )

    def _require_possible(self, stage: Stage, download_bytes: int, deadline: float) -> None:
        """Look at all devices that are known, not only at those of this round."""
        if not deadline:
            return
        attempts = [
            Attempt(partition_id=i, cost=self._least_cost(stage, i, download_bytes))
            for i in sorted(self._num_samples)
        ]
        names = [self.emulation.profile(a.partition_id).class_name for a in attempts]
        require_possible(attempts, names, deadline)

    def _note_away(self, asked: set[int]) -> None:
        there = {*self.get_node_ids(), *asked}
        self._away = [
            partition_id
            for partition_id in range(self.emulation.num_devices)
            if FIRST_NODE_ID + partition_id not in there
        ]

    def _record(self, attempt: Attempt, round_seconds: float) -> None:
        energy = self.emulation.spend(attempt, round_seconds)
        profile = self.emulation.profile(attempt.partition_id)
        self._participation[profile.class_name][attempt.fate] += 1
        before = self._figures.get(attempt.partition_id, {})
        self._figures[attempt.partition_id] = {
            "device_class": profile.class_name,
            "fate": attempt.fate.value,
            "virtual_seconds": before.get("virtual_seconds", 0.0) + attempt.virtual_seconds,
            "virtual_download_seconds": attempt.cost.virtual_download_seconds,
            "virtual_compute_seconds": attempt.cost.virtual_compute_seconds,
            "virtual_upload_seconds": attempt.cost.virtual_upload_seconds,
            "joules": before.get("joules", 0.0) + energy,
        }

    def _dropped(self, message: Message, attempt: Attempt, round_seconds: float) -> Message:
        """The error in place of a reply that the server does not get."""
        self._number(message)
        took = f"{attempt.virtual_seconds:.4g} virtual seconds"
        reasons = {
            Fate.LATE: f"late: at least {took}, the deadline is {round_deadline(self.config):g}",
            Fate.SURPLUS: f"surplus: {took}, enough others took {round_seconds:.4g}",
            Fate.FAILED: f"broke off after {took}",
        }
        reason = reasons.get(attempt.fate, "the device failed")
        return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason=reason), reply_to=message)

    def _number(self, message: Message) -> None:
        """Give an id to a message that is not handed to the engine, which numbers what it sends."""
        if not message.metadata.message_id:
            message.metadata.__dict__["_message_id"] = f"dropped-{next(self._numbers)}"

    def annotate(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Virtual figures of a recorded line (a `server.recorder.Annotate`)."""
        if line["kind"] == "device":
            return self._device_figures(line)
        if line["kind"] == "round":
            return self._round_figures(line)
        return self._summary_figures()

    def _device_figures(self, line: Mapping[str, Any]) -> dict[str, Any]:
        partition_id = line["partition_id"]
        class_name = self.emulation.profile(partition_id).class_name
        if line["task"] == "train":
            self._told.append(self._figures.pop(partition_id))
            return self._told[-1]
        if self._evaluated_round != (line["stage"], line["round"]):
            self._evaluated_round = (line["stage"], line["round"])
            self._evaluated.clear()
        for name in ("correct", NUM_EXAMPLES.replace("-", "_")):
            self._evaluated[class_name][name] += line.get(name, 0)
        return {"device_class": class_name}

    def _round_figures(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Of a round and the waiting for devices before it; forgets the devices' figures."""
        figures, self._told = self._told, []
        now = self.clock.now()
        passed, self._round_start = now - self._round_start, now
        result = {
            "virtual_seconds": passed,
            "virtual_clock_seconds": now,
            "joules": math.fsum(figure["joules"] for figure in figures),
            "fates": dict(sorted(Counter(figure["fate"] for figure in figures).items())),
            "away": self._away,
        }
        if self._evaluated_round == (line["stage"], line["round"]):
            result[CLASS_ACCURACY] = self._class_accuracy()
        return result

    def _summary_figures(self) -> dict[str, Any]:
        return {
            "fleet": self.emulation.fleet.name,
            "virtual_seconds": self.clock.now(),
            "joules": math.fsum(self.emulation.spent_joules),
            CLASS_ACCURACY: self._class_accuracy(),
            "class_participation": {
                profile.class_name: dict(sorted(self._participation[profile.class_name].items()))
                for profile in self.emulation.fleet.profiles
            },
        }

    def _class_accuracy(self) -> dict[str, float]:
        """Top-1 in percent of each class's devices on their own images, last measured."""
        return {
            name: 100.0 * counts["correct"] / counts["num_examples"]
            for name, counts in sorted(self._evaluated.items())
            if counts["num_examples"]
        }

    def state(self) -> dict[str, Any]:
        """What the rounds to come depend on, between two rounds (a `server.resumption.Harness`)."""
        return {
            "fleet": self.emulation.fleet.fingerprint,
            "virtual_clock_seconds": self.clock.now(),
            "virtual_round_start_seconds": self._round_start,
            "spent_joules": self.emulation.spent_joules.tolist(),
            "num_samples": list(self._num_samples.items()),
            "participation": self._participation,
            "evaluated": self._evaluated,
            "evaluated_round": self._evaluated_round,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, at the beginning.

        Raises:
            UserError: if the fleet is another one than that of the state.
        """
        if state["fleet"] != self.emulation.fleet.fingerprint:
            raise UserError(
                f"fleet {self.emulation.fleet.name}: a class was changed since the run began, "
                f"which goes on with the same fleet only"
            )
        self.clock.sleep(state["virtual_clock_seconds"])
        self._round_start = state["virtual_round_start_seconds"]
        self.emulation.spent_joules[:] = state["spent_joules"]
        self._num_samples = dict(state["num_samples"])
        for name, counts in state["participation"].items():
            self._participation[name].update(counts)
        for name, counts in state["evaluated"].items():
            self._evaluated[name].update(counts)
        stage, number = state["evaluated_round"]
        self._evaluated_round = (stage, number)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have devices train, each on its own, from now on; see `FleetTask`.

        Args:
            messages: train requests.
        """
        messages = list(messages)
        sizes = _message_sizes(messages)
        for message in messages:
            task = self._start(message, sizes[message.metadata.dst_node_id])
            if task.is_known:
                self._number(message)
            else:
                self.grid.push_messages([message])
            self._tasks[message.metadata.message_id] = task
        self._note_away({task.message.metadata.dst_node_id for task in self._tasks.values()})
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
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
            first.learn(reply, self._cost(first.stage, least, first.download_bytes, reply))
        return []

    def _start(self, message: Message, download_bytes: int) -> FleetTask:
        partition_id = message.metadata.dst_node_id - FIRST_NODE_ID
        stage = Stage(str(message.content.config_records[REQUEST]["stage"]))
        self._require_possible(stage, download_bytes, self.config.fleet.deadline)
        number = self._num_tasks[partition_id]
        self._num_tasks[partition_id] += 1
        delay = float(self.emulation.delays(stage, number)[partition_id])
        least = self._least_cost(stage, partition_id, download_bytes)
        cost = replace(least, virtual_delay_seconds=delay)
        fails_after = float(self.emulation.failures(stage, number)[partition_id])
        return FleetTask(
            message=message,
            stage=stage,
            download_bytes=download_bytes,
            starts=self.clock.now(),
            limit=round_deadline(self.config),
            attempt=Attempt(
                partition_id=partition_id,
                cost=cost,
                fails_after=fails_after * cost.virtual_seconds,
            ),
        )

    def _finish(self, task: FleetTask) -> Message:
        self.clock.sleep(max(0.0, task.ends - self.clock.now()))
        self._record(task.attempt, task.virtual_seconds)
        if task.attempt.fate is Fate.TRAINED and task.reply is not None:
            return task.reply
        return self._dropped(task.message, task.attempt, task.virtual_seconds)


def _partition_of(message: Message) -> int:
    return message.metadata.src_node_id - FIRST_NODE_ID


def _message_sizes(messages: Iterable[Message]) -> dict[int, int]:
    """Node id -> bytes of its message; messages share few contents, each is measured once."""
    by_content: dict[int, int] = {}
    sizes = {}
    for message in messages:
        content = id(message.content)
        if content not in by_content:
            by_content[content] = message_bytes(message)
        sizes[message.metadata.dst_node_id] = by_content[content]
    return sizes
