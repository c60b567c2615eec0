"""``python -m server watch`` on a run folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from common.errors import UserError
from server.deployment.watch import RunFolder, add_watch_command, watch
from tests.unit.test_run_view import LINES


def test_half_a_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = RunFolder(tmp_path)
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


def test_lines_that_were_cut_off_and_came_again_are_read_anew(tmp_path: Path) -> None:
    """Between two readings a run loses its second line, and writes three longer ones after the
    first: going on from the old end would land within one of them."""
    path = tmp_path / "metrics.jsonl"
    tail = RunFolder(tmp_path)
    first, second = (json.dumps(line) + "\n" for line in LINES[:2])
    path.write_text(first + second)
    tail.read()
    assert list(tail.view.devices) == [0, 1]
    others = [json.dumps({**LINES[1], "partition_id": number}) + "\n" for number in (12, 13, 14)]
    path.write_text(first + "".join(others))
    tail.read()
    assert list(tail.view.devices) == [0, 12, 13, 14]
    tail.read()
    assert [device.upload_bytes for device in tail.view.devices.values()] == [1000] * 4


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
