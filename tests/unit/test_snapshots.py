"""Snapshots: whole or not there, checked when read, the one before when the newest is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.checkpoints.snapshots import ARRAYS, MANIFEST, Snapshot, SnapshotStore, restore_link
from tests.conftest import largest_file

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.full((), 0.5)}


def newest(store: SnapshotStore) -> tuple[Snapshot | None, list[str]]:
    damaged: list[str] = []
    found = store.newest(lambda snapshot: None, lambda name, why: damaged.append(f"{name}: {why}"))
    return found, damaged


def replace(path: Path, content: str) -> None:
    """As an engine writes a device's state: never into the file that is there."""
    path.with_suffix(".new").write_text(content)
    path.with_suffix(".new").replace(path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    replace(tmp_path / "2.state", "first")
    store = SnapshotStore(tmp_path / "checkpoints")
    store.write({"round": 1}, WEIGHTS, {"devices/2.state": tmp_path / "2.state"})
    replace(tmp_path / "2.state", "second")
    found, damaged = newest(SnapshotStore(tmp_path / "checkpoints"))
    assert found is not None
    assert not damaged
    assert found.facts == {"round": 1}
    assert found.files == ("devices/2.state",)
    assert (found.folder / "devices/2.state").read_text() == "first"
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(found.arrays[name], values)
        assert found.arrays[name].dtype == values.dtype
        assert found.arrays[name].shape == values.shape
    restore_link(found.folder / "devices/2.state", tmp_path / "2.state")
    assert (tmp_path / "2.state").read_text() == "first"
    restore_link(found.folder / "devices/2.state", tmp_path / "2.state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.state", "checkpoints"]


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for number in (1, 2, 3):
        store.write({"round": number}, WEIGHTS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]


@pytest.mark.parametrize("file", [MANIFEST, ARRAYS, "2.state"])
@pytest.mark.parametrize("damage", ["cut", "bit", "missing"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(
    tmp_path: Path, file: str, damage: str
) -> None:
    root = tmp_path / "checkpoints"
    store = SnapshotStore(root)
    for number in (1, 2):
        replace(tmp_path / "2.state", f"state {number}")
        store.write({"round": number}, WEIGHTS, {"2.state": tmp_path / "2.state"})
    path = root / "000002" / file
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    found, damaged = newest(SnapshotStore(root))
    assert found is not None
    assert found.facts == {"round": 1}
    assert len(damaged) == 1
    assert damaged[0].startswith(f"000002: {file}")
    store.discard_after(found)
    assert [path.name for path in root.iterdir()] == ["000001"]
    store.discard_after(None)
    assert not store.exists()


def test_a_snapshot_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.write({"round": 1}, WEIGHTS, {})
    (tmp_path / ".000002.partial").mkdir()
    (tmp_path / ".000002.partial" / ARRAYS).write_bytes(b"half")
    found, damaged = newest(SnapshotStore(tmp_path))
    assert found is not None
    assert found.facts == {"round": 1}
    assert not damaged
    store.discard_after(found)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    store.write({"round": 2}, WEIGHTS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000002"]


def test_a_snapshot_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    """No file may grow beyond 4 kB: 8 kB of weights don't fit.

    The one before stays as it was; with room again, the next one is written.
    """
    store = SnapshotStore(tmp_path)
    store.write({"round": 1}, WEIGHTS, {})
    large = {"w": np.zeros(2048, dtype=np.float32)}
    with largest_file(4096), pytest.raises(OSError, match="File too large"):
        store.write({"round": 2}, large, {})
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    found, damaged = newest(store)
    assert found is not None
    assert (found.facts, damaged) == ({"round": 1}, [])
    assert store.write({"round": 2}, large, {}).name == "000002"


def test_without_any_snapshot_there_is_none(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "none")
    assert not store.exists()
    assert newest(store) == (None, [])
