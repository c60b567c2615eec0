"""Flower's Deployment Runtime with TLS and device keys: SuperLink, proxy and three SuperNodes."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.cli import main
from server.deployment.keys import create_device_keys
from tests.conftest import ROOT
from tests.integration.deployment import NGINX, Fleet
from tests.records import recorded
from tests.waiting import PATIENCE_SECONDS, wait_until

DEVICES = ["device-0", "device-1", "device-2"]
STRANGER = "stranger"
SETTINGS = {
    "data.num-devices": 3,
    "warmup.num-rounds": 1,
    "warmup.local-epochs": 1,
    "federation.num-rounds": 1,
    "federation.min-devices": 3,
    "coreset.fraction": 0.3,
    "evaluation.device-interval": 0,
}
RUN_SECONDS = 600
"""A message takes a process that imports torch: seconds, on a busy machine many."""

pytestmark = [
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds its processes in /proc"),
    pytest.mark.timeout(PATIENCE_SECONDS * 3 + RUN_SECONDS),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """SuperLink and proxy are up, the devices' keys registered; no SuperNode runs yet."""
    fleet = Fleet.with_keys(tmp_path_factory.mktemp("fleet"), DEVICES)
    try:
        fleet.start_superlink()
        if NGINX:
            fleet.start_proxy()
        fleet.register_devices()
        yield fleet
    finally:
        fleet.end()


def start_devices(fleet: Fleet) -> None:
    """SuperNodes of all devices, unless an earlier test has started them."""
    for index, name in enumerate(DEVICES):
        if name not in fleet.processes:
            fleet.start_supernode(name, index)


def test_a_federation_runs_to_its_end_though_its_serverapp_is_killed(
    fleet: Fleet, tmp_path: Path
) -> None:
    """SIGKILL after the first round: started again, the run goes on with the same SuperNodes. All
    of them measure batch normalisation's statistics in the end."""
    start_devices(fleet)
    run_folder = tmp_path / "run"
    settings = {**SETTINGS, "run.resume": run_folder, "training.batch-norm-images": 32}
    run = fleet.start_run(settings, "--restarts", "1")
    wait_until(
        lambda: list(run_folder.glob("checkpoints/0*")) or run.poll() is not None,
        "the first checkpoint",
        RUN_SECONDS,
    )
    for pid in fleet.pids("flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)
    assert run.wait(RUN_SECONDS) == 0, fleet.log("run")
    assert "finished:failed" in fleet.log("run")
    assert "going on after float round 1" in fleet.log("run")
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["num_devices"] == 3
    rounds = recorded(run_folder, "round")
    assert [line["num_accepted"] for line in rounds] == [3] * len(rounds)
    assert {line["stage"] for line in rounds} >= {"float", "quantized"}
    assert rounds[-1]["statistics_refused"] == {}
    assert rounds[-1]["statistics_upload_bytes"] > 0
    assert all(fleet.processes[name].poll() is None for name in DEVICES)


def test_the_run_can_be_watched_from_elsewhere(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest run: what went on after the ServerApp was killed. Not by the devices' address."""
    monkeypatch.setenv("COLUMNS", "160")
    ca = ("--ca", str(fleet.keys.ca_certificate))
    assert main(["watch", f"https://{fleet.superlink}", *ca]) == 0
    shown = capsys.readouterr().out
    assert "(run): finished:completed" in " ".join(shown.split())
    assert "quantized 1" in shown
    assert "3/3" in shown
    assert main(["watch", f"https://{fleet.superlink}/1", *ca, "--once"]) == 2
    assert "knows no run 1" in capsys.readouterr().err
    if NGINX:
        assert main(["watch", f"https://{fleet.device_address}", *ca]) == 2
        assert "it is the devices' proxy" in capsys.readouterr().err


def test_an_asynchronous_federation_runs_to_its_end(fleet: Fleet, tmp_path: Path) -> None:
    """Three devices train at a time, two updates make a step: the third one's counts in the next.

    Until the first step is made no update can be stale.
    """
    start_devices(fleet)
    run = fleet.start_run(
        {
            **SETTINGS,
            "run.out": tmp_path / "run",
            "federation.num-rounds": 2,
            "strategy.name": "fedbuff",
            "strategy.concurrency": 3,
            "strategy.buffer-size": 2,
        }
    )
    assert run.wait(RUN_SECONDS) == 0, fleet.log("run")
    steps = [line for line in recorded(tmp_path / "run", "round") if line["stage"] == "quantized"]
    assert [line["num_accepted"] for line in steps] == [2, 2]
    assert steps[0]["max_staleness"] == 0
    assert 0 <= steps[1]["mean_staleness"] <= steps[1]["max_staleness"] <= 1
    updates = [
        line["staleness"]
        for line in recorded(tmp_path / "run", "device")
        if line["stage"] == "quantized" and line["status"] == "ok"
    ]
    assert sorted(updates)[:2] == [0, 0]
    assert len(updates) == 4
    assert sum(updates) == 2 * sum(line["mean_staleness"] for line in steps)
    assert (tmp_path / "run" / "summary.json").exists()


def test_an_unregistered_device_is_refused(fleet: Fleet) -> None:
    create_device_keys(fleet.keys, [STRANGER])
    fleet.start_supernode(STRANGER, 3)
    assert fleet.processes[STRANGER].wait(PATIENCE_SECONDS) == 1
    assert "305" in fleet.log(STRANGER) or "not registered" in fleet.log(STRANGER).lower()


@pytest.mark.skipif(NGINX is None, reason="the proxy, nginx, is not installed")
def test_devices_cannot_reach_the_control_api(fleet: Fleet) -> None:
    """The SuperLink itself answers these calls; through the devices' address nobody can make them.

    Flower's own client with the same CA certificate is refused as well.
    """
    assert fleet.status_of(fleet.superlink_port, "POST", "/v1/control/list-runs") == 200
    for target in (
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/control/list-runs/../../fleet/get-run",
        "/v1/control%2flist-runs",
        "/v1//control/list-runs",
        "/v1/fleet/get-run/../../control/list-runs",
        "/docs",
        "/openapi.json",
    ):
        for method in ("GET", "POST"):
            assert fleet.status_of(fleet.proxy_port, method, target) == 403, target
    assert fleet.status_of(fleet.proxy_port, "POST", "/v1/fleet/get-run") not in (200, 403, 404)
    answer = fleet.flwr(f"127.0.0.1:{fleet.proxy_port}", "run", str(ROOT), "fleet")
    assert not answer["success"]
    assert "run-id" not in answer
