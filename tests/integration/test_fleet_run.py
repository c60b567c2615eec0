"""``python -m simulations run --fleet``: two runs with one seed, in virtual time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.console import ConsoleReporter
from simulations.runner import run_scenario
from simulations.scenario import load_scenario
from tests.conftest import TINY_FEDERATION, FinishedRun, simulate

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, Path]:
    """The command line's, in two worker processes, and one in this process."""
    folder = tmp_path_factory.mktemp("fleet")
    settings: dict[str, object] = {
        "federation.min-devices": 1,
        "fleet.deadline": 2.0,
        "coreset.adaptive": "true",
    }
    first = simulate(folder / "first", "--fleet", "flaky", "--workers", "2", **settings)
    settings |= {**TINY_FEDERATION, "fleet.name": "flaky", "run.out": folder / "second"}
    scenario = load_scenario("digits", [f"{key}={value}" for key, value in settings.items()])
    with ConsoleReporter(Console(file=io.StringIO())) as reporter:
        run_scenario(scenario, reporter, num_workers=0)
    return first, folder / "second"


def figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the wall clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line.items()
            if name.startswith("virtual_") or not name.endswith("_seconds")
        }
        for line in lines
    ]


def test_everything_but_the_wall_clock_is_the_same(runs: tuple[FinishedRun, Path]) -> None:
    first, second = runs
    assert first.exit_code == 0, first.errors
    assert figures(first.folder) == figures(second)


def test_the_run_folder_tells_of_virtual_time(runs: tuple[FinishedRun, Path]) -> None:
    folder = runs[0].folder
    summary = json.loads((folder / "summary.json").read_text())
    rounds = [line for line in figures(folder) if line["kind"] == "round"]
    assert summary["virtual_seconds"] == rounds[-1]["virtual_clock_seconds"] > 0
    assert sum(line["virtual_seconds"] for line in rounds) == pytest.approx(
        summary["virtual_seconds"], abs=1e-9
    )
    assert summary["joules"] == pytest.approx(sum(line["joules"] for line in rounds))
    assert summary["fleet"] == "flaky"
    for name in ("virtual.png", "timeline.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
