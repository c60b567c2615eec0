"""A federation of one device with a folder of images: for what depends on the device alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.settings import Scalar
from tests.integration.deployment import Fleet

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
    fleet = Fleet.with_keys(folder, [NAME])
    everything = {
        **SETTINGS,
        "data.root": str(images),
        "run.out": str(folder / "run"),
        **settings,
    }
    try:
        fleet.start_superlink()
        fleet.register_devices()
        device = [
            *(python, "-m", "client", "run", "--superlink", fleet.superlink),
            *("--data", str(images), "--key", str(fleet.keys.device_key(NAME))),
            *("--ca", str(fleet.keys.ca_certificate), "--partition-id", "0", "--threads", "1"),
            *options,
        ]
        fleet.start(NAME, *wrap(device))
        run = fleet.start_run(everything)
        code = run.wait(2 * RUN_SECONDS)
        assert code == 0, fleet.log("run")[-3000:] + fleet.log(NAME)[-3000:]
        at_end()
    finally:
        fleet.end()
    return dict(json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8")))
