"""One seeded federation, in every engine: the same model to the last bit, the same figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEEPING, FinishedRun, simulate
from tests.golden.test_resume import assert_equal_runs, sha256
from tests.in_process import simulate_here
from tests.records import recorded, without_wall_clock


def _summary(folder: Path) -> dict[str, Any]:
    return without_wall_clock(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the federation in this very process, one device after the other."""
    folder = tmp_path_factory.mktemp("local") / "run"
    simulate_here(**KEEPING, **{"run.out": folder})
    return folder


@pytest.mark.parametrize("engine", ["workers", "ray"])
def test_every_engine_gives_the_same_numbers(
    engine: str, reference: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "ray":
        run: FinishedRun = request.getfixturevalue("ray_run")
    else:
        run = simulate(tmp_path / "run", "--workers", "2", **KEEPING)
    assert run.exit_code == 0, run.errors
    assert_equal_runs(run.folder, reference)
    assert _summary(run.folder) == _summary(reference)


def test_another_seed_gives_another_model(reference: Path, tmp_path: Path) -> None:
    simulate_here(**{"run.seed": 1, "run.out": tmp_path / "run"})
    assert sha256(tmp_path / "run", "last.safetensors") != sha256(reference, "last.safetensors")


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
