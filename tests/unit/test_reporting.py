"""Log lines of a run, and Flower's own kept quiet."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from common.config import Config
from common.messages import Stage
from server.reporting import LogReporter, quiet_flower

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
def reporter(caplog: pytest.LogCaptureFixture) -> LogReporter:
    caplog.set_level(logging.INFO, logger="test-reporter")
    return LogReporter(logging.getLogger("test-reporter"))


def test_a_round_is_one_line(reporter: LogReporter, caplog: pytest.LogCaptureFixture) -> None:
    reporter.round_done(Stage.QUANTIZED, 1, ROUND)
    assert caplog.messages == [
        "quantized round 2: 3/4 replies, training loss 1.2500, accuracy 50.00 %, "
        "up 1,234 B, down 5,678 B"
    ]


def test_figures_that_were_not_measured_are_left_out(
    reporter: LogReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.round_done(Stage.FLOAT, 0, {**ROUND, "skipped": True, "train_loss": None})
    (line,) = caplog.messages
    assert "skipped" in line
    assert "training loss" not in line


def test_beginning_and_end(reporter: LogReporter, caplog: pytest.LogCaptureFixture) -> None:
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
    first, last = caplog.messages
    assert "resnet8 on digits" in first
    assert "runs/a" in first
    assert "after 62.50 % (best 63.00 %)" in last


def test_flower_is_quiet_inside_and_as_before_outside() -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    with quiet_flower():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
