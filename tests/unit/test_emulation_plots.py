"""Tests of simulations.emulation.plots."""

from pathlib import Path
from typing import Any

import pytest

from simulations.emulation.plots import (
    FATES,
    cost_curves,
    describe_start,
    fate_matrix,
    plot_costs,
    plot_timeline,
    time_unit,
)


def round_line(stage: str, number: int, clock: float, **figures: Any) -> dict[str, Any]:
    return {
        "kind": "round",
        "stage": stage,
        "round": number,
        "upload_bytes": 10,
        "download_bytes": 100,
        "joules": 3.0,
        "virtual_clock_seconds": clock,
        "away": [],
        **figures,
    }


def device_line(partition_id: int, fate: str, task: str = "train") -> dict[str, Any]:
    return {"kind": "device", "task": task, "partition_id": partition_id, "fate": fate}


LINES = [
    device_line(0, "trained"),
    device_line(2, "late"),
    round_line("float", 1, 5.0, away=[1], accuracy=1.0),
    device_line(0, "failed"),
    device_line(1, "surplus"),
    {"kind": "device", "task": "evaluate", "partition_id": 2},
    round_line("quantized", 1, 9.0, accuracy=50.0),
]


def test_costs_hold_the_warm_up() -> None:
    """Two rounds of 110 bytes and 3 J each; the float model's accuracy is another model's."""
    rounds = [line for line in LINES if line["kind"] == "round"]
    assert cost_curves(rounds) == {
        "accuracy": [50.0],
        "virtual_seconds": [9.0],
        "bytes": [220.0],
        "joules": [6.0],
    }


def test_costs_hold_the_exchange_of_statistics() -> None:
    """Its seconds and joules are the round's; so are its 7 bytes up and 20 down, beside 110."""
    statistics = {"statistics_upload_bytes": 7, "statistics_download_bytes": 20}
    evaluation = {"evaluation_upload_bytes": 1000, "evaluation_download_bytes": 1000}
    rounds = [round_line("quantized", 1, 9.0, accuracy=50.0, **statistics, **evaluation)]
    assert cost_curves(rounds)["bytes"] == [137.0]


def test_the_title_says_what_comes_before_the_curves() -> None:
    rounds = [round_line(stage, 1, 1.0) for stage in ("float", "calibration", "quantized")]
    start = "\ncounted since the run began: before the first round lies"
    assert describe_start(rounds) == f"{start} float warm-up and calibration"
    assert describe_start(rounds[1:]) == f"{start} calibration"
    assert describe_start(rounds[2:]) == ""


def test_fates_by_device_and_round() -> None:
    fates = [[FATES[index] for index in row] for row in fate_matrix(LINES, 3).tolist()]
    assert fates == [["trained", "failed"], ["away", "surplus"], ["late", "not asked"]]


def test_who_is_under_way_was_asked() -> None:
    """FedBuff: device 1 is asked in the first round and answers in the third; device 0 answers in
    the first and is asked again."""
    lines = [
        device_line(0, "trained"),
        round_line("quantized", 1, 5.0, under_way=[0, 1], away=[2]),
        round_line("quantized", 2, 6.0, under_way=[0, 1]),
        device_line(1, "trained"),
        round_line("quantized", 3, 9.0),
    ]
    fates = [[FATES[index] for index in row] for row in fate_matrix(lines, 3).tolist()]
    assert fates == [
        ["trained", "under way", "not asked"],
        ["under way", "under way", "trained"],
        ["away", "not asked", "not asked"],
    ]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(299.0, "s"), (300.0, "min"), (10_799.0, "min"), (10_800.0, "h")]
)
def test_units(seconds: float, unit: str) -> None:
    assert time_unit(seconds)[1] == unit


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    summary = {
        "model": "resnet8",
        "dataset": "digits",
        "fleet": "made",
        "selection": "quarc",
        "coreset_fraction": 0.1,
        "float_accuracy": 90.0,
        "final_accuracy": 50.0,
    }
    plot_timeline(LINES, ["slow", "quick", "slow"], "made", tmp_path / "timeline.png")
    rounds = [line for line in LINES if line["kind"] == "round"]
    plot_costs(rounds, summary, tmp_path / "virtual.png")
    for name in ("timeline.png", "virtual.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2
