"""A whole device, SuperNode and ClientApp, under a limit of memory that the system enforces.

Needs Linux's control groups, as root, and a build of torch without CUDA, which alone takes more
than half a gigabyte. `measure` is what docs/results/memory.md was made with, by
``python -m tests.integration.test_memory_limit resnet20 512 5000``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from client.memory import MB
from common.settings import Scalar
from tests.integration.one_device import RUN_SECONDS, run_one_device
from tests.unit.image_files import png
from tests.waiting import wait_until

NUM_CLASSES = 10


@dataclass(frozen=True)
class ControlGroup:
    """A control group with a limit of memory, of version 1 or 2."""

    folder: Path

    @property
    def _is_v1(self) -> bool:
        return (self.folder / "memory.limit_in_bytes").exists()

    def limit(self, num_bytes: int) -> None:
        """From now on; swap is not counted: there is none to be had."""
        name = "memory.limit_in_bytes" if self._is_v1 else "memory.max"
        (self.folder / name).write_text(str(num_bytes))

    @property
    def peak_bytes(self) -> int:
        """The most that was ever charged: memory of all its processes and file pages they read."""
        name = "memory.max_usage_in_bytes" if self._is_v1 else "memory.peak"
        return int((self.folder / name).read_text())

    @property
    def num_killed(self) -> int:
        """Processes that the system ended because the limit was reached."""
        name = "memory.oom_control" if self._is_v1 else "memory.events"
        lines = (self.folder / name).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@contextmanager
def control_group() -> Iterator[ControlGroup]:
    """A new group; the test is skipped where none can be had."""
    root = Path("/sys/fs/cgroup")
    parent = root / "memory" if (root / "memory").is_dir() else root
    folder = parent / f"fedquarc-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        group = ControlGroup(folder)
        try:
            group.limit(2**40)
        except OSError as error:
            pytest.skip(f"the control group takes no limit of memory: {error}")
        yield group
    finally:
        # Processes that were killed leave the group a little later.
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the group is empty")
        folder.rmdir()


def measure(model: str, limit_bytes: int, num_images: int, folder: Path) -> dict[str, int | float]:
    """One warm-up round and one quantized round of one device; what they took."""
    images = folder / "images"
    generator = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        (images / str(label)).mkdir(parents=True)
        for index in range(num_images // NUM_CLASSES):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            (images / str(label) / f"{index}.png").write_bytes(png(pixels))
    settings: dict[str, Scalar] = {"model.name": model, "coreset.fraction": 0.1}
    result: dict[str, int | float] = {"limit": limit_bytes, "images": num_images}
    with control_group() as group:
        group.limit(limit_bytes)
        # Itself first, then what it starts.
        enter = f'echo $$ > {group.folder}/cgroup.procs && exec "$@"'
        summary = run_one_device(
            folder,
            images,
            settings,
            wrap=lambda command: ["sh", "-c", enter, "sh", *command],
            options=["--max-memory", str(limit_bytes)],
            at_end=lambda: result.update(peak=group.peak_bytes, killed=group.num_killed),
        )
    return {**result, "accuracy": summary["final_accuracy"]}


@pytest.mark.timeout(3 * RUN_SECONDS)
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(("model", "limit"), [("resnet20", 512), ("mobilenetv2-cifar", 700)])
def test_a_whole_device_trains_within_its_limit(model: str, limit: int, tmp_path: Path) -> None:
    """The run completes, and nothing was killed to make room."""
    result = measure(model, limit * MB, 640, tmp_path)
    assert result["peak"] <= limit * MB
    assert not result["killed"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fedquarc-memory-") as work:
        print(measure(sys.argv[1], int(sys.argv[2]) * MB, int(sys.argv[3]), Path(work)))
