"""TensorBoard logs: what is read back from the event file of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from common.config import Config
from common.errors import UserError
from server.app import run_federation
from server.records.tensorboard_log import TENSORBOARD_FOLDER, TensorBoardLog
from tests.records import recorded
from tests.unit.fake_grid import FakeGrid
from tests.unit.test_server_app import SilentReporter, answer


def logged(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of all event files."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder / TENSORBOARD_FOLDER)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_a_run_logs_the_figures_of_its_rounds(tmp_path: Path) -> None:
    """Read back from the file: what metrics.jsonl says, in float32."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("sklearn")
    config = Config.from_flat(
        {
            "run.tensorboard": True,
            "data.num-devices": 3,
            "warmup.num-rounds": 1,
            "federation.num-rounds": 2,
            "evaluation.device-interval": 2,
            "evaluation.threads": 1,
        }
    )
    folder = tmp_path / "run"
    run_federation(FakeGrid(answer), config, SilentReporter(), folder)
    expected: dict[str, list[Any]] = {}
    for line in recorded(folder, "round"):
        for name in ("accuracy", "loss", "train_loss", "upload_bytes", "round_seconds"):
            point = (line["round"], pytest.approx(line[name], rel=1e-6))
            expected.setdefault(f"{line['stage']}/{name}", []).append(point)
    found = logged(folder)
    assert len(expected) == 10
    assert {tag: found[tag] for tag in expected} == expected
    assert [step for step, _ in found["quantized/device_accuracy"]] == [2]


def test_a_run_that_goes_on_replaces_what_was_logged(tmp_path: Path) -> None:
    """Two rounds were logged, one of them stands: it and the repeated one are read back."""
    pytest.importorskip("tensorboard")
    rounds = [
        {"kind": "round", "stage": "float", "round": number, "accuracy": 10.0 * number}
        for number in (1, 2)
    ]
    with TensorBoardLog(tmp_path) as log:
        log.replay(rounds)
    with TensorBoardLog(tmp_path) as log:
        log.replay(rounds[:1])
        log.add({"kind": "device", "stage": "float", "round": 2})
        log.add({**rounds[1], "accuracy": 30.0, "loss": None})
    assert logged(tmp_path) == {"float/accuracy": [(1, 10.0), (2, 30.0)]}


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"run.tensorboard needs .*fedquarc\[tensorboard\]"):
        TensorBoardLog(tmp_path / "run")
    assert not (tmp_path / "run").exists()
