"""Run folders as a run leaves them, with figures that a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import Config
from common.settings import Scalar
from server.records.recorder import config_yaml

SUMMARY: dict[str, Any] = {
    "num_rounds": 4,
    "float_accuracy": 66.0,
    "quantized_accuracy_before": 2.0,
    "upload_bytes": 4_000_000,
    "float32_upload_bytes": 32_000_000,
    "select_seconds": 10.0,
    "train_seconds": 90.0,
    "wall_seconds": 120.0,
    "versions": {"python": "3.11.7", "torch": "2.9.0"},
}


def write_run(
    folder: Path,
    accuracies: Sequence[float],
    *,
    settings: dict[str, Scalar] | None = None,
    finished: bool = True,
    **summary: Any,
) -> Path:
    """A run that evaluated in every second round and sent 1 MB in each; returns its folder.

    Args:
        folder: Made.
        accuracies: Percent, after rounds 2, 4, ...
        settings: That are not the defaults.
        finished: Whether it has a summary.
        summary: Figures that replace those of `SUMMARY`.
    """
    folder.mkdir(parents=True)
    config = Config.from_flat({**(settings or {}), "run.out": str(folder)})
    (folder / "config.yaml").write_text(config_yaml(config))
    lines: list[dict[str, Any]] = [{"kind": "round", "stage": "float", "round": 1, "accuracy": 1.0}]
    for number in range(1, 2 * len(accuracies) + 1):
        line = {"kind": "round", "stage": "quantized", "round": number, "upload_bytes": 1_000_000}
        if number % 2 == 0:
            line["accuracy"] = accuracies[number // 2 - 1]
        lines += [{"kind": "device", "stage": "quantized", "round": number}, line]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        figures = {
            **SUMMARY,
            "final_accuracy": accuracies[-1],
            "best_accuracy": max(accuracies),
            **summary,
        }
        (folder / "summary.json").write_text(json.dumps(figures))
    return folder
