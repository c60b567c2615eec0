"""``python -m simulations run --fleet``: two runs with one seed, in virtual time; with FedBuff."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import FinishedRun, simulate
from tests.in_process import simulate_here
from tests.records import recorded, reproducible_lines

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, Path]:
    """The command line's, in two worker processes, and one in this process."""
    folder = tmp_path_factory.mktemp("fleet")
    settings: dict[str, object] = {
        "federation.min-devices": 1,
        "fleet.deadline": 2.0,
        "coreset.adaptive": "true",
    }
    first = simulate(folder / "first", "--fleet", "flaky", "--workers", "2", **settings)
    simulate_here(**settings, **{"fleet.name": "flaky", "run.out": folder / "second"})
    return first, folder / "second"


def test_everything_but_the_wall_clock_is_the_same(runs: tuple[FinishedRun, Path]) -> None:
    first, second = runs
    assert first.exit_code == 0, first.errors
    assert reproducible_lines(first.folder) == reproducible_lines(second)


def test_the_run_folder_tells_of_virtual_time(runs: tuple[FinishedRun, Path]) -> None:
    folder = runs[0].folder
    summary = json.loads((folder / "summary.json").read_text())
    rounds = recorded(folder, "round")
    assert summary["virtual_seconds"] == rounds[-1]["virtual_clock_seconds"] > 0
    assert sum(line["virtual_seconds"] for line in rounds) == pytest.approx(
        summary["virtual_seconds"], abs=1e-9
    )
    assert summary["joules"] == pytest.approx(sum(line["joules"] for line in rounds))
    assert summary["fleet"] == "flaky"
    for name in ("virtual.png", "timeline.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


FEDBUFF: dict[str, object] = {
    "strategy.name": "fedbuff",
    "strategy.concurrency": 4,
    "strategy.buffer-size": 3,
    "federation.num-rounds": 5,
    "evaluation.device-interval": 3,
}


@pytest.fixture(scope="module")
def buffered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Four devices of four speeds, all of them training all the time: in this process, one after
    the other, and in two worker processes."""
    folder = tmp_path_factory.mktemp("fedbuff")
    fleet = folder / "four-speeds.yaml"
    fleet.write_text(four_speeds())
    second = simulate(folder / "second", "--fleet", str(fleet), "--workers", "2", **FEDBUFF)
    assert second.exit_code == 0, second.errors
    first = folder / "first"
    simulate_here(**FEDBUFF, **{"fleet.name": fleet, "run.out": first})
    return first, second.folder


def four_speeds() -> str:
    """0.2 to 1.6 GFLOP/s; 10^6 bytes a second down, a quarter of it up, 0.25 s either way."""
    shared = (
        "memory-mb: 1000, uplink-mbits: 2, downlink-mbits: 8, latency-seconds: 0.25, "
        "training-watts: 5, idle-watts: 1, radio-watts: 3"
    )
    rates = (0.2, 0.4, 0.8, 1.6)
    classes = [f"  c{rate}: {{count: 1, training-gflops: {rate}, {shared}}}" for rate in rates]
    return "\n".join(["classes:", *classes, ""])


def test_fedbuff_does_not_depend_on_the_workers(buffered: tuple[Path, Path]) -> None:
    first, second = buffered
    assert reproducible_lines(first) == reproducible_lines(second)
    for name in ("last.safetensors", "best.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_fedbuff_by_arithmetic(buffered: tuple[Path, Path]) -> None:
    """With as many tasks as devices, a device is asked again at the moment of its answer, so that
    its answers come at the sums of its own durations. Three answers make a step; who answers k
    steps after it was asked is k steps old."""
    lines = [line for line in recorded(buffered[0]) if line.get("task") != "evaluate"]
    (warmup,) = [x for x in lines if x["kind"] == "round" and x["stage"] == "float"]
    arrivals = dict.fromkeys(range(4), warmup["virtual_clock_seconds"])
    asked_at = dict.fromkeys(range(4), 0)
    num_steps, now, staleness = 0, 0.0, list[int]()
    for line in (line for line in lines if line["stage"] == "quantized"):
        if line["kind"] == "round":
            assert line["virtual_clock_seconds"] == pytest.approx(now, abs=1e-9)
            assert len(staleness) == line["num_accepted"] == 3
            assert line["mean_staleness"] == pytest.approx(sum(staleness) / 3)
            assert line["max_staleness"] == max(staleness)
            staleness.clear()
            continue
        device = line["partition_id"]
        download = 0.25 + line["download_bytes"] / 1e6
        upload = 0.25 + 4 * line["upload_bytes"] / 1e6
        assert line["virtual_download_seconds"] == pytest.approx(download, abs=1e-9)
        assert line["virtual_upload_seconds"] == pytest.approx(upload, abs=1e-9)
        seconds = download + line["virtual_compute_seconds"] + upload
        assert line["virtual_seconds"] == pytest.approx(seconds, abs=1e-9)
        arrivals[device] += line["virtual_seconds"]
        assert arrivals[device] >= now, "answers come in the order of time"
        now = arrivals[device]
        assert line["staleness"] == num_steps - asked_at[device]
        staleness.append(line["staleness"])
        num_steps += len(staleness) == 3
        asked_at[device] = num_steps
    assert num_steps == 5
    assert max(line.get("max_staleness", 0) or 0 for line in lines) > 0
