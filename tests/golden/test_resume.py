"""A run that is killed and goes on ends like one that was left alone: to the last bit."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simulations.engines.pool
from common.errors import UserError
from tests.conftest import ROOT
from tests.in_process import simulate_here
from tests.records import recorded, reproducible_lines

NUM_DEVICES = 3
SETTINGS = {
    "data.num-devices": NUM_DEVICES,
    "warmup.num-rounds": 2,
    "warmup.local-epochs": 1,
    "federation.num-rounds": 3,
    "coreset.fraction": 0.2,
    "coreset.interval": 2,
    "quantization.activation-bits": 8,
    "quantization.calibration-batches": 1,
    "strategy.name": "fedavgm",
    "evaluation.device-interval": 2,
}
"""Every stage, momentum on the server, error feedback and a coreset that outlives a round."""


def run_here(folder: Path, *, resume: bool, **settings: object) -> str:
    """The federation in this process; what it told."""
    place = {"run.resume" if resume else "run.out": folder}
    return simulate_here(**{**SETTINGS, **place, **settings})


def die_before_message(number: int) -> Callable[..., bytes]:
    """A `run_message` that kills its process, at once and whatever it is doing, at a message."""
    original, count = simulations.engines.pool.run_message, 0

    def run_message(*arguments: Any) -> bytes:
        nonlocal count
        count += 1
        if count > number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    return run_message


def run_and_die(folder: Path, resume: bool, num_messages: int, settings: dict[str, object]) -> None:
    """The main function of a process that dies after so many messages."""
    simulations.engines.pool.run_message = die_before_message(num_messages)
    run_here(folder, resume=resume, **settings)


def run_until_killed(folder: Path, *, resume: bool, num_messages: int, **settings: object) -> None:
    """The federation in a process of its own; one from a fork server, which has run no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not in every process
    process = context.Process(target=run_and_die, args=(folder, resume, num_messages, settings))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def sha256(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def assert_equal_runs(folder: Path, reference: Path) -> None:
    for model in ("teacher.safetensors", "last.safetensors", "best.safetensors", "last.fqrc"):
        assert sha256(folder, model) == sha256(reference, model), model
    assert reproducible_lines(folder) == reproducible_lines(reference)
    assert not (folder / "checkpoints").exists()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    run_here(folder, resume=False)
    return folder


def damage(checkpoints: Path) -> str:
    """Flip a bit in the arrays of the newest checkpoint; its name."""
    newest = max(path for path in checkpoints.iterdir() if path.name.isdecimal())
    content = bytearray((newest / "arrays.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "arrays.safetensors").write_bytes(content)
    return newest.name


def test_a_run_that_is_killed_again_and_again(reference: Path, tmp_path: Path) -> None:
    """Killed at seeded random messages: in the first round, in the warm-up, and in QuaRC rounds.

    A continuation asks every device again who it is (3 messages), then works on from the round
    that was not finished. The fourth one finds its newest checkpoint damaged.
    """
    choice = random.Random(5)
    folder = tmp_path / "run"
    run_until_killed(folder, resume=False, num_messages=3 + choice.randrange(3))
    run_until_killed(folder, resume=True, num_messages=3 + 3 + choice.randrange(3))
    # The second round of the warm-up, calibration, and one to two rounds of QuaRC.
    run_until_killed(folder, resume=True, num_messages=3 + 3 + 3 + 3 + choice.randrange(1, 6))
    with pytest.raises(UserError, match=r"training.learning-rate = 0.5: the run in .* has 0.02"):
        run_here(folder, resume=True, **{"training.learning-rate": 0.5})
    name = damage(folder / "checkpoints")
    told = run_here(folder, resume=True)
    assert f"checkpoint {name} is damaged" in told
    assert "going on after" in told
    assert_equal_runs(folder, reference)
    with pytest.raises(UserError, match="this run is over"):
        run_here(folder, resume=True)


def kill_after_rounds(command: list[str], folder: Path, num_rounds: int) -> None:
    """SIGKILL to a command once its run has recorded so many rounds."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.02)
        if len(recorded(folder, "round")) >= num_rounds:
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL


def test_worker_processes_go_on_as_well(reference: Path, tmp_path: Path) -> None:
    """SIGKILL to `python -m simulations` once a seeded random number of rounds is recorded."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "simulations", "run", "digits", "--workers", "2"]
    overrides = ["--set", *(f"{key}={value}" for key, value in SETTINGS.items())]
    num_rounds = random.Random(7).randrange(1, 6)
    kill_after_rounds([*command, "--out", str(folder), *overrides], folder, num_rounds)
    done = subprocess.run(
        [*command, "--resume", str(folder), *overrides], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_equal_runs(folder, reference)


def test_a_comparison_goes_on_within_a_run(reference: Path, tmp_path: Path) -> None:
    """Killed once four rounds, one of them quantized, are recorded: at least three are kept."""
    pytest.importorskip("matplotlib")
    command = [
        *(sys.executable, "-m", "simulations", "compare", "digits", "--workers", "0"),
        *("--set", *(f"{key}={value}" for key, value in SETTINGS.items())),
        *("--out", str(tmp_path)),
    ]
    folder = tmp_path / "runs" / "digits--seed-0"
    kill_after_rounds(command, folder, 4)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stdout
    assert_equal_runs(folder, reference)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "1 finished already, 0 to run" in again.stdout


FLEET = """
classes:
  steady: {like: raspberry-pi-5, share: 0.5, failure-rate: 0.1, mean-delay-seconds: 0.2}
  in-and-out:
    like: raspberry-pi-4
    share: 0.5
    weight-bits: [2]
    battery-wh: 0.003
    availability: {on-seconds: 0.6, off-seconds: 0.4}
"""
"""Devices that come and go, fail, wait, and run out of battery within the run."""


FIRST_MESSAGES = {"rounds": 30, "mixed-bits": 30, "fedbuff": 22}
"""Queries, warm-up and calibration are over by then, and some rounds of QuaRC."""
FLEET_RUNS: dict[str, dict[str, object]] = {
    "rounds": {
        "fleet.deadline": 2.0,
        "fleet.over-selection": 1.5,
        "federation.fraction": 0.6,
        "coreset.adaptive": "true",
        "federation.downlink-format": "delta",
    },
    "mixed-bits": {
        "federation.mixed-bits": "2,4",
        "federation.bit-weighting": "error",
        "federation.downlink-format": "delta",
    },
    "fedbuff": {
        "strategy.name": "fedbuff",
        "strategy.concurrency": 3,
        "strategy.buffer-size": 2,
        "coreset.selection": "quarc",
        "coreset.interval": 1,
    },
}


@pytest.mark.parametrize("name", FLEET_RUNS)
def test_an_emulated_fleet_goes_on_in_virtual_time(name: str, tmp_path: Path) -> None:
    """Killed at a seeded random message of QuaRC's last rounds, while half of the devices are away.

    The clock, who is there and who is not, batteries, fates and every virtual figure are those of
    a run that was left alone, and so is the model. With FedBuff devices are training, each from a
    version of its own, when the checkpoint is written, some of them for real already.
    """
    path = tmp_path / "comings-and-goings.yaml"
    path.write_text(FLEET)
    settings: dict[str, object] = {
        "fleet.name": path,
        "data.num-devices": 6,
        "warmup.num-rounds": 1,
        "federation.num-rounds": 5,
        "federation.min-devices": 1,
        **FLEET_RUNS[name],
    }
    reference, folder = tmp_path / "reference", tmp_path / "run"
    run_here(reference, resume=False, **settings)
    num_messages = FIRST_MESSAGES[name] + random.Random(3).randrange(8)
    run_until_killed(folder, resume=False, num_messages=num_messages, **settings)
    assert reproducible_lines(folder)[-1] != reproducible_lines(reference)[-1]
    path.write_text(FLEET.replace("0.003", "0.002"))
    with pytest.raises(UserError, match="a class was changed"):
        run_here(folder, resume=True, **settings)
    path.write_text(FLEET)
    run_here(folder, resume=True, **settings)
    assert_equal_runs(folder, reference)


def test_a_private_run_goes_on_with_its_account(tmp_path: Path) -> None:
    """Killed in the second QuaRC round: the same noise and weights, and no round is paid twice.

    The lines of all rounds, with the epsilon spent so far, are compared, and the final account.
    """
    pytest.importorskip("dp_accounting")
    settings: dict[str, object] = {
        "privacy.mechanism": "central",
        "privacy.clipping-norm": 10.0,
        "privacy.noise-multiplier": 0.02,
        "warmup.num-rounds": 1,
        "federation.num-rounds": 2,
    }
    reference, folder = tmp_path / "reference", tmp_path / "run"
    run_here(reference, resume=False, **settings)
    # Who is there, the warm-up, calibration, one round of QuaRC, and one device of the next.
    run_until_killed(folder, resume=False, num_messages=3 + 3 + 3 + 3 + 1, **settings)
    run_here(folder, resume=True, **settings)
    assert_equal_runs(folder, reference)
    accounts = [json.loads((run / "summary.json").read_text()) for run in (reference, folder)]
    assert accounts[0]["privacy"]["epsilon"] > 0
    assert accounts[0]["privacy"] == accounts[1]["privacy"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("precious")
    with pytest.raises(UserError, match="expected the folder of a run"):
        run_here(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    shutil.rmtree(tmp_path)
