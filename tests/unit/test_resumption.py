"""Tests of server.checkpoints.resumption; whole runs that go on are in tests/golden/test_resume."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.atomic_file import replacing
from common.config import Config
from common.errors import UserError
from common.messages import Stage
from server.checkpoints.device_states import CHECKPOINT_FOLDER, device_folder
from server.checkpoints.resumption import VERSION, Checkpoints, can_go_on
from server.checkpoints.snapshots import SnapshotStore
from server.checkpoints.stage_start import Progress
from server.exchange.courier import Traffic
from server.records.recorder import METRICS_FILE, Recorder, claimed, file_digest
from tests.conftest import largest_file
from tests.unit.test_strategy_state import new_strategy


def write_checkpoint(
    folder: Path, stage: str, *, with_device: bool, without: str | None = None, **changes: Any
) -> None:
    """The checkpoint of a run without any figures so far, with ``changes`` of its facts."""
    metrics = folder / METRICS_FILE
    metrics.touch()
    state = folder / "7.state"
    state.write_bytes(b"coreset")
    SnapshotStore(folder / CHECKPOINT_FOLDER).write(
        {
            "version": VERSION,
            "settings": {k: v for k, v in Config().to_flat().items() if k != without},
            "stage": stage,
            "round": 1,
            "metrics_bytes": 0,
            "metrics_digest": file_digest(metrics, 0),
            **changes,
        },
        {},
        {"devices/7.state": state} if with_device else {},
    )


@pytest.mark.parametrize(
    ("stage", "with_device", "expected"),
    [
        ("float", False, True),
        ("quantized", True, True),
        # As of an engine that keeps its devices to itself: their coresets would be lost.
        ("quantized", False, False),
    ],
)
def test_a_run_goes_on_with_what_its_devices_remember(
    stage: str, with_device: bool, expected: bool, tmp_path: Path
) -> None:
    assert not can_go_on(tmp_path, Config())
    write_checkpoint(tmp_path, stage, with_device=with_device)
    assert can_go_on(tmp_path, Config()) is expected


def test_a_run_with_other_settings_does_not_go_on(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "float", with_device=False)
    with pytest.raises(UserError, match=r"run\.seed = 1: the run in .* has 0"):
        can_go_on(tmp_path, Config.from_flat({"run.seed": 1}))


def test_a_run_goes_on_where_its_images_were_moved(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "float", with_device=False)
    assert can_go_on(tmp_path, Config.from_flat({"data.root": "elsewhere"}))


def test_a_run_from_before_a_setting_has_its_default(tmp_path: Path) -> None:
    key = "training.batch-norm-images"
    write_checkpoint(tmp_path, "float", with_device=False, without=key)
    assert can_go_on(tmp_path, Config())
    with pytest.raises(UserError, match=r"batch-norm-images = 8: the run in .* has 0"):
        can_go_on(tmp_path, Config.from_flat({key: 8}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": VERSION + 1}, f"version {VERSION + 1}: expected {VERSION}"),
        ({"metrics_bytes": 1}, "metrics.jsonl is not the one that it goes with"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_from(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, "float", with_device=False, **changes)
    notes: list[str] = []
    config = Config.from_flat({"run.resume": str(tmp_path)})
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        Checkpoints(tmp_path, config, note=notes.append)
    assert notes == [f"checkpoint 000001 is damaged ({reason}): trying the one before"]


def test_a_new_run_begins_in_an_empty_folder(tmp_path: Path) -> None:
    """Its lock is there by then: the run's own, or that of one that was killed."""
    notes: list[str] = []
    with claimed(tmp_path, notes.append):
        Checkpoints(tmp_path, Config.from_flat({"run.resume": str(tmp_path)}), note=notes.append)
    assert notes == [f"{tmp_path}: there is no run to go on with: a new one begins"]


class Clock:
    """A harness that remembers a number."""

    deadline_seconds = 0.0

    def __init__(self, now: float) -> None:
        self.now = now

    def state(self) -> dict[str, Any]:
        return {"now": self.now}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.now = state["now"]


def test_all_that_the_next_round_depends_on_comes_back(tmp_path: Path) -> None:
    """Device 7 trains when the checkpoint is made: what it has made of its state by then is gone,
    unlike what device 6 made of its own in a task that is over. So is what came after the
    checkpoint: another best model, a device, a line."""
    config, folder, clock, notes = Config(), tmp_path / "run", Clock(3.0), list[str]()
    devices, best = device_folder(folder), folder / "best.fqrc"

    def write(content: str, *paths: Path) -> None:
        for path in paths:
            with replacing(path) as temporary:
                temporary.write_text(content)

    strategy: Any = new_strategy("fedavgm")
    strategy.momentum_vector = [np.array([0.5, -2.0], np.float32)]
    with Recorder(folder, config) as recorder:
        recorder.write({"kind": "round", "round": 2})
        devices.mkdir(parents=True)
        states = devices / "6.state", devices / "7.state"
        checkpoints = Checkpoints(folder, config, devices=devices, harness=clock, note=notes.append)
        checkpoints.facts["before"] = 1.5
        write("first", best, *states)
        checkpoints.hold(6)
        write("second", *states)
        checkpoints.hold(7)
        write("third", *states)
        checkpoints.save(
            Stage.QUANTIZED,
            2,
            {"w": np.array([1.0, 2.0], np.float32)},
            strategy,
            recorder,
            float32_bytes=40,
            progress=Progress(
                facts={"version": 4},
                arrays={"sum": np.array([3.0], np.float32)},
                busy_nodes=frozenset({7}),
            ),
            teacher_partitions=[5],
            model_at={5: "abc"},
            query_traffic=Traffic(upload_bytes=8),
            wall_seconds=9.0,
        )
        write("fourth", best, *states, devices / "8.state")
        recorder.write({"kind": "device", "round": 3})

    going_on = Config.from_flat({"run.resume": str(folder)})
    other = Clock(0.0)
    resumed = Checkpoints(folder, going_on, devices=devices, harness=other, note=notes.append)
    resumed.restore_files()
    assert notes == ["going on after quantized round 2"]
    assert (other.now, resumed.facts) == (3.0, {"before": 1.5})
    assert best.read_text() == "first"
    assert {p.name: p.read_text() for p in devices.iterdir()} == {
        "6.state": "third",
        "7.state": "second",
    }
    assert (resumed.holds_devices, resumed.has_busy_devices) == (True, True)
    assert [stage for stage in Stage if resumed.is_past(stage)] == [Stage.FLOAT, Stage.CALIBRATION]
    earlier = resumed.earlier
    assert (earlier["teacher_partitions"], earlier["wall_seconds"]) == ([5], 9.0)
    assert earlier["query_traffic"]["upload_bytes"] == 8
    assert dict(earlier["model_at"]) == {5: "abc"}
    with Recorder(folder, going_on, kept_bytes=resumed.kept_bytes) as recorder:
        assert recorder.rounds == [{"kind": "round", "round": 2}]
    lines = (folder / METRICS_FILE).read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"kind": "round", "round": 2}]

    new: Any = new_strategy("fedavgm")
    start = resumed.start(Stage.QUANTIZED, {"w": np.zeros(2, np.float32)}, new)
    assert start.state["w"].tolist() == [1.0, 2.0]
    assert (start.num_done, start.float32_bytes) == (2, 40)
    assert start.progress is not None
    assert start.progress.facts == {"version": 4}
    assert start.progress.arrays["sum"].tolist() == [3.0]
    assert new.momentum_vector[0].tolist() == [0.5, -2.0]
    statistics = resumed.start(Stage.STATISTICS, {"w": np.zeros(2, np.float32)}, new)
    assert (statistics.state["w"].tolist(), statistics.num_done) == ([0.0, 0.0], 0)


def test_a_disk_without_room_costs_the_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    """No file may grow beyond 4 kB: 8 kB of weights don't fit."""
    notes: list[str] = []
    checkpoints = Checkpoints(tmp_path, Config(), note=notes.append)
    with Recorder(tmp_path, Config()) as recorder, largest_file(4096):
        checkpoints.save(
            Stage.FLOAT,
            1,
            {"w": np.zeros(2048, np.float32)},
            new_strategy("fedavg"),
            recorder,
            float32_bytes=0,
            progress=None,
            teacher_partitions=[],
            model_at={},
            query_traffic=Traffic(),
            wall_seconds=0.0,
        )
    assert notes == ["no checkpoint of float round 1: File too large"]
