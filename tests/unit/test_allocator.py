"""Tests of simulations.engines.allocator."""

import platform
import resource
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from simulations.engines.allocator import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    maps = [np.ones(NUM_VALUES) for _ in range(4)]
step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""
NUM_VALUES = 8 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_a_step_takes_the_memory_of_the_one_before() -> None:
    """Four maps of 64 MB are 65,536 pages of 4 kB, each a fault when it comes from the system.

    After a first step none of five has to. In a process of its own: the setting stays.
    """
    program = STEPS.replace("NUM_VALUES", str(NUM_VALUES))
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    pages = 5 * 4 * NUM_VALUES * 8 // resource.getpagesize()
    assert int(run.stdout) < pages / 100
