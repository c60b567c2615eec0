"""Tests of server.checkpoints.resumption; whole runs that go on are in tests/golden/test_resume."""

from pathlib import Path

import pytest

from common.config import Config
from common.errors import UserError
from server.checkpoints.device_states import CHECKPOINT_FOLDER
from server.checkpoints.resumption import VERSION, Checkpoints, can_go_on
from server.checkpoints.snapshots import SnapshotStore
from server.records.recorder import METRICS_FILE, claimed, file_digest


def write_checkpoint(
    folder: Path, stage: str, *, with_device: bool, without: str | None = None
) -> None:
    """The checkpoint of a run without any figures so far."""
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


def test_a_new_run_begins_in_an_empty_folder(tmp_path: Path) -> None:
    """Its lock is there by then: the run's own, or that of one that was killed."""
    notes: list[str] = []
    with claimed(tmp_path, notes.append):
        Checkpoints(tmp_path, Config.from_flat({"run.resume": str(tmp_path)}), note=notes.append)
    assert notes == [f"{tmp_path}: there is no run to go on with: a new one begins"]
