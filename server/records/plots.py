"""curves.png: accuracy, loss and bytes over the rounds of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_file import replacing
from common.extras import import_extra
from common.messages import Stage
from common.units import format_count
from server.records.summary import of_stage

NEEDED_FOR = "the picture of the curves"
GLOBAL, DEVICES, REFERENCE = "#1f4e79", "#d95f02", "#7f7f7f"


def plot_curves(
    rounds: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path
) -> None:
    """Write a PNG with three panels over the quantization-aware rounds.

    Args:
        rounds: all recorded round lines.
        summary: of the run.
        path: the file; written under another name and renamed.

    Raises:
        UserError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    figure = module.Figure(figsize=(13.5, 4.2), dpi=110, layout="constrained")
    accuracy, loss, traffic = figure.subplots(1, 3)
    lines = of_stage(rounds, Stage.QUANTIZED)
    _plot_accuracy(accuracy, lines, summary)
    _plot_loss(loss, lines, summary)
    _plot_bytes(traffic, lines)
    for axes in (accuracy, loss, traffic):
        finish_rounds(axes)
    figure.suptitle(
        f"{summary['model']} on {summary['dataset']}, "
        f"{summary['weight_bits']}w{summary['activation_bits']}a, {describe_coreset(summary)}, "
        f"{summary['strategy']}, {format_count(summary['num_devices'], 'device')}: "
        f"{summary['final_accuracy']:.2f} % Top-1"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def finish_rounds(axes: Any) -> None:
    """The style of a panel over rounds."""
    ticker = import_extra("matplotlib.ticker", needed_for=NEEDED_FOR)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.25)


def describe_coreset(summary: Mapping[str, Any]) -> str:
    """``quarc 10 %``, or ``full``, which ignores the share."""
    selection: str = summary["selection"]
    if selection == "full":
        return selection
    return f"{selection} {100 * summary['coreset_fraction']:g} %"


def _plot_accuracy(
    axes: Any, lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    numbers, values = _series(lines, "accuracy", start=summary["quantized_accuracy_before"])
    axes.plot(numbers, values, "o-", color=GLOBAL, markersize=3.5, label="quantized, test images")
    numbers, values = _series(lines, "device_accuracy")
    if numbers:
        axes.plot(numbers, values, "s", color=DEVICES, markersize=5, label="quantized, on devices")
    axes.axhline(
        summary["float_accuracy"],
        color=REFERENCE,
        linestyle="--",
        label=f"float teacher, {summary['float_accuracy']:.2f} %",
    )
    axes.set_title("Top-1 accuracy, %")
    axes.legend(loc="lower right", fontsize=8)


def _plot_loss(axes: Any, lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    before = summary["quantized_loss_before"]
    numbers, values = _series(lines, "loss", start=before)
    axes.plot(
        numbers, values, "o-", color=GLOBAL, markersize=3.5, label="cross-entropy, test images"
    )
    numbers, values = _series(lines, "train_loss")
    axes.plot(numbers, values, ".-", color=DEVICES, label="training loss, on devices")
    axes.set_title("Loss")
    axes.legend(loc="upper right", fontsize=8)


def _plot_bytes(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    for name, label, style in (
        ("download_bytes", "down", {"color": GLOBAL, "marker": "."}),
        (
            "float32_upload_bytes",
            "up, were it float32",
            {"color": REFERENCE, "linestyle": "--", "marker": "."},
        ),
        ("upload_bytes", "up", {"color": DEVICES, "marker": "."}),
    ):
        numbers, values = _series(lines, name)
        axes.plot(numbers, [value / 1e6 for value in values], label=label, **style)
    ticker = import_extra("matplotlib.ticker", needed_for=NEEDED_FOR)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_title("Megabytes per round, all devices")
    axes.legend(fontsize=8)


def _series(
    lines: Sequence[Mapping[str, Any]], name: str, start: float | None = None
) -> tuple[list[int], list[float]]:
    """Round numbers and values of the rounds that have one; ``start`` is round 0's."""
    points = [(0, start)] if start is not None else []
    points += [(line["round"], line[name]) for line in lines if line.get(name) is not None]
    return [number for number, _ in points], [value for _, value in points]
