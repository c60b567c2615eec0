"""Going on with a run that was killed: a checkpoint after every round, and the way back from it.

A checkpoint holds what the next round depends on: global state, the strategy's memory, the models
kept so far, which devices hold the teacher, and which model, how far metrics.jsonl had come and,
where devices are emulated, their states and what their harness remembers, its virtual clock for
one. Random streams derive from (seed, purpose, round, device): they need none.
Where devices are real, what they remember stays with them, and begins anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from common.config import QUANTIZED_BITS, Config
from common.errors import UserError
from common.events import log_event
from common.messages import Stage
from server.checkpoints.device_states import CHECKPOINT_FOLDER, DEVICE_FOLDER, DEVICE_SUFFIX
from server.checkpoints.snapshots import Snapshot, SnapshotError, SnapshotStore, restore_link
from server.checkpoints.stage_start import Progress, StageStart, arrays_under
from server.checkpoints.strategy_state import restore_strategy, strategy_state
from server.exchange.courier import Traffic
from server.model.aggregation import State
from server.records.recorder import (
    METRICS_FILE,
    SUMMARY_FILE,
    Recorder,
    file_digest,
    holds_files,
)
from server.strategies.packed_updates import PackedUpdates

MODEL_FILES = (
    "teacher.safetensors",
    *(f"{n}{s}" for n in ("best", "last") for s in (".safetensors", ".fqrc")),
    *(f"{n}-{bits}bit.fqrc" for n in ("best", "last") for bits in QUANTIZED_BITS),
)
VERSION = 1
FREE_SETTINGS = ("run.out", "run.resume", "run.tensorboard", "data.root")
"""Settings that may differ between a run and its continuation."""

_STATE, _STRATEGY, _PROGRESS = "state/", "strategy/", "progress/"
_HELD_SUFFIX = ".held"


def can_go_on(run_folder: Path, config: Config) -> bool:
    """Whether an emulated run in this folder can be resumed, its devices included.

    Raises:
        UserError: all of its checkpoints are damaged, or it was begun with other settings.
    """
    if not SnapshotStore(run_folder / CHECKPOINT_FOLDER).exists():
        return False
    resumed = replace(config, run=replace(config.run, resume=str(run_folder)))
    return Checkpoints(run_folder, resumed, note=lambda text: None).holds_devices


class Harness(Protocol):
    """What emulates hardware around the devices of a run."""

    deadline_seconds: float
    """How long it lets a device work, by its own clock, until it answers in the device's place."""

    def state(self) -> dict[str, Any]:
        """What the next round depends on, as JSON can hold it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            UserError: if it is of other hardware.
        """


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run_folder: of the run.
        config: of the run; with run.resume the newest good checkpoint is looked for.
        devices: where the states of emulated devices lie, or None.
        harness: of an emulation; gets its state back at once.
        note: told what a user should know, in a sentence.

    Raises:
        UserError: if there is nothing to go on with, all of it is damaged, or a setting differs.
    """

    def __init__(
        self,
        run_folder: Path,
        config: Config,
        *,
        devices: Path | None = None,
        harness: Harness | None = None,
        note: Callable[[str], None],
    ) -> None:
        self.run_folder = run_folder
        self.config = config
        self.devices = devices
        self.harness = harness
        self.note = note
        self.facts: dict[str, Any] = {}
        """Kept from one checkpoint to the next."""
        self._store = SnapshotStore(run_folder / CHECKPOINT_FOLDER)
        self._resumed: Snapshot | None = None
        if config.run.resume:
            self._find()

    @property
    def is_resuming(self) -> bool:
        """Whether the run folder may hold something already."""
        return bool(self.config.run.resume)

    @property
    def kept_bytes(self) -> int | None:
        """Bytes of metrics.jsonl that stand; None for a new run."""
        if not self.is_resuming:
            return None
        return self._resumed.facts["metrics_bytes"] if self._resumed else 0

    @property
    def earlier(self) -> Mapping[str, Any]:
        """The facts of the checkpoint that the run goes on from; empty without one."""
        return self._resumed.facts if self._resumed else {}

    def is_past(self, stage: Stage) -> bool:
        """Whether the run goes on after the last round of a stage, in a later one."""
        order = [item.value for item in Stage]
        return bool(self.earlier) and order.index(self.earlier["stage"]) > order.index(stage)

    @property
    def holds_devices(self) -> bool:
        """Whether the checkpoint has what devices remember: nothing before quantized rounds."""
        files = self._resumed.files if self._resumed else ()
        has_states = any(name.startswith(f"{DEVICE_FOLDER}/") for name in files)
        return has_states or self.earlier.get("stage") != Stage.QUANTIZED.value

    @property
    def has_busy_devices(self) -> bool:
        """Whether devices were training when the checkpoint was made."""
        return bool(self.earlier.get("busy_nodes"))

    def hold(self, node_id: int) -> None:
        """Hold a device's state as it is now, before a task that a checkpoint may interrupt."""
        if self.devices is None:
            return
        held = self.devices / f"{node_id}{_HELD_SUFFIX}"
        held.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # a device without any yet
            os.link(self.devices / f"{node_id}{DEVICE_SUFFIX}", held)

    def restore_files(self) -> None:
        """Put models and device states back; what an unfinished round left behind is removed."""
        if not self.is_resuming:
            return
        self._store.discard_after(self._resumed)
        if self.devices is not None:
            shutil.rmtree(self.devices, ignore_errors=True)
        for name in self._resumed.files if self._resumed else ():
            assert self._resumed is not None
            folder, _, file = name.rpartition("/")
            if folder != DEVICE_FOLDER:
                restore_link(self._resumed.folder / name, self.run_folder / file)
            elif self.devices is not None:
                restore_link(self._resumed.folder / name, self.devices / file)

    def start(self, stage: Stage, state: State, strategy: PackedUpdates) -> StageStart:
        """Where a stage begins: with ``state``, or after the checkpoint's round.

        The strategy gets its memory back.
        """
        if self._resumed is None or self.earlier["stage"] != stage.value:
            return StageStart(state=state)
        arrays = self._resumed.arrays
        restore_strategy(strategy, self.earlier["strategy"], arrays_under(_STRATEGY, arrays))
        return StageStart(
            # In the model's order, which payloads and their hashes depend on.
            state={name: arrays[_STATE + name] for name in state},
            num_done=self.earlier["round"],
            float32_bytes=self.earlier["float32_bytes"],
            progress=self._progress(),
        )

    def _progress(self) -> Progress | None:
        assert self._resumed is not None
        if "progress" not in self.earlier:
            return None
        return Progress(
            facts=self.earlier["progress"],
            arrays=arrays_under(_PROGRESS, self._resumed.arrays),
        )

    def save(
        self,
        stage: Stage,
        number: int,
        state: State,
        strategy: PackedUpdates,
        recorder: Recorder,
        *,
        float32_bytes: int,
        progress: Progress | None,
        teacher_partitions: list[int],
        model_at: Mapping[int, str],
        query_traffic: Traffic,
        wall_seconds: float,
    ) -> None:
        """A checkpoint after round ``number`` (from 1) of a stage.

        A disk that is full or fails costs the checkpoint, not the run.
        """
        attributes, memory = strategy_state(strategy, PackedUpdates.OWN_ATTRIBUTES)
        try:
            num_bytes, digest = recorder.sync()
            facts = {
                **self.facts,
                "version": VERSION,
                "settings": self.config.to_flat(),
                "stage": stage.value,
                "round": number,
                "metrics_bytes": num_bytes,
                "metrics_digest": digest,
                "float32_bytes": float32_bytes,
                "teacher_partitions": teacher_partitions,
                "model_at": list(model_at.items()),
                "query_traffic": asdict(query_traffic),
                "wall_seconds": wall_seconds,
                "strategy": attributes,
            }
            if self.harness is not None:
                facts["harness"] = self.harness.state()
            arrays = {_STATE + name: values for name, values in state.items()}
            arrays |= {_STRATEGY + name: values for name, values in memory.items()}
            if progress is not None:
                facts["progress"] = progress.facts
                facts["busy_nodes"] = sorted(progress.busy_nodes)
                arrays |= {_PROGRESS + name: values for name, values in progress.arrays.items()}
            busy_nodes = progress.busy_nodes if progress else frozenset()
            self._store.write(facts, arrays, self._links(busy_nodes))
            log_event("checkpoint-written", stage=stage.value, round=number)
        except OSError as error:
            self.note(f"no checkpoint of {stage} round {number}: {error.strerror or error}")

    def clear(self) -> None:
        """Remove all checkpoints: the run is over."""
        shutil.rmtree(self.run_folder / CHECKPOINT_FOLDER, ignore_errors=True)

    def _links(self, busy_nodes: Collection[int]) -> dict[str, Path]:
        files = [self.run_folder / name for name in MODEL_FILES]
        links = {path.name: path for path in files if path.exists()}
        if self.devices is not None and self.devices.is_dir():
            busy = {f"{node_id}{DEVICE_SUFFIX}" for node_id in busy_nodes}
            with os.scandir(self.devices) as entries:
                for entry in entries:
                    name = entry.name.replace(_HELD_SUFFIX, DEVICE_SUFFIX)
                    wanted = _HELD_SUFFIX if name in busy else DEVICE_SUFFIX
                    if entry.name.endswith(wanted):
                        links[f"{DEVICE_FOLDER}/{name}"] = Path(entry.path)
        return links

    def _find(self) -> None:
        folder = self.run_folder
        if (folder / SUMMARY_FILE).exists():
            raise UserError(f"run.resume = '{folder}': this run is over, there is {SUMMARY_FILE}")
        if not self._store.exists():
            if (folder / METRICS_FILE).exists():
                self.note(f"{folder}: no round of this run was finished: it begins anew")
            elif folder.exists() and holds_files(folder):
                raise UserError(f"run.resume = '{folder}': expected the folder of a run")
            else:
                self.note(f"{folder}: there is no run to go on with: a new one begins")
            return
        snapshot = self._store.newest(self._check, self._say_damaged)
        if snapshot is None:
            raise UserError(f"run.resume = '{folder}': none of its checkpoints can be read")
        self._compare_settings(snapshot.facts["settings"])
        self._resumed = snapshot
        if self.harness is not None:
            self.harness.restore(snapshot.facts["harness"])
        kept = ("before", "teacher_hash", "data_fingerprint")
        self.facts = {name: snapshot.facts[name] for name in kept if name in snapshot.facts}
        log_event("run-resumed", stage=snapshot.facts["stage"], round=snapshot.facts["round"])
        self.note(f"going on after {snapshot.facts['stage']} round {snapshot.facts['round']}")
        if self.devices is None:
            self.note("devices that were started anew choose new coresets; their error is not fed")

    def _check(self, snapshot: Snapshot) -> None:
        if snapshot.facts.get("version") != VERSION:
            raise SnapshotError(f"version {snapshot.facts.get('version')}: expected {VERSION}")
        path, num_bytes = self.run_folder / METRICS_FILE, snapshot.facts["metrics_bytes"]
        if file_digest(path, num_bytes) != snapshot.facts["metrics_digest"]:
            raise SnapshotError(f"{METRICS_FILE} is not the one that it goes with")

    def _say_damaged(self, name: str, reason: str) -> None:
        self.note(f"checkpoint {name} is damaged ({reason}): trying the one before")

    def _compare_settings(self, recorded: Mapping[str, Any]) -> None:
        current = self.config.to_flat()
        # A run that is older than a setting did what the setting's default does.
        recorded = {**Config().to_flat(), **recorded}
        for key in sorted(current.keys() | recorded.keys()):
            if key not in FREE_SETTINGS and current.get(key) != recorded.get(key):
                raise UserError(
                    f"{key} = {current.get(key)!r}: the run in '{self.run_folder}' has "
                    f"{recorded.get(key)!r}, and goes on with the same settings only"
                )
