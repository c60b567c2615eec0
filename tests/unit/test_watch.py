"""The view of a running federation, from lines as they are recorded."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import UserError
from server.watch import MetricsTail, RunView, add_watch_command, watch


def device_line(
    partition_id: int, number: int, status: str = "ok", **figures: Any
) -> dict[str, Any]:
    return {
        "kind": "device",
        "stage": "quantized",
        "round": number,
        "task": "train",
        "partition_id": partition_id,
        "status": status,
        "reason": "",
        "upload_bytes": 1000,
        "download_bytes": 2000,
        **figures,
    }


def round_line(number: int) -> dict[str, Any]:
    return {
        "kind": "round",
        "stage": "quantized",
        "round": number,
        "num_asked": 2,
        "num_accepted": 1,
        "refused": {"bad-update": 1},
        "skipped": False,
        "train_loss": 0.5,
        "upload_bytes": 2000,
        "download_bytes": 4000,
        "round_seconds": 1.5,
        "accuracy": 91.25,
    }


LINES = [
    device_line(0, 1, coreset_size=12, round_seconds=0.5, temperature_celsius=61.0),
    device_line(1, 1, coreset_size=20, round_seconds=0.7),
    device_line(0, 2, coreset_size=12, round_seconds=0.6),
    device_line(1, 2, "bad-update"),
    round_line(2),
]


def text_of(view: RunView) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(view.render("run"))
    return console.export_text()


def test_devices_and_rounds_are_added_up() -> None:
    """Device 1: two exchanges of 1000 B up, the last one refused after a good one in round 1."""
    view = RunView()
    for line in LINES:
        view.add(line)
    good, refused = view.devices[0], view.devices[1]
    assert (good.last_round, good.missed, good.num_refused) == ("quantized 2", 0, 0)
    assert (good.coreset_size, good.round_seconds, good.temperature) == (12, 0.6, 61.0)
    assert (refused.last_round, refused.missed, refused.num_refused) == ("quantized 1", 1, 1)
    assert (refused.upload_bytes, refused.download_bytes) == (2000, 4000)
    text = text_of(view)
    assert "91.25 %" in text
    assert "bad-update 1" in text
    assert "1/2" in text


def test_half_a_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    tail.read()
    assert not tail.view.devices
    first, second = (json.dumps(line) + "\n" for line in LINES[:2])
    path.write_text(first + second[:10])
    tail.read()
    assert list(tail.view.devices) == [0]
    path.write_text(first + second)
    tail.read()
    assert list(tail.view.devices) == [0, 1]
    path.write_text(second)
    tail.read()
    assert list(tail.view.devices) == [1]


def test_the_command_shows_a_run_that_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_watch_command(parser.add_subparsers())
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "summary.json").write_text("{}")
    for arguments in (["watch", str(tmp_path)], ["watch", str(tmp_path), "--once"]):
        assert watch(parser.parse_args(arguments)) == 0
        assert "91.25" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected the folder of a run"):
        watch(parser.parse_args(["watch", str(tmp_path / "none")]))
