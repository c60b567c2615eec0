"""Faults of a real deployment on this machine: ``python -m tests.integration.outages [FAULT...]``.

One federation for each. SuperLink, ServerApp and two SuperNodes are processes that talk over TLS
with node authentication; what the devices send passes a forwarder that stands for the network. Each
fault is injected while the devices train in the second quantized round; nobody helps the devices
afterwards. Prints what happened.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.settings import Scalar
from tests.integration.deployment import Fleet
from tests.integration.forwarder import Forwarder
from tests.records import recorded
from tests.waiting import wait_until

DEVICES = ["device-0", "device-1"]
SETTINGS = {
    "data.num-devices": len(DEVICES),
    "warmup.num-rounds": 1,
    "warmup.local-epochs": 1,
    "federation.num-rounds": 3,
    "federation.min-devices": len(DEVICES),
    "coreset.fraction": 0.5,
    "evaluation.device-interval": 0,
    "federation.downlink-format": "delta",
}
RUN_SECONDS = 1800
RESTARTS = 3
STALL_TIMEOUT = 45.0
"""How long a round waits where a device stalls: longer than the other device takes."""
STALL_SETTINGS: Mapping[str, Scalar] = {
    "federation.round-timeout": STALL_TIMEOUT,
    "federation.min-devices": 1,
    "federation.num-rounds": 6,
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a fault is injected."""

    fleet: Fleet
    network: Forwarder
    """Between the devices and the SuperLink."""


def serverapp_killed(scene: Scene, seconds: float) -> None:
    """SIGKILL to the process of the ServerApp."""
    for pid in scene.fleet.pids("flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)


def superlink_killed(scene: Scene, seconds: float) -> None:
    """SIGKILL to the SuperLink, which is started again after so many seconds."""
    scene.fleet.processes["superlink"].kill()
    scene.fleet.processes["superlink"].wait()
    time.sleep(seconds)
    scene.fleet.start_superlink_alone()


def network_cut(scene: Scene, seconds: float) -> None:
    """Nothing passes between devices and SuperLink for so many seconds."""
    scene.network.cut()
    time.sleep(seconds)
    scene.network.mend()


def device_stalled(scene: Scene, seconds: float) -> None:
    """All processes of a device stand still for so many seconds (SIGSTOP), and go on."""
    _stop_for(seconds, scene.fleet.processes_of(DEVICES[0]))


def clientapp_stalled(scene: Scene, seconds: float) -> None:
    """The same, but its SuperNode goes on and tells that it is there."""
    clientapps = set(scene.fleet.pids("flwr-clientapp"))
    _stop_for(seconds, clientapps.intersection(scene.fleet.processes_of(DEVICES[0])))


def _stop_for(seconds: float, pids: Iterable[int]) -> None:
    pids = list(pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to a federation, and how that federation is set up."""

    inject: Callable[[Scene, float], None]
    seconds: float = 0.0
    """How long it lasts."""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """Beyond `SETTINGS`."""


FAULTS = {
    "serverapp-killed": Fault(inject=serverapp_killed),
    "superlink-killed": Fault(inject=superlink_killed, seconds=5.0),
    "superlink-away": Fault(inject=superlink_killed, seconds=90.0),
    "network-cut": Fault(inject=network_cut, seconds=60.0),
    "device-stalled": Fault(
        inject=device_stalled, seconds=STALL_TIMEOUT + 10.0, settings=STALL_SETTINGS
    ),
    # For so long that requests of two rounds are too old when it goes on.
    "clientapp-stalled": Fault(
        inject=clientapp_stalled, seconds=2 * STALL_TIMEOUT + 20.0, settings=STALL_SETTINGS
    ),
}


def run_with(fault: str, folder: Path) -> dict[str, Any]:
    """One federation with one fault; what came of it."""
    injected = FAULTS[fault]
    fleet = Fleet.with_keys(folder, DEVICES)
    device_port = fleet.proxy_port
    run_folder = folder / "run"
    try:
        with Forwarder(device_port, fleet.superlink_port) as network:
            fleet.start_superlink()
            fleet.register_devices()
            for index, name in enumerate(DEVICES):
                fleet.start_supernode(name, index, address=f"127.0.0.1:{device_port}")
            wait_until(
                lambda: all("SuperNode ID" in fleet.log(name) for name in DEVICES),
                "the SuperNodes are connected",
            )
            settings = {**SETTINGS, **injected.settings, "run.resume": str(run_folder)}
            run = fleet.start_run(settings, "--restarts", str(RESTARTS))
            wait_until(
                lambda: quantized_rounds(run_folder) or run.poll() is not None,
                "the first quantized round",
                RUN_SECONDS,
            )
            before = set(fleet.pids("flwr-clientapp"))

            def is_training() -> bool:
                new = set(fleet.pids("flwr-clientapp")) - before
                return bool(new.intersection(fleet.processes_of(DEVICES[0])))

            wait_until(
                lambda: is_training() or run.poll() is not None,
                "the next round trains",
                RUN_SECONDS,
            )
            assert run.poll() is None, fleet.log("run")[-3000:]
            scene = Scene(fleet=fleet, network=network)
            started = time.monotonic()
            injected.inject(scene, injected.seconds)
            code = run.wait(RUN_SECONDS)
            return {
                "fault": fault,
                "seconds of outage": injected.seconds,
                "exit code": code,
                "seconds from the fault to the end": round(time.monotonic() - started),
                **told(fleet.log("run"), run_folder),
                "SuperNodes still the same processes": all(
                    fleet.processes[name].poll() is None for name in DEVICES
                ),
            }
    finally:
        fleet.end()


def quantized_rounds(run_folder: Path) -> int:
    """How many quantized rounds are over."""
    return sum(line["stage"] == "quantized" for line in recorded(run_folder, "round"))


def told(log: str, run_folder: Path) -> dict[str, Any]:
    """What the operator saw, and what the run folder holds."""
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    messages = [event.get("message", "") for event in events]
    return {
        "runs": re.findall(r"^run \d+: (\S+)", log, flags=re.MULTILINE),
        "continued": [text for text in messages if text.startswith("going on after")],
        "devices by round": [
            f"{line['stage']} {line['round']}: {contributors(line, run_folder)} of"
            f" {line['num_asked']} in {seconds_without_evaluation(line):.1f} s"
            for line in recorded(run_folder, "round")
        ],
        "failed replies": [
            f"{event['stage']} {event['round']}: device {event['device']}: {event['message'][:40]}"
            for event in events
            if event["event"] == "reply-failed"
        ],
        "summary is there": (run_folder / "summary.json").exists(),
    }


def seconds_without_evaluation(line: Mapping[str, Any]) -> float:
    """From a round's beginning to its new model."""
    return float(line["round_seconds"] - line.get("evaluation_seconds", 0.0))


def contributors(line: Mapping[str, Any], run_folder: Path) -> list[int]:
    """Devices whose replies a round has used."""
    return [
        device["partition_id"]
        for device in recorded(run_folder, "device")
        if (device["stage"], device["round"], device["status"])
        == (line["stage"], line["round"], "ok")
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="*", default=list(FAULTS), metavar="FAULT")
    options = parser.parse_args()
    if unknown := set(options.faults) - FAULTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(FAULTS)}")
    failed = 0
    for fault in options.faults:
        with tempfile.TemporaryDirectory(prefix="fedquarc-outage-") as folder:
            result = run_with(fault, Path(folder))
        for name, value in result.items():
            sys.stdout.write(f"{name:36} {value}\n")
        sys.stdout.write("\n")
        sys.stdout.flush()
        failed += bool(result["exit code"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
