"""The figures of a run that reports show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from common.units import format_bytes, format_energy
from simulations.comparison.groups import Measure
from simulations.comparison.positions import (
    PositionsOf,
    rounds_passed,
    running_total,
    virtual_clock,
)
from simulations.comparison.records import RunRecord
from simulations.results.spread import Spread


def _figure(name: str, header: str, summary_key: str, show: Callable[[Spread], str]) -> Measure:
    """What summary.json holds under a key."""
    return Measure(
        name=name, header=header, value=lambda run: run.summary.get(summary_key), show=show
    )


def _upload_per_round(run: RunRecord) -> float | None:
    return _upload_over(run, "num_rounds")


def _upload_share(run: RunRecord) -> float | None:
    share = _upload_over(run, "float32_upload_bytes")
    return None if share is None else 100 * share


def _upload_over(run: RunRecord, summary_key: str) -> float | None:
    upload, divisor = run.summary.get("upload_bytes"), run.summary.get(summary_key)
    return upload / divisor if upload is not None and divisor else None


def device_seconds(run: RunRecord) -> float | None:
    """Selection and training of all devices, wall-clock seconds."""
    parts = [run.summary.get("select_seconds"), run.summary.get("train_seconds")]
    return None if None in parts else sum(part for part in parts if part is not None)


def _replies_used(run: RunRecord) -> float | None:
    """Of the devices of an emulated fleet that were asked in quantization-aware rounds, percent."""
    fates: Counter[str] = Counter()
    for line in run.rounds:
        fates.update(line.get("fates", {}))
    asked, used = fates.total(), fates["trained"]
    return 100 * used / asked if asked else None


def target_measures(target: float) -> tuple[Measure, ...]:
    """What it took until the global model had a Top-1 of at least ``target`` percent."""
    return tuple(
        Measure(
            name=f"{name}_to_{target:g}_percent",
            header=f"{header} to {target:g} %",
            value=partial(_until, target, positions),
            show=show,
        )
        for name, header, positions, show in (
            ("rounds", "rounds", rounds_passed, _show_rounds),
            ("upload_bytes", "up", running_total("upload_bytes"), _show_bytes),
            ("virtual_seconds", "virtual s", virtual_clock, _show_seconds),
            ("joules", "energy", running_total("joules"), _show_joules),
        )
    )


def was_reached(target: float, runs: Iterable[RunRecord]) -> bool:
    """Whether one of the runs had a Top-1 of at least ``target`` percent."""
    return any(_until(target, rounds_passed, run) is not None for run in runs)


def _until(target: float, positions: PositionsOf, run: RunRecord) -> float | None:
    """Where the first evaluation that reaches the target is; None: there is none."""
    places = positions(run.rounds)
    for line in run.rounds:
        if (line.get("accuracy") or 0.0) >= target:
            return places.get(line["round"])
    return None


def _show_percent(spread: Spread) -> str:
    return spread.format(2)


def _show_mean_percent(spread: Spread) -> str:
    return f"{spread.mean:.2f}"


def _show_share(spread: Spread) -> str:
    return f"{spread.mean:.1f} %"


def _show_seconds(spread: Spread) -> str:
    return f"{spread.mean:.1f}" if spread.mean < 100 else f"{spread.mean:,.0f}"


def _show_rounds(spread: Spread) -> str:
    return f"{spread.mean:.1f}".removesuffix(".0")


def _show_joules(spread: Spread) -> str:
    return format_energy(spread.mean)


def _show_bytes(spread: Spread) -> str:
    return format_bytes(spread.mean)


ACCURACY = _figure("accuracy_percent", "Top-1, %", "final_accuracy", _show_percent)
MEASURES = (
    ACCURACY,
    _figure("best_accuracy_percent", "best round, %", "best_accuracy", _show_percent),
    _figure("float_accuracy_percent", "float, %", "float_accuracy", _show_mean_percent),
    _figure(
        "accuracy_before_percent", "before, %", "quantized_accuracy_before", _show_mean_percent
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
    _figure("select_seconds", "selection, s", "select_seconds", _show_seconds),
    _figure("train_seconds", "training, s", "train_seconds", _show_seconds),
    _figure("wall_seconds", "wall, s", "wall_seconds", _show_seconds),
    _figure("virtual_seconds", "virtual, s", "virtual_seconds", _show_seconds),
    _figure("joules", "energy", "joules", _show_joules),
    Measure(
        name="replies_used_percent",
        header="replies used",
        value=_replies_used,
        show=_show_share,
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
FLEET_NOTE = (
    "Virtual, energy, replies used: of the emulated fleet; virtual seconds are those of its clock, "
    "energy is that of all devices, replies used are those of the devices that were asked in the "
    "quantization-aware rounds, without warm-up and calibration."
)
TARGET_NOTE = (
    "To a Top-1: at the first evaluation that reaches it, over the seeds that do; rounds, bytes "
    "and energy are those of the quantization-aware rounds, without warm-up."
)


def report_measures(runs: Iterable[RunRecord], target: float | None = None) -> list[Measure]:
    """The measures that at least one of the runs has; ``target``: of a Top-1, percent."""
    all_runs = list(runs)
    to_target = () if target is None else target_measures(target)
    return [
        each
        for each in (*MEASURES, *to_target)
        if any(each.value(run) is not None for run in all_runs)
    ]


def notes_on(measures: Iterable[Measure]) -> list[str]:
    """What a reader has to know of the measures that are shown."""
    names = [measure.name for measure in measures]
    notes = list(NOTES)
    if "virtual_seconds" in names:
        notes.append(FLEET_NOTE)
    if any("_to_" in name for name in names):
        notes.append(TARGET_NOTE)
    return notes
