"""Waiting for what another process does, on a machine that may be slow."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 240.0
"""More than a process needs to import torch and start on a busy machine."""


def wait_until(
    is_done: Callable[[], object],
    what: str,
    seconds: float = PATIENCE_SECONDS,
    *,
    interval: float = 0.2,
) -> None:
    """Poll every ``interval`` seconds until something is so; TimeoutError when it never is."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(interval)
