"""virtual.png and timeline.png: what a run on an emulated fleet cost, and who took part when."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.atomic_file import replacing
from common.devices import JOULES_PER_WH
from common.extras import import_extra
from common.messages import Stage
from server.records.plots import describe_coreset
from server.records.recorder import METRICS_FILE
from server.records.summary import of_stage
from simulations.display.console import STAGE_NAMES

Line = Mapping[str, Any]

NEEDED_FOR = "the pictures of the fleet"
COLOUR, REFERENCE = "#1f4e79", "#7f7f7f"

FATES = ("not asked", "away", "under way", "trained", "late", "surplus", "failed")
FATE_COLOURS = ("#f2f2f2", "#bdbdbd", "#b8d8b0", "#1f4e79", "#d95f02", "#a6bddb", "#b2182b")
NOT_ASKED, AWAY, UNDER_WAY = range(3)

BYTES = (
    *("upload_bytes", "download_bytes"),
    *("statistics_upload_bytes", "statistics_download_bytes"),
)
"""Of a round: what its tasks sent; evaluations on devices are the harness's own measurements."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cost_curves(rounds: Sequence[Line]) -> dict[str, list[float]]:
    """Accuracy of the quantized model, and what had been spent by then, warm-up included.

    Returns:
        Lists of equal length: accuracy (percent), virtual_seconds, bytes (up and down), joules.
    """
    curves: dict[str, list[float]] = {
        name: [] for name in ("accuracy", "virtual_seconds", "bytes", "joules")
    }
    spent_bytes = spent_joules = 0.0
    for line in rounds:
        # Joules and seconds hold the exchange of statistics, which is before the evaluation, too.
        spent_bytes += math.fsum(line.get(name, 0) for name in BYTES)
        spent_joules += line["joules"]
        if line["stage"] == Stage.QUANTIZED.value and line.get("accuracy") is not None:
            curves["accuracy"].append(line["accuracy"])
            curves["virtual_seconds"].append(line["virtual_clock_seconds"])
            curves["bytes"].append(spent_bytes)
            curves["joules"].append(spent_joules)
    return curves


def describe_start(rounds: Iterable[Line]) -> str:
    """A line for a title: what is spent before the curves of `cost_curves` begin; empty: nothing.

    Args:
        rounds: lines of metrics.jsonl.
    """
    stages = {line["stage"] for line in rounds}
    earlier = (Stage.FLOAT, Stage.CALIBRATION)
    before = [STAGE_NAMES[stage] for stage in earlier if stage.value in stages]
    if not before:
        return ""
    return f"\ncounted since the run began: before the first round lies {' and '.join(before)}"


def fate_matrix(lines: Iterable[Line], num_devices: int) -> NDArray[np.int8]:
    """Index into `FATES` of every device in every round, [devices, rounds], in the order of time.

    Args:
        lines: of metrics.jsonl; a round's own line comes after those of its devices.
        num_devices: of the run.
    """
    columns = []
    column = np.full(num_devices, NOT_ASKED, dtype=np.int8)
    for line in lines:
        if line["kind"] == "device" and line["task"] == "train":
            column[line["partition_id"]] = FATES.index(line["fate"])
        elif line["kind"] == "round":
            column[line["away"]] = AWAY
            # With FedBuff: asked, now or in an earlier round, and yet to answer.
            column[[i for i in line.get("under_way", ()) if column[i] == NOT_ASKED]] = UNDER_WAY
            columns.append(column)
            column = np.full(num_devices, NOT_ASKED, dtype=np.int8)
    return np.stack(columns, axis=1)


def plot_costs(rounds: Sequence[Line], summary: Line, path: Path) -> None:
    """Write a PNG: accuracy against virtual time, bytes and energy.

    Raises:
        UserError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    figure = module.Figure(figsize=(13.5, 4.2), dpi=110, layout="constrained")
    curves = cost_curves(rounds)
    scale, unit = time_unit(curves["virtual_seconds"][-1])
    panels = (
        ("virtual_seconds", scale, f"virtual time, {unit}"),
        ("bytes", 1e6, "megabytes, all devices, both ways"),
        ("joules", JOULES_PER_WH, "energy, Wh, all devices"),
    )
    for axes, (name, divisor, label) in zip(
        figure.subplots(1, 3, sharey=True), panels, strict=True
    ):
        values = [value / divisor for value in curves[name]]
        axes.plot(values, curves["accuracy"], "o-", color=COLOUR, markersize=3.5)
        axes.axhline(summary["float_accuracy"], color=REFERENCE, linestyle="--")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", alpha=0.25)
        if name == "virtual_seconds":
            axes.set_ylabel("Top-1 accuracy on test images, %")
    figure.suptitle(
        f"{summary['model']} on {summary['dataset']}, fleet {summary['fleet']}, "
        f"{describe_coreset(summary)}: {summary['final_accuracy']:.2f} % Top-1 (dashed: float "
        f"teacher)"
        f"{describe_start(rounds)}"
    )
    _save(figure, path)


def plot_timeline(
    lines: Sequence[Line], class_names: Sequence[str], fleet_name: str, path: Path
) -> None:
    """Write a PNG: the fate of every device over virtual time, devices by class.

    Args:
        lines: of metrics.jsonl.
        class_names: of every device, by partition id.
        fleet_name: for the title.
        path: the file.

    Raises:
        UserError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    colors = import_extra("matplotlib.colors", needed_for=NEEDED_FOR)
    patches = import_extra("matplotlib.patches", needed_for=NEEDED_FOR)
    rounds = [line for line in lines if line["kind"] == "round"]
    matrix = fate_matrix(lines, len(class_names))
    order = sorted(range(len(class_names)), key=lambda index: (class_names[index], index))
    scale, unit = time_unit(rounds[-1]["virtual_clock_seconds"])
    edges = [0.0, *(line["virtual_clock_seconds"] / scale for line in rounds)]

    height = min(12.0, 1.8 + 0.12 * max(len(class_names), 20))
    figure = module.Figure(figsize=(12, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(
        edges,
        np.arange(len(order) + 1),
        matrix[order],
        cmap=colors.ListedColormap(FATE_COLOURS),
        vmin=-0.5,
        vmax=len(FATES) - 0.5,
        edgecolors="white",
        linewidth=0.3 if len(class_names) <= 100 else 0.0,
    )
    labels, middles, start = [], [], 0
    for name, members in itertools.groupby(order, key=lambda index: class_names[index]):
        size = len(list(members))
        labels.append(f"{name} ({size})")
        middles.append(start + size / 2)
        start += size
        axes.axhline(start, color="black", linewidth=0.6)
    axes.set_yticks(middles, labels)
    axes.set_xlabel(f"virtual time, {unit}; a column is a round and the waiting before it")
    axes.set_title(f"Who took part: fleet {fleet_name}")
    handles = [
        patches.Patch(facecolor=colour, edgecolor="#666666", linewidth=0.4, label=fate)
        for fate, colour in zip(FATES, FATE_COLOURS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(FATES), frameon=False)
    _save(figure, path)


def plot_run(folder: Path, class_names: Sequence[str], summary: Line) -> None:
    """Draw both pictures of a finished run into its folder.

    Raises:
        UserError: matplotlib is not installed.
    """
    lines = read_lines(folder / METRICS_FILE)
    rounds = [line for line in lines if line["kind"] == "round"]
    plot_timeline(lines, class_names, summary["fleet"], folder / "timeline.png")
    if any(line.get("accuracy") is not None for line in of_stage(rounds, Stage.QUANTIZED)):
        plot_costs(rounds, summary, folder / "virtual.png")


def time_unit(virtual_seconds: float) -> tuple[float, str]:
    """Divisor and name of the unit that suits a duration."""
    if virtual_seconds < 300:
        return 1.0, "s"
    return (60.0, "min") if virtual_seconds < 3 * 3600 else (3600.0, "h")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
