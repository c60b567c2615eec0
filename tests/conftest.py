"""What all tests share: an environment in which nothing outside is read, written or called."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before anything imports torch or Flower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

ROOT = Path(__file__).parents[1]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``num_bytes``, as on a disk that is full.

    Within a test, not around it: what pytest says about it may go to a file as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TINY_FEDERATION = {
    "data.num-devices": 4,
    "warmup.num-rounds": 1,
    "warmup.local-epochs": 1,
    "federation.num-rounds": 2,
    "coreset.fraction": 0.3,
    "evaluation.device-interval": 1,
}
"""Settings for the digits scenario that make every stage run, in seconds."""


@dataclass(frozen=True)
class FinishedRun:
    """A run of ``python -m simulations`` that is over."""

    folder: Path
    exit_code: int
    output: str
    errors: str


def simulate(folder: Path, *arguments: str, **settings: object) -> FinishedRun:
    """Run the digits scenario, made tiny, in a process of its own."""
    overrides = [f"{key}={value}" for key, value in {**TINY_FEDERATION, **settings}.items()]
    command = [sys.executable, "-m", "simulations", "run", "digits", "--out", str(folder)]
    done = subprocess.run(
        [*command, *arguments, "--set", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return FinishedRun(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images and teachers are kept in a folder of this test session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDQUARC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


KEEPING: Mapping[str, object] = {"federation.downlink-format": "delta"}
"""Devices keep the model as well as their error: what an engine has to hold for them."""


@pytest.fixture(scope="session")
def ray_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The tiny federation in Flower's Simulation Runtime on Ray, run once for all tests."""
    folder = tmp_path_factory.mktemp("ray") / "run"
    return simulate(folder, "--engine", "ray", "--workers", "2", **KEEPING)


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another user, also where the tests run as root: whatever is in it is denied."""
    folder = tmp_path / "locked"
    stat = Path.stat

    def denied(path: Path, **options: bool) -> os.stat_result:
        if folder in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    return folder
