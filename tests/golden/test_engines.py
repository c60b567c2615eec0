"""One seeded federation, in every engine: the same model to the last bit, the same figures."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.display.console import ConsoleReporter
from simulations.runner import run_scenario
from simulations.settings.scenario import load_scenario
from tests.conftest import TINY_FEDERATION, FinishedRun, simulate
from tests.records import recorded, reproducible_lines, without_wall_clock


def _sha256(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def _summary(folder: Path) -> dict[str, Any]:
    return without_wall_clock(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def _run_in_this_process(folder: Path, seed: int) -> Path:
    settings = {**TINY_FEDERATION, "run.seed": seed, "run.out": folder}
    scenario = load_scenario("digits", [f"{key}={value}" for key, value in settings.items()])
    with ConsoleReporter(Console(file=io.StringIO())) as reporter:
        run_scenario(scenario, reporter, num_workers=0)
    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the federation in this very process, one device after the other."""
    return _run_in_this_process(tmp_path_factory.mktemp("local") / "run", seed=0)


@pytest.mark.parametrize("engine", ["workers", "ray"])
def test_every_engine_gives_the_same_numbers(
    engine: str, reference: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "ray":
        run: FinishedRun = request.getfixturevalue("ray_run")
    else:
        run = simulate(tmp_path / "run", "--workers", "2")
    assert run.exit_code == 0, run.errors
    for model in ("teacher.safetensors", "last.safetensors", "best.safetensors", "last.fqrc"):
        assert _sha256(run.folder, model) == _sha256(reference, model), model
    assert reproducible_lines(run.folder) == reproducible_lines(reference)
    assert _summary(run.folder) == _summary(reference)


def test_another_seed_gives_another_model(reference: Path, tmp_path: Path) -> None:
    other = _run_in_this_process(tmp_path / "run", seed=1)
    assert _sha256(other, "last.safetensors") != _sha256(reference, "last.safetensors")


def test_what_the_reference_run_is_about(reference: Path) -> None:
    """4 devices, one warm-up round and two QuaRC rounds; both kinds of lines are there."""
    rounds = [(line["stage"], line["round"]) for line in recorded(reference, "round")]
    assert [entry for entry in rounds if entry[0] != "calibration"] == [
        ("float", 1),
        ("quantized", 1),
        ("quantized", 2),
    ]
    trained = [line for line in recorded(reference, "device") if line["stage"] == "quantized"]
    assert {line["partition_id"] for line in trained} == {0, 1, 2, 3}
    assert {line["status"] for line in trained} == {"ok"}
    summary = _summary(reference)
    assert summary["num_devices"] == 4
    assert summary["num_rounds"] == 2
    assert 0 < summary["upload_bytes"] < summary["float32_upload_bytes"] / 2
