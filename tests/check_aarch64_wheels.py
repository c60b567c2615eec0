"""Every package that a device needs has a wheel for 64-bit ARM: no compiler on a Raspberry Pi.

Run as ``python -m tests.check_aarch64_wheels``; it asks the package index, nothing is
installed. pip judges environment markers by the
machine that it runs on: on x86 the list holds packages that a Raspberry Pi leaves out (CUDA's).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PLATFORMS = (
    *(f"manylinux_2_{minor}_aarch64" for minor in (36, 35, 34, 31, 28, 27, 26, 24, 17)),
    "manylinux2014_aarch64",
)
"""Tags that Raspberry Pi OS 12 (glibc 2.36) takes."""


def main() -> int:
    """Resolve; returns pip's exit code."""
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    with tempfile.TemporaryDirectory() as target:
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
            *("--disable-pip-version-check", "--target", target),
            *("--only-binary=:all:", "--python-version", "3.11"),
            *("--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
            *(f"--platform={platform}" for platform in PLATFORMS),
            *dependencies,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    resolved = [line for line in lines if line.startswith("Would install")]
    if done.returncode or not resolved:
        sys.stderr.write(done.stderr)
        return done.returncode or 1
    print("CPython 3.11, glibc 2.36, aarch64, wheels only:")
    for package in resolved[-1].split()[2:]:
        print(" ", package)
    return 0


if __name__ == "__main__":
    sys.exit(main())
