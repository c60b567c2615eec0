"""The view of a running federation, from lines as they are recorded."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from server.deployment.run_view import RunView


def device_line(
    partition_id: int, number: int, status: str = "ok", **figures: Any
) -> dict[str, Any]:
    return {
        "kind": "device",
        "stage": "quantized",
        "round": number,
        "task": "train",
        "partition_id": partition_id,
        "status": status,
        "reason": "",
        "upload_bytes": 1000,
        "download_bytes": 2000,
        **figures,
    }


def round_line(number: int) -> dict[str, Any]:
    return {
        "kind": "round",
        "stage": "quantized",
        "round": number,
        "num_asked": 2,
        "num_accepted": 1,
        "refused": {"bad-update": 1},
        "skipped": False,
        "train_loss": 0.5,
        "upload_bytes": 2000,
        "download_bytes": 4000,
        "round_seconds": 1.5,
        "accuracy": 91.25,
    }


LINES = [
    device_line(0, 1, coreset_size=12, round_seconds=0.5, temperature_celsius=61.0),
    device_line(1, 1, coreset_size=20, round_seconds=0.7),
    device_line(0, 2, coreset_size=12, num_samples=48, weight_bits=4, round_seconds=0.6),
    device_line(1, 2, "bad-update"),
    round_line(2),
]


def text_of(view: RunView) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(view.render("run"))
    return console.export_text()


def view_of(lines: list[dict[str, Any]]) -> RunView:
    view = RunView()
    for line in lines:
        view.add(line)
    return view


def test_devices_and_rounds_are_added_up() -> None:
    """Device 1: two exchanges of 1000 B up, the last one refused after a good one in round 1.

    Device 0: 12 of 48 images are 25 %.
    """
    view = view_of(LINES)
    good, refused = view.devices[0], view.devices[1]
    assert (good.last_round, good.missed, good.num_refused) == ("quantized 2", 0, 0)
    assert (good.coreset_size, good.round_seconds, good.temperature) == (12, 0.6, 61.0)
    assert (refused.last_round, refused.missed, refused.num_refused) == ("quantized 1", 1, 1)
    assert (refused.upload_bytes, refused.download_bytes) == (2000, 4000)
    text = text_of(view)
    assert "91.25 %" in text
    assert "bad-update 1" in text
    assert "1/2" in text
    assert "12 (25%)" in text
    assert (good.weight_bits, refused.weight_bits) == (4, None)


def test_a_round_that_is_told_again_counts_once() -> None:
    """After a resumption: the round whose checkpoint was not written comes a second time."""
    again = {**round_line(2), "accuracy": 50.0}
    view = view_of([round_line(1), round_line(2), again])
    assert [(line["round"], line["accuracy"]) for line in view.rounds] == [(1, 91.25), (2, 50.0)]


def test_it_fits_a_terminal_of_80_columns() -> None:
    view = RunView()
    for partition_id in range(12):
        figures: dict[str, Any] = {"num_samples": 480, "coreset_size": 240, "round_seconds": 12.3}
        line = device_line(partition_id, 20, **figures)
        view.add({**line, "upload_bytes": 1_230_000, "download_bytes": 123_000_000})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(view.render("run"))
    text = console.export_text()
    assert "…" not in text
    assert "quantized 20" in text
    assert "240 (50%)" in text
    assert "123 MB" in text
    assert "°C" not in text
