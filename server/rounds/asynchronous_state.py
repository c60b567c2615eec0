"""What an asynchronous stage keeps of itself in a checkpoint, and how it goes on from it.

Devices that were training begin their tasks again, from the state and with the version of the model
that they had: what is random in a task derives from its position alone, so that the answer is the
same. In an emulation a task's time goes on where it was, too (a harness keeps its beginning).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from server.checkpoints.stage_start import Progress, arrays_under
from server.exchange.registry import DeviceRegistry, RegisteredDevice
from server.model.aggregation import State
from server.rounds.crew import Crew, Task, Version, publish
from server.strategies.fedbuff import UpdateBuffer
from server.strategies.stage_plan import StagePlan

_BUFFER = "buffer/"

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Where an asynchronous stage goes on."""

    num_steps: int
    buffer: UpdateBuffer
    version: Version
    """Of the global model, which the next device is sent."""
    num_draws: int
    tasks: list[Task]
    """In the order in which devices were asked."""


def to_progress(num_steps: int, buffer: UpdateBuffer, version: Version, crew: Crew) -> Progress:
    """What a checkpoint between two rounds has to hold."""
    versions = _distinct([*(task.version for task in crew.tasks), version])
    index_of = {id(item): index for index, item in enumerate(versions)}
    buffered, sums = buffer.state()
    arrays = {_BUFFER + name: values for name, values in sums.items()}
    for index, item in enumerate(versions):
        arrays |= {_prefix(index) + name: values for name, values in item.state.items()}
    return Progress(
        facts={
            "num_steps": num_steps,
            "num_draws": crew.num_draws,
            "buffer": buffered,
            "versions": [
                {
                    "round_index": item.request.round_index,
                    "num_steps": item.num_steps,
                    "asked": list(item.asked.items()),
                }
                for item in versions
            ],
            "version": index_of[id(version)],
            "tasks": [
                {
                    "device": asdict(task.device),
                    "version": index_of[id(task.version)],
                    "repetition": task.repetition,
                }
                for task in crew.tasks
            ],
        },
        arrays=arrays,
        busy_nodes=frozenset(task.device.node_id for task in crew.tasks),
    )


def from_progress(
    progress: Progress, plan: StagePlan, names: Iterable[str], registry: DeviceRegistry
) -> Continuation:
    """What :func:`to_progress` kept.

    Args:
        progress: of a checkpoint.
        plan: the stage.
        names: of a global state's entries, in the model's order, which payloads depend on.
        registry: real devices may have other node ids than before; those that are not there any
            more have no task. Emulated ones that are away go on with theirs.
    """
    facts, arrays, names = progress.facts, progress.arrays, list(names)
    versions = []
    for index, fact in enumerate(facts["versions"]):
        state: State = {name: arrays[_prefix(index) + name] for name in names}
        version = publish(plan, fact["round_index"], fact["num_steps"], state)
        versions.append(replace(version, asked=Counter(dict(fact["asked"]))))
    there = {device.partition_id: device for device in registry.devices}
    tasks = []
    for fact in facts["tasks"]:
        device = RegisteredDevice(**fact["device"])
        if device.emulated or device.partition_id in there:
            tasks.append(
                Task(
                    device=there.get(device.partition_id, device),
                    version=versions[fact["version"]],
                    repetition=fact["repetition"],
                )
            )
    return Continuation(
        num_steps=facts["num_steps"],
        buffer=UpdateBuffer.restored(facts["buffer"], arrays_under(_BUFFER, arrays)),
        version=versions[facts["version"]],
        num_draws=facts["num_draws"],
        tasks=tasks,
    )


def _distinct(versions: Iterable[Version]) -> list[Version]:
    return list({id(version): version for version in versions}.values())


def _prefix(index: int) -> str:
    return f"version-{index}/"
