"""Ctrl-C in the middle of a run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS


def test_ctrl_c_ends_a_run_cleanly(tmp_path: Path) -> None:
    """Everyone in the terminal's group gets the signal: one line, 130, nothing left behind."""
    states = tmp_path / "tmp"
    states.mkdir()
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "simulations", "run", "digits", "--workers", "2"),
            *("--set", "warmup.num-rounds=1000", "--out", str(tmp_path / "run")),
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(states)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background ignores Ctrl-C, and so do its children: a terminal's do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("float warm-up    1/1000"):
            break
    os.killpg(run.pid, signal.SIGINT)
    # Ends only when every process that holds the pipes has gone: no worker stays behind.
    _, errors = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 130
    assert errors.startswith("interrupted")  # and how to go on, once a round is kept
    assert errors.count("\n") == 1
    assert not list(states.glob("fedquarc-*"))
