"""Tests of simulations.throughput: arithmetic, memory of processes, and this project's side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from common.errors import UserError
from simulations.throughput.process_tree import tree_bytes, tree_cpu_seconds, tree_pids
from simulations.throughput.run import OWN, Measurement, measure, table_row

NESTED = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"],
                         stdin=subprocess.PIPE)
block = b"x" * 30_000_000
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_row() -> None:
    """90 / 22.5 = 4 times as many, with 10 instead of 35 ms of processor time: 3.5."""
    own = Measurement(fits_per_second=90.0, cpu_seconds_per_fit=0.01, peak_bytes=1_500_000_000)
    stock = Measurement(fits_per_second=22.5, cpu_seconds_per_fit=0.035, peak_bytes=3_000_000_000)
    assert table_row(1000, 2, own, stock) == (
        "| 1,000 | 2 | 90.0 fits/s | 22.5 fits/s | 4.0 | 10.0 ms/fit | 35.0 ms/fit | 3.5 "
        "| 1,500 MB | 3,000 MB |"
    )


def test_memory_of_a_process_and_its_children() -> None:
    """A process that holds 30 MB, and its child; both are descendants of this one."""
    with subprocess.Popen(
        [sys.executable, "-c", NESTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert sorted(tree_pids(process.pid)) == sorted([process.pid, child])
        assert {process.pid, child} <= set(tree_pids(os.getpid()))
        assert 30_000_000 < tree_bytes(process.pid) < 90_000_000
        process.kill()
    assert tree_bytes(process.pid) == 0


def test_processor_time_of_a_process_and_its_children() -> None:
    """What this process does counts: 0.3 s of a loop, in clock ticks of 0.01 s."""
    before, start = tree_cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - start < 0.3:
        pass
    assert 0.28 <= tree_cpu_seconds(os.getpid()) - before < 5.0


def test_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds end at 10, 12 and 15 s, after 30, 33 and 40 s of processor time: two rounds of 20
    devices in 5 s, 8 fits a second, 0.25 s of processor time each."""
    timing = {"ended": [10, 12, 15], "cpu_seconds": [30, 33, 40], "num_fits": 60}
    write = f"import pathlib, sys; pathlib.Path(sys.argv[-1]).write_text({json.dumps(timing)!r})"
    monkeypatch.setattr(
        "simulations.throughput.run.MAIN", write.replace("{", "{{").replace("}", "}}")
    )
    measured = measure("any", 20, 3, num_workers=1)
    assert (measured.fits_per_second, measured.cpu_seconds_per_fit) == (8.0, 0.25)


def test_this_projects_side() -> None:
    """Two devices, two rounds: four answers, one round that counts."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("flwr_datasets", reason="the split comes with flwr-datasets")
    measured = measure(OWN, 2, 2, num_workers=1)
    assert measured.fits_per_second > 0
    assert measured.cpu_seconds_per_fit > 0
    assert measured.peak_bytes > 100_000_000


def test_a_side_that_fails_is_an_error() -> None:
    with pytest.raises(UserError, match="no_such_module failed with 2 devices: ModuleNotFound"):
        measure("no_such_module", 2, 2, num_workers=1)
