"""The two apps through Flower's own ``flwr run``: on Ray, in a bundle, as a user starts them."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_FEDERATION, FinishedRun, simulate
from tests.integration.deployment import PROGRAMS, flower_environment, free_ports
from tests.waiting import PATIENCE_SECONDS

RUN_FILES = {"config.yaml", "metrics.jsonl", "summary.json", "last.safetensors", "last.fqrc"}


def test_the_ray_engine_completes_a_run(ray_run: FinishedRun) -> None:
    assert ray_run.exit_code == 0, ray_run.errors
    assert {path.name for path in ray_run.folder.iterdir()} >= RUN_FILES
    assert "stage quantized" in ray_run.output
    assert "2w32a after QuaRC, last round" in ray_run.output
    assert f"results: {ray_run.folder}" in ray_run.output


def test_a_failed_run_on_ray_is_a_failed_command(tmp_path: Path) -> None:
    """The ServerApp cannot read the checkpoint; Flower's own exit codes would say nothing."""
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"no checkpoint")
    run = simulate(tmp_path / "run", "--engine", "ray", **{"model.teacher": str(teacher)})
    assert run.exit_code == 1
    assert run.errors.startswith("error: ")
    assert "teacher.safetensors" in run.errors
    assert run.errors.count("\n") == 1
    assert not run.folder.exists()


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment for Flower's commands; the SuperLink that they start is ended."""
    http_port, control_port = free_ports(2)
    environment = {
        **flower_environment(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http_port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
    }
    try:
        yield environment
    finally:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (pids := _processes_with(str(http_port))) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)
        assert not pids


def _processes_with(argument: str) -> list[int]:
    """Processes of Flower whose command line names this test's port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            if "flower-super" in command and argument in command:
                found.append(int(folder.name))
    return found


def _flwr(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [str(PROGRAMS / "flwr"), *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Flower's SuperLink in /proc")
def test_flwr_run_by_hand(flower: dict[str, str], tmp_path: Path) -> None:
    """``flwr run . --stream`` with ``--run-config``, just as the README says."""
    folder = tmp_path / "run"
    settings = {**TINY_FEDERATION, "federation.num-rounds": 1, "run.out": f"'{folder}'"}
    output = _flwr(
        flower,
        *("run", ".", "--stream"),
        *("--run-config", " ".join(f"{key}={value}" for key, value in settings.items())),
        *("--federation-config", "num-supernodes=4 client-resources-num-cpus=1"),
    )
    (run,) = json.loads(_flwr(flower, "ls", "--format", "json"))["runs"]
    assert run["status"] == "finished:completed", output
    assert "quantized round 1: 4/4 replies" in output
    assert {path.name for path in folder.iterdir()} >= RUN_FILES
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["num_devices"] == 4
