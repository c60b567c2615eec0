"""A Grid between the server and the engine's grid that gives devices emulated hardware.

Training is real, its duration is not: each train message takes the virtual time of receiving its
actual bytes, of computing what the reply says was computed, and of sending the reply's bytes.
Devices that are away are not among the grid's nodes; devices that break off or are late answer
with an error that says so. Those that are dropped whatever they would do are not trained. Queries
and evaluations on devices are the harness's own measurements: they take no virtual time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from client.deadline import round_deadline
from common.config import Config
from common.errors import UserError
from common.messages import REQUEST, Stage
from server.exchange.grid_view import GridView
from server.records.summary import UNFINISHED_DEVICES
from server.requirements import required_replies
from simulations.emulation.clock import VirtualClock
from simulations.emulation.costs import FleetCosts, message_sizes
from simulations.emulation.drops import Dropped
from simulations.emulation.hardware import Attempt, Emulation, Fate, doomed, settle_attempts
from simulations.emulation.ledger import FleetLedger
from simulations.emulation.settling import replies_wanted
from simulations.emulation.tasks import FleetTasks
from simulations.emulation.workload import Workload
from simulations.engines.worker import FIRST_NODE_ID


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
        self.clock = clock
        self.unable = unable
        self.deadline_seconds = round_deadline(config)
        self.costs = FleetCosts(emulation, config, workload, num_classes)
        self.ledger = FleetLedger(emulation, clock)
        self._num_required = required_replies(config)
        self._dropped = Dropped(config)
        self._tasks = FleetTasks(grid, self.costs, self.ledger, clock, self._dropped)

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
                self.costs.learn_samples(reply)
        return replies

    def _train(self, messages: list[Message]) -> list[Message]:
        """One round, or the second try of it with devices that had lost the teacher."""
        request = messages[0].content.config_records[REQUEST]
        stage, round_index = Stage(str(request["stage"])), int(str(request["round-index"]))
        deadline = self.config.fleet.deadline
        self._tasks.give_up()  # common rounds begin once nobody waits for single devices any more
        self._note_away({m.metadata.dst_node_id for m in messages})
        failures = self.emulation.failures(stage, round_index)
        delays = self.emulation.delays(stage, round_index)
        sizes = message_sizes(messages)
        attempts: dict[int, Attempt] = {}
        for message in messages:
            node_id = message.metadata.dst_node_id
            partition_id = node_id - FIRST_NODE_ID
            attempts[node_id] = self.costs.attempt(
                stage,
                partition_id,
                sizes[node_id],
                delay_seconds=float(delays[partition_id]),
                fails_at=float(failures[partition_id]),
            )
        self.costs.require_possible(stage, max(sizes.values()))
        alive = [m for m in messages if not doomed(attempts[m.metadata.dst_node_id], deadline)]
        replies = {
            reply.metadata.src_node_id: reply
            for reply in (self.grid.send_and_receive(alive, timeout=None) if alive else ())
        }
        for node_id, reply in replies.items():
            least = attempts[node_id].cost
            attempts[node_id] = replace(
                attempts[node_id], cost=self.costs.of_reply(stage, least, sizes[node_id], reply)
            )

        num_wanted = replies_wanted(
            len(messages), self.config.fleet.over_selection, self._num_required
        )
        settled, round_seconds = settle_attempts(
            list(attempts.values()), num_wanted=num_wanted, deadline=deadline
        )
        self.clock.sleep(round_seconds)
        for attempt in settled:
            self.ledger.record(attempt, round_seconds)
        fates = {FIRST_NODE_ID + attempt.partition_id: attempt for attempt in settled}
        return [
            replies[node_id]
            if fates[node_id].fate is Fate.TRAINED and node_id in replies
            else self._dropped.answer(message, fates[node_id], round_seconds)
            for message in messages
            for node_id in [message.metadata.dst_node_id]
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have devices train, each on its own, from now on.

        Args:
            messages: train requests.
        """
        messages = list(messages)
        sizes = message_sizes(messages)
        has_new = not all(map(self._tasks.is_resumed, messages))
        for message in messages:
            self._tasks.push(message, sizes[message.metadata.dst_node_id])
        if has_new:
            self._note_away(self._tasks.busy_nodes)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply, or the error in its place, that comes first: virtual time passes until then.

        Empty where none of these messages is waited for.
        """
        return self._tasks.pull(message_ids)

    def _note_away(self, asked: set[int]) -> None:
        there = {*self.get_node_ids(), *asked}
        self.ledger.away = [
            partition_id
            for partition_id in range(self.emulation.num_devices)
            if FIRST_NODE_ID + partition_id not in there
        ]

    def annotate(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Virtual figures of a recorded line (a `server.records.recorder.Annotate`)."""
        if line["kind"] == "device":
            return self.ledger.of_device(line)
        if line["kind"] == "round":
            figures = self.ledger.of_round(line)
            if under_way := self._tasks.under_way:
                figures["under_way"] = under_way
            if UNFINISHED_DEVICES in line:
                self._tasks.give_up()
                figures["unfinished_joules"] = self._tasks.unfinished_joules
            return figures
        return self.ledger.of_summary()

    def state(self) -> dict[str, Any]:
        """What the rounds to come depend on (a `server.checkpoints.resumption.Harness`)."""
        return {
            "fleet": self.emulation.fleet.fingerprint,
            "num_samples": list(self.costs.num_samples.items()),
            "tasks": self._tasks.state(),
            **self.ledger.state(),
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
        self.costs.num_samples = dict(state["num_samples"])
        self.ledger.restore(state)
        self._tasks.restore(state["tasks"])
