"""Events of a run, and Flower's own kept quiet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import Config
from common.errors import UserError
from common.events import EventFile
from common.messages import Stage
from server.records.reporting import (
    EventReporter,
    log_reply,
    logged_failure,
    quiet_flower,
    recorded_line,
)

ROUND = {
    "num_accepted": 3,
    "num_asked": 4,
    "skipped": False,
    "train_loss": 1.25,
    "accuracy": 50.0,
    "upload_bytes": 1234,
    "download_bytes": 5678,
}


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The events logged so far."""
    path = tmp_path / "events.jsonl"
    with EventFile(path) as file:
        file.open()
        yield lambda: [json.loads(line) for line in path.read_text().splitlines()]


Events = Callable[[], list[dict[str, Any]]]


def test_a_round_is_one_line(events: Events) -> None:
    EventReporter().round_done(Stage.QUANTIZED, 1, ROUND)
    (event,) = events()
    assert event["event"] == "round-ended"
    assert (event["stage"], event["round"], event["skipped"]) == ("quantized", 2, False)
    assert event["message"] == (
        "quantized round 2: 3/4 replies, training loss 1.2500, accuracy 50.00 %, "
        "up 1,234 B, down 5,678 B"
    )


def test_accuracies_on_devices_and_of_bit_widths_are_told(events: Events) -> None:
    measured = {"device_accuracy": 45.0, "bit_accuracy": {"2": 40.0, "4": 60.0}}
    EventReporter().round_done(Stage.QUANTIZED, 1, {**ROUND, **measured})
    (event,) = events()
    expected = "accuracy 50.00 %, on devices 45.00 %, 2 bits 40.00 %, 4 bits 60.00 %, up"
    assert expected in event["message"]


def test_figures_that_were_not_measured_are_left_out(events: Events) -> None:
    EventReporter().round_done(Stage.FLOAT, 0, {**ROUND, "skipped": True, "train_loss": None})
    (event,) = events()
    assert "skipped" in event["message"]
    assert "training loss" not in event["message"]


def test_beginning_and_end(events: Events) -> None:
    reporter = EventReporter()
    reporter.start(Config(), Path("runs/a"))
    reporter.finish(
        {
            "wall_seconds": 60.0,
            "float_accuracy": 66.0,
            "quantized_accuracy_before": 1.0,
            "final_accuracy": 62.5,
            "best_accuracy": 63.0,
        }
    )
    first, last = events()
    assert first["event"] == "run-started"
    assert "resnet8 on digits" in first["message"]
    assert "runs/a" in first["message"]
    assert last["event"] == "run-ended"
    assert "after 62.50 % (best 63.00 %)" in last["message"]


def test_recorded_lines_come_back_from_events(events: Events) -> None:
    """What has no figure, or one that is no number in JSON, is left out."""
    place = {"stage": "quantized", "round": 2}
    device = {
        **{"kind": "device", **place, "task": "train", "partition_id": 7},
        **{"status": "ok", "reason": "", "upload_bytes": 10, "download_bytes": 20},
        **{"coreset_size": 5, "temperature_celsius": float("nan"), "num_steps": 3},
    }
    figures = {**ROUND, "refused": {"no-reply": 1}, "train_loss": None}
    log_reply(device)
    log_reply({**device, "status": "no-reply"})
    EventReporter().round_done(Stage.QUANTIZED, 1, figures)
    EventReporter().note("something else")
    good, failed, ended, other = map(recorded_line, events())
    expected = {**device}
    for left_out in ("reason", "temperature_celsius", "num_steps"):
        del expected[left_out]
    assert good is not None
    assert failed is not None
    assert ended is not None
    assert {name: good[name] for name in expected} == expected
    assert "temperature_celsius" not in good
    assert failed["status"] == "no-reply"
    del figures["train_loss"]
    assert {name: ended[name] for name in figures} == figures
    assert "train_loss" not in ended
    assert (ended["kind"], ended["stage"], ended["round"]) == ("round", "quantized", 2)
    assert other is None


@pytest.mark.parametrize(
    ("status", "event"),
    [("ok", "reply-accepted"), ("no-reply", "reply-failed"), ("diverged", "reply-refused")],
)
def test_what_became_of_a_reply(status: str, event: str, events: Events) -> None:
    line = {
        "kind": "device",
        "stage": "float",
        "round": 3,
        "task": "train",
        "partition_id": 7,
        "status": status,
        "reason": "why",
    }
    log_reply(line)
    log_reply({"kind": "round"})
    (logged,) = events()
    assert logged["event"] == event
    assert (logged["stage"], logged["round"], logged["device"]) == ("float", 3, 7)
    assert logged.get("message") == (None if status == "ok" else "why")
    assert logged["level"] == ("info" if status == "ok" else "warning")


def test_a_failure_is_logged_and_goes_on(events: Events) -> None:
    """Text of an error is logged where it is meant for users, else it may hold anything."""
    with pytest.raises(UserError), logged_failure():
        raise UserError("run.out: not a folder")
    with pytest.raises(OSError, match="private"), logged_failure():
        raise OSError("private.png")
    user, other = events()
    assert (user["event"], user["message"]) == ("run-failed", "run.out: not a folder")
    assert (other["error"], other["level"]) == ("OSError", "error")
    assert "message" not in other


def test_flower_is_quiet_inside_and_as_before_outside() -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    with quiet_flower():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
