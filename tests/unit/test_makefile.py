"""The Makefile: what its targets would run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

PROJECT = Path(__file__).resolve().parents[2]


def commands(*arguments: str) -> list[str]:
    """The words of the commands that make would run."""
    make = ["make", "--dry-run", "--no-print-directory", "COMPOSE=compose", *arguments]
    result = subprocess.run(make, cwd=PROJECT, capture_output=True, text=True, check=True)
    return result.stdout.replace("\\\n", " ").split()


class TestClusterRun:
    def test_three_devices_by_default(self) -> None:
        words = commands("cluster-run", "RUN=first")
        assert "'run.resume=/runs/first'" in words
        assert words.count("data.num-devices=3") == words.count("federation.min-devices=3") == 1

    def test_what_is_set_takes_a_defaults_place(self) -> None:
        """A setting that is given twice is refused by the command."""
        words = commands("cluster-run", "SET=federation.min-devices=2 data.alpha=0.1")
        assert [word for word in words if word.startswith("federation.min-devices")] == [
            "federation.min-devices=2"
        ]
        assert "data.num-devices=3" in words
        assert "data.alpha=0.1" in words
