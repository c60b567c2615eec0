"""One message to a ClientApp: with the state of its node, in this or in a worker process.

A node's state (Flower's Context.state) lies in a file of its own between two messages, so that any
process can run any node, a process that dies loses nothing, and idle nodes take no memory.
"""

from __future__ import annotations

import importlib
import os
import pickle
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from common.atomic_file import replacing
from server.checkpoints.device_states import DEVICE_SUFFIX
from simulations.engines.allocator import keep_freed_memory
from simulations.engines.terminated import Terminated

FIRST_NODE_ID = 2
"""Node id of partition 0; Flower keeps 0 and 1 for itself."""

READY = b"ready"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The emulated devices: what every process that runs them has to know."""

    client_app: str
    """Where the ClientApp is: ``module:attribute``."""
    num_nodes: int
    run_config: Mapping[str, bool | int | float | str]
    run_id: int
    threads: int
    """Torch threads of a process while it runs the ClientApp."""
    state_folder: Path
    """Where the nodes' states are kept between messages."""
    node_config: Mapping[int, Mapping[str, bool | int | float | str]] = field(default_factory=dict)
    """Partition id -> what that device's operator says about it."""

    def load(self) -> ClientApp:
        """The ClientApp that every node runs.

        Raises:
            ImportError, AttributeError: if there is nothing at ``client_app``.
            TypeError: if it is no ClientApp.
        """
        module_name, _, attribute = self.client_app.partition(":")
        app = getattr(importlib.import_module(module_name), attribute)
        if not isinstance(app, ClientApp):
            raise TypeError(f"{self.client_app} is a {type(app).__name__}, no ClientApp")
        return app

    def state_file(self, node_id: int) -> Path:
        """The file that keeps one node's state."""
        return self.state_folder / f"{node_id}{DEVICE_SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one message."""

    reply: Message
    failure: str = ""
    """The traceback when the ClientApp raised."""


def run_message(app: ClientApp, fleet: Fleet, request: bytes) -> bytes:
    """Hand a pickled message to the ClientApp; the pickled `Outcome`.

    An exception becomes an error reply and leaves the node's state as it was, both as in Flower's
    Simulation Runtime.
    """
    message: Message = pickle.loads(request)
    node_id = message.metadata.dst_node_id
    state_file = fleet.state_file(node_id)
    kept = state_file.read_bytes() if state_file.exists() else b""
    context = Context(
        run_id=fleet.run_id,
        node_id=node_id,
        node_config={
            PARTITION_ID_KEY: node_id - FIRST_NODE_ID,
            NUM_PARTITIONS_KEY: fleet.num_nodes,
            **fleet.node_config.get(node_id - FIRST_NODE_ID, {}),
        },
        state=recorddict_from_proto(ProtoRecordDict.FromString(kept)),
        run_config=dict(fleet.run_config),
    )
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp answered with a {type(reply).__name__}, no Message")
        outcome = pickle.dumps(Outcome(reply=reply))
        state = recorddict_to_proto(context.state).SerializeToString()
    except Terminated:
        raise  # this process is to end (a run without workers): no fault of the device
    except (Exception, SystemExit) as error:
        return pickle.dumps(
            Outcome(
                reply=error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, describe(error)),
                failure=traceback.format_exc(),
            )
        )
    if state != kept:
        with replacing(state_file) as temporary:
            temporary.write_bytes(state)
    return outcome


def error_reply(message: Message, code: int, reason: str) -> Message:
    """Flower's answer to a message that could not be handled."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def describe(error: BaseException) -> str:
    """An exception in one line: type, message, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {error} ({where})"


def serve(fleet: Fleet, requests: connection.Connection) -> None:
    """The main function of a worker process: answer messages until the pipe closes.

    It closes by itself, or breaks in the middle of an answer, when the parent is killed.
    """
    import torch  # see WorkerPool on why late

    keep_freed_memory()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(fleet.threads)
    app = fleet.load()
    requests.send_bytes(READY)
    while True:
        try:
            requests.send_bytes(run_message(app, fleet, requests.recv_bytes()))
        except (EOFError, ConnectionError):
            return


def _exit_with_parent() -> None:
    """No orphans: a parent that was killed cannot end its workers, busy ones least of all."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
