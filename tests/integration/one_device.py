"""A federation of one device with a folder of images: for what depends on the device alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.settings import Scalar
from server.cli import main as operate
from server.deployment.keys import KeyFolder, create_fleet_keys
from tests.conftest import ROOT
from tests.integration.deployment import Fleet, free_ports

NAME = "device-0"
RUN_SECONDS = 1800
SETTINGS = {
    "data.dataset": "folder",
    "data.num-devices": 1,
    "warmup.num-rounds": 1,
    "warmup.local-epochs": 1,
    "federation.num-rounds": 1,
    "federation.min-devices": 1,
    "federation.round-timeout": float(RUN_SECONDS),
    "evaluation.device-interval": 0,
}


def run_one_device(
    folder: Path,
    images: Path,
    settings: dict[str, Scalar],
    *,
    wrap: Callable[[Sequence[str]], Sequence[str]],
    python: str = sys.executable,
    options: Sequence[str] = (),
    at_end: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One warm-up round and one quantized round over TLS; returns summary.json.

    Args:
        folder: new or empty; logs, keys and results go there.
        images: CLASS/*.png, the device's and the server's.
        settings: beyond `SETTINGS`.
        wrap: command of the device -> command that starts it.
        python: that runs the device.
        options: of ``python -m client run``.
        at_end: called when the run has completed, before the device is ended.

    Raises:
        AssertionError: the run failed; says what server and device said last.
    """
    keys = KeyFolder(root=folder / "secrets")
    create_fleet_keys(keys, ["localhost", "127.0.0.1"], [NAME])
    superlink_port, unused_port = free_ports(2)
    fleet = Fleet(folder, keys, superlink_port, unused_port)
    everything = {
        **SETTINGS,
        "data.root": str(images),
        "run.out": str(folder / "run"),
        **settings,
    }
    try:
        fleet.start_superlink()
        operate(["keys", "--dir", str(keys.root), "register", "--superlink", fleet.superlink])
        device = [
            *(python, "-m", "client", "run", "--superlink", fleet.superlink),
            *("--data", str(images), "--key", str(keys.device_key(NAME))),
            *("--ca", str(keys.ca_certificate), "--partition-id", "0", "--threads", "1"),
            *options,
        ]
        fleet.start(NAME, *wrap(device))
        run = fleet.start(
            "run",
            *(sys.executable, "-m", "server", "run", "--app", str(ROOT)),
            *("--superlink", fleet.superlink, "--ca", str(keys.ca_certificate)),
            *("--set", *(f"{key}={value}" for key, value in everything.items())),
        )
        code = run.wait(2 * RUN_SECONDS)
        assert code == 0, fleet.log("run")[-3000:] + fleet.log(NAME)[-3000:]
        at_end()
    finally:
        fleet.end()
    return dict(json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8")))
