"""Real devices in this process: the ClientApp on folders of images, every byte kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from common.settings import Scalar


class LocalFleet:
    """Answers messages as the devices whose images are in ``folders``; see `FakeGrid`."""

    def __init__(
        self,
        folders: Mapping[int, Path],
        run_config: Mapping[str, Scalar],
        node_config: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.traffic: list[bytes] = []
        """Everything that went over the wire, both ways, as it is serialized."""
        self.contexts = {
            partition_id: Context(
                run_id=1,
                node_id=100 + partition_id,
                node_config={
                    "partition-id": partition_id,
                    "data-dir": str(folder),
                    **(node_config or {}),
                },
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition_id, folder in folders.items()
        }

    def __call__(self, partition_id: int, message: Message) -> RecordDict | Error:
        """The device's answer, an exception turned into an error as Flower does."""
        self.traffic.append(serialized(message))
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        try:
            reply = app(message, self.contexts[partition_id])
        except Exception as error:
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        self.traffic.append(serialized(reply))
        return reply.content if reply.has_content() else reply.error

    def restart(self, partition_id: int) -> None:
        """Forget what a SuperNode's process forgets."""
        self.contexts[partition_id].state = RecordDict()


def serialized(message: Message) -> bytes:
    """All bytes of a message: its metadata and its content, or its error."""
    parts = [repr(vars(message.metadata)).encode()]
    if message.has_content():
        parts += [part.deflate() for part in get_all_nested_objects(message.content).values()]
    else:
        parts.append(f"{message.error.code} {message.error.reason}".encode())
    return b"\0".join(parts)
