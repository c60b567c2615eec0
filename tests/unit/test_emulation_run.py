"""Tests of simulations.emulation.run: what an emulated device's operator would say about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import Config
from simulations.emulation.fleet_file import load_fleet
from simulations.emulation.run import EmulatedRun

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("flwr_datasets", reason="the split comes with flwr-datasets")

FLEET = """
classes:
  roomy: {like: raspberry-pi-4, count: 3}
  cramped: {like: raspberry-pi-4, count: 2, data-share: 0.25}
"""


def make_run(tmp_path: Path, fleet: str = FLEET, **settings: float | str) -> EmulatedRun:
    path = tmp_path / "made.yaml"
    path.write_text(fleet)
    return EmulatedRun(load_fleet(str(path)), Config.from_flat({"data.num-devices": 5, **settings}))


def test_devices_are_told_their_classs_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert sorted(run.node_config()) == [0, 1, 2, 3, 4]
    for partition_id, told in run.node_config().items():
        share = 1.0 if run.emulation.profile(partition_id).class_name == "roomy" else 0.25
        assert told["data-share"] == share
        assert told["uplink-mbits"] == 40.0
        assert told["latency-seconds"] == 0.02


def test_devices_are_told_their_memory(tmp_path: Path) -> None:
    """3,850 MB are a Raspberry Pi 4's; images are few and small, a quarter of them still less."""
    run = make_run(tmp_path)
    told = run.node_config()
    assert {device["max-memory"] for device in told.values()} == {3_850_000_000}
    used = {i: told[i]["used-memory"] - 278_000_000 - 16_000_000 for i in told}
    assert all(0 < size < 5_000_000 for size in used.values())
    assert run.memory.part_sizes.tolist() == [32] * 5


def test_devices_without_the_memory_are_no_nodes(tmp_path: Path) -> None:
    """300 MB hold the imports of a client and no training: device classes are told apart."""
    fleet = FLEET.replace("data-share: 0.25", "memory-mb: 300")
    run = make_run(tmp_path, fleet)
    tight = {i for i in range(5) if run.emulation.profile(i).class_name == "cramped"}
    assert run.memory.unable == tight
    (note,) = run.memory.notes(run.emulation)
    assert note.startswith("2 of 2 cramped can't take part: training needs 3")
