"""A plan's rounds in figures: distributions over rounds, and the part that each class has."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np

from common.units import format_count, format_duration, format_number
from simulations.display.text_table import TextTable
from simulations.emulation.settling import FAILED, LATE, SURPLUS, TRAINED
from simulations.planner.planned_round import PlannedRound
from simulations.planner.rounds import FleetPlan

ENERGY_UNITS = (("J", 1.0), ("Wh", 3.6e3), ("kWh", 3.6e6), ("MWh", 3.6e9))
BYTE_UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))
BIT_RATE_UNITS = (("kbit/s", 1e-6), ("Mbit/s", 1e-3), ("Gbit/s", 1.0), ("Tbit/s", 1e3))
"""Names and sizes, in what is recorded, from small to large."""
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
QUANTILE_NAMES = ("least", "10 %", "median", "90 %", "most")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a round."""

    label: str
    value: Callable[[PlannedRound], float]
    units: Sequence[tuple[str, float]] = (("", 1.0),)
    """What it may be shown in; the one that fits is part of the label."""


def _share(count: int, total: int) -> float:
    return 100 * count / total if total else 0.0


FIGURES = (
    Figure(label="round, virtual s", value=lambda r: r.virtual_seconds),
    Figure(label="waiting before it, virtual s", value=lambda r: r.virtual_waited_seconds),
    Figure(label="devices there", value=lambda r: r.num_available),
    Figure(label="devices asked", value=lambda r: r.num_asked),
    Figure(label="replies used", value=lambda r: r.num_trained),
    Figure(label="replies used, % of asked", value=lambda r: _share(r.num_trained, r.num_asked)),
    Figure(label="late, % of asked", value=lambda r: _share(r.num_late, r.num_asked)),
    Figure(label="surplus, % of asked", value=lambda r: _share(r.num_surplus, r.num_asked)),
    Figure(label="broke off, % of asked", value=lambda r: _share(r.num_failed, r.num_asked)),
    Figure(label="server ingress, ", value=lambda r: r.upload_bytes, units=BYTE_UNITS),
    Figure(label="server ingress, mean ", value=lambda r: r.ingress_gbits, units=BIT_RATE_UNITS),
    Figure(
        label="server ingress, peak ", value=lambda r: r.ingress_peak_gbits, units=BIT_RATE_UNITS
    ),
    Figure(label="server egress, ", value=lambda r: r.download_bytes, units=BYTE_UNITS),
    Figure(label="server egress, mean ", value=lambda r: r.egress_gbits, units=BIT_RATE_UNITS),
    Figure(label="server egress, peak ", value=lambda r: r.egress_peak_gbits, units=BIT_RATE_UNITS),
    Figure(label="energy of devices asked, ", value=lambda r: r.joules, units=ENERGY_UNITS),
)


def rounds_table(rounds: Sequence[PlannedRound]) -> TextTable:
    """Distribution of every figure over the rounds."""
    rows = []
    for figure in FIGURES:
        values = [figure.value(each) for each in rounds]
        unit, size = fitting_unit(figure.units, float(np.median(values)))
        cells = [*np.quantile(values, QUANTILES), np.mean(values)]
        rows.append([figure.label + unit, *(format_number(cell / size) for cell in cells)])
    return TextTable(title="Rounds", header=["", *QUANTILE_NAMES, "mean"], rows=rows)


def fitting_unit(units: Sequence[tuple[str, float]], value: float) -> tuple[str, float]:
    """The largest unit that a value has at least one of, else the smallest: name and size."""
    return next((unit for unit in reversed(units) if value >= unit[1]), units[0])


def classes_table(plan: FleetPlan) -> TextTable:
    """What became of the devices of each class, over all rounds."""
    header = ["class", "devices", "asked", "used", "late", "surplus", "broke off"]
    header += ["reply after, virtual s"]
    rows = []
    for index, profile in enumerate(plan.profiles):
        counts = plan.fate_counts[index]
        asked, trained = int(counts.sum()), int(counts[TRAINED])
        num_devices = int(np.count_nonzero(plan.emulation.class_of == index))
        shares = [_share(int(counts[fate]), asked) for fate in (TRAINED, LATE, SURPLUS, FAILED)]
        mean = format_number(plan.seconds_sum[index] / trained) if trained else "-"
        rows.append(
            [profile.class_name, f"{num_devices:,}", f"{asked:,}"]
            + [f"{share:.1f} %" for share in shares]
            + [mean]
        )
    return TextTable(title="Classes, over all rounds", header=header, rows=rows)


def totals(rounds: Sequence[PlannedRound]) -> list[str]:
    """What all rounds together come to, one line each."""
    seconds = sum(each.virtual_seconds + each.virtual_waited_seconds for each in rounds)
    skipped = sum(each.is_skipped for each in rounds)
    energy = sum(each.joules for each in rounds)
    up, down = (sum(getattr(each, name) for each in rounds) for name in _BYTES)
    return [
        f"{format_count(len(rounds), 'round')}: {format_number(seconds)} virtual s"
        + (f" ({format_duration(seconds)})" if seconds >= 90 else "")
        + (f", {skipped} skipped for too few replies" if skipped else ""),
        f"server: {_with_unit(up, BYTE_UNITS)} in, {_with_unit(down, BYTE_UNITS)} out",
        f"energy of the devices asked: {_with_unit(energy, ENERGY_UNITS)}",
    ]


_BYTES = ("upload_bytes", "download_bytes")


def to_csv(rounds: Sequence[PlannedRound]) -> str:
    """One line for each round, in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(PlannedRound)]
    derived = ["ingress_gbits", "egress_gbits"]
    writer.writerow([*names, *derived])
    for each in rounds:
        writer.writerow([_plain(getattr(each, name)) for name in [*names, *derived]])
    return text.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.9g}" if isinstance(value, float) else value


def _with_unit(value: float, units: Sequence[tuple[str, float]]) -> str:
    name, size = fitting_unit(units, value)
    return f"{format_number(value / size)} {name}"
