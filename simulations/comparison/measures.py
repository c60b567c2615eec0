"""The figures of a run that reports show."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from simulations.comparison.groups import Measure
from simulations.comparison.records import RunRecord
from simulations.console import format_bytes
from simulations.paper.table import Spread


def _from_summary(name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.summary.get(name)


def _upload_per_round(run: RunRecord) -> float | None:
    return _ratio(run, "upload_bytes", "num_rounds")


def _upload_share(run: RunRecord) -> float | None:
    share = _ratio(run, "upload_bytes", "float32_upload_bytes")
    return None if share is None else 100 * share


def _ratio(run: RunRecord, above: str, below: str) -> float | None:
    numerator, denominator = run.summary.get(above), run.summary.get(below)
    return numerator / denominator if numerator is not None and denominator else None


def device_seconds(run: RunRecord) -> float | None:
    """Selection and training of all devices, wall-clock seconds."""
    parts = [run.summary.get("select_seconds"), run.summary.get("train_seconds")]
    return None if None in parts else sum(part for part in parts if part is not None)


def _show_percent(spread: Spread) -> str:
    return spread.format(2)


def _show_mean_percent(spread: Spread) -> str:
    return f"{spread.mean:.2f}"


def _show_share(spread: Spread) -> str:
    return f"{spread.mean:.1f} %"


def _show_seconds(spread: Spread) -> str:
    return f"{spread.mean:.1f}" if spread.mean < 100 else f"{spread.mean:,.0f}"


def _show_bytes(spread: Spread) -> str:
    return format_bytes(spread.mean)


ACCURACY = Measure(
    name="accuracy_percent",
    header="Top-1, %",
    value=_from_summary("final_accuracy"),
    show=_show_percent,
)
MEASURES = (
    ACCURACY,
    Measure(
        name="best_accuracy_percent",
        header="best round, %",
        value=_from_summary("best_accuracy"),
        show=_show_percent,
    ),
    Measure(
        name="float_accuracy_percent",
        header="float, %",
        value=_from_summary("float_accuracy"),
        show=_show_mean_percent,
    ),
    Measure(
        name="accuracy_before_percent",
        header="before, %",
        value=_from_summary("quantized_accuracy_before"),
        show=_show_mean_percent,
    ),
    Measure(
        name="upload_bytes_per_round",
        header="up per round",
        value=_upload_per_round,
        show=_show_bytes,
    ),
    Measure(
        name="upload_share_percent",
        header="of float32",
        value=_upload_share,
        show=_show_share,
    ),
    Measure(
        name="select_seconds",
        header="selection, s",
        value=_from_summary("select_seconds"),
        show=_show_seconds,
    ),
    Measure(
        name="train_seconds",
        header="training, s",
        value=_from_summary("train_seconds"),
        show=_show_seconds,
    ),
    Measure(
        name="wall_seconds",
        header="wall, s",
        value=_from_summary("wall_seconds"),
        show=_show_seconds,
    ),
)
NOTES = (
    "Top-1: of the global quantized model on the test images after the last round, mean ± sample "
    "standard deviation over seeds. Best round: the highest that was measured.",
    "Float: the full-precision teacher. Before: the quantized model before training.",
    "Up per round: bytes that all devices of a round sent, as measured. Of float32: their share of "
    "the same updates as float32.",
    "Selection and training: wall-clock seconds of all devices and rounds together. Wall: of the "
    "whole run, evaluation included. Seconds of runs compare only on the same, idle machine.",
)


def measured(measures: Iterable[Measure], runs: Iterable[RunRecord]) -> list[Measure]:
    """The measures that at least one of the runs has."""
    all_runs = list(runs)
    return [each for each in measures if any(each.value(run) is not None for run in all_runs)]
