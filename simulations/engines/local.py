"""The in-process engine: Flower's Grid over emulated devices, without Flower's Ray backend.

It runs the same ServerApp and ClientApp as Flower's Simulation Runtime and keeps its rules (see
flwr/server/superlink/fleet/vce/vce_api.py): one Context per node, whose state survives the rounds,
and error replies for ClientApps that fail. Replies come ordered by partition id. Messages do not
expire: everything is on one machine, and `send_and_receive` has its timeout.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.engines.pool import InProcessPool, Pool, WorkerPool
from simulations.engines.worker import FIRST_NODE_ID, Fleet, Outcome

logger = logging.getLogger(__name__)

RUN_ID = 1

ReplyListener = Callable[[int, int], None]
"""Called with the number of replies so far and of those expected."""


class LocalGrid(Grid):
    """A Grid whose nodes are emulated on this machine; a context manager that cleans up.

    Args:
        client_app: Where the ClientApp is: ``module:attribute``.
        run_config: The run config in every node's Context.
        num_nodes: How many devices are emulated; node ``partition_id + 2`` has that partition id.
        num_workers: Worker processes; 0: everything in this process, one device at a time.
        threads: Torch threads of a process while it runs the ClientApp.
        on_reply: Told about every reply while `send_and_receive` waits.
        node_config: Partition id -> more of that node's config.
        state_folder: Where the nodes' states are kept between messages, removed by `close` once a
            node has trained: before, they may be those of another run, which goes on there. None:
            in a temporary folder.
        in_order: `pull_messages` waits for the reply to the first of the messages that it is asked
            for and gives that one alone. What a server does then is the same for any number of
            workers.

    Raises:
        ImportError, AttributeError, TypeError: if there is no ClientApp at ``client_app``.
    """

    def __init__(
        self,
        *,
        client_app: str,
        run_config: Mapping[str, bool | int | float | str],
        num_nodes: int,
        num_workers: int,
        threads: int = 1,
        on_reply: ReplyListener | None = None,
        node_config: Mapping[int, Mapping[str, bool | int | float | str]] | None = None,
        state_folder: Path | None = None,
        in_order: bool = False,
    ) -> None:
        _identify_as_server()
        self._run = Run.create_empty(RUN_ID)
        self._owns_states = state_folder is None
        self._state_folder = state_folder or Path(tempfile.mkdtemp(prefix="fedquarc-states-"))
        fleet = Fleet(
            client_app=client_app,
            num_nodes=num_nodes,
            run_config=dict(run_config),
            run_id=RUN_ID,
            threads=threads,
            state_folder=self._state_folder,
            node_config=node_config or {},
        )
        try:
            self._pool: Pool = (
                WorkerPool(fleet, num_workers) if num_workers else InProcessPool(fleet)
            )
        except BaseException:
            self._forget_states()
            raise
        self._num_nodes = num_nodes
        self._in_order = in_order
        self._on_reply = on_reply or (lambda num_replies, num_messages: None)
        self._message_numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes and forget the nodes' states, if they are this grid's."""
        self._pool.close()
        self._forget_states()

    def _forget_states(self) -> None:
        if self._owns_states:
            shutil.rmtree(self._state_folder, ignore_errors=True)

    def set_run(self, run: Run) -> None:
        """Set the run that `run` tells about."""
        self._run = run

    @property
    def run(self) -> Run:
        """A copy of the run's information."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node (Flower's older way to say ``Message(...)``)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes, in the order of their partition ids."""
        return list(range(FIRST_NODE_ID, FIRST_NODE_ID + self._num_nodes))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; the ids to ask for their replies with.

        Raises:
            ValueError: if a message goes to a node that is not there.
        """
        nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + self._num_nodes)
        message_ids = []
        for message in messages:
            if message.metadata.dst_node_id not in nodes:
                raise ValueError(
                    f"message to node {message.metadata.dst_node_id}: expected a node id from "
                    f"{nodes.start} to {nodes.stop - 1}"
                )
            self._owns_states |= message.metadata.message_type == MessageType.TRAIN
            message_id = self._stamp(message)
            message_ids.append(message_id)
            self._pool.submit(message)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there by now, or, in order, the first one; each is given once."""
        if self._in_order:
            return self._take(self._wait_for(message_ids))
        while outcomes := self._pool.collect(timeout=0.0):
            self._keep(outcomes)
        return self._take(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for the replies, at most ``timeout`` seconds (None: forever).

        Nodes that have not answered by then have no reply, and what they were doing is dropped.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        message_ids = self.push_messages(messages)
        missing = set(message_ids)
        while missing and (remaining := deadline - time.monotonic()) > 0:
            outcomes = self._pool.collect(None if math.isinf(remaining) else remaining)
            if time.monotonic() < deadline:
                missing -= self._keep(outcomes)
                self._on_reply(len(message_ids) - len(missing), len(message_ids))
        self._pool.cancel(missing)
        return self._take(message_ids)

    def _wait_for(self, message_ids: Iterable[str]) -> list[str]:
        """The first of the ids, once its reply is there or nothing is being run any more."""
        first = list(message_ids)[:1]
        while not self._replies.keys() >= set(first):
            outcomes = self._pool.collect(None)
            if not outcomes:
                break
            self._keep(outcomes)
        return first

    def _stamp(self, message: Message) -> str:
        """Give a message its id; Flower's own grids set it in the same way."""
        message_id = str(next(self._message_numbers))
        message.metadata.__dict__["_message_id"] = message_id
        return message_id

    def _keep(self, outcomes: list[Outcome]) -> set[str]:
        """Keep replies until they are asked for; the ids of what they answer."""
        for outcome in outcomes:
            reply = outcome.reply
            self._stamp(reply)
            self._replies[reply.metadata.reply_to_message_id] = reply
            if outcome.failure:
                partition_id = reply.metadata.src_node_id - FIRST_NODE_ID
                logger.debug("device %d failed:\n%s", partition_id, outcome.failure)
        return {outcome.reply.metadata.reply_to_message_id for outcome in outcomes}

    def _take(self, message_ids: Iterable[str]) -> list[Message]:
        replies = [self._replies.pop(key) for key in message_ids if key in self._replies]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def _identify_as_server() -> None:
    """Say who sends: Message(...) asks Flower's process-wide identity, an internal interface."""
    TaskIdentity.task_id = RUN_ID
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
