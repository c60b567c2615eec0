"""When devices are there, from a fleet's YAML and from trace files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from common.devices import Availability
from common.errors import UserError
from common.settings import refuse_unknown

KEYS = ("probability", "slot-seconds", "on-seconds", "off-seconds", "trace", "same-phase")
TRACE_COLUMNS = ["start_seconds", "end_seconds", "available"]


def parse_availability(where: str, values: Any, folder: Path) -> Availability:
    """The availability that a class of a fleet gives.

    Args:
        where: what messages begin with.
        values: probability and slot-seconds, on-seconds and off-seconds, or trace.
        folder: relative paths of trace files start here.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    where = f"{where}: availability"
    if not isinstance(values, dict):
        raise UserError(f"{where} = {values!r}: expected some of {', '.join(KEYS)}")
    refuse_unknown(values, KEYS, f"{where}: ")
    periods = [key for key in ("on-seconds", "off-seconds") if key in values]
    if "trace" in values and periods:
        raise UserError(f"{where}: give a trace or {periods[0]}, not both")
    if len(periods) == 1:
        raise UserError(f"{where}: on-seconds and off-seconds go together")
    schedule: tuple[tuple[float, bool], ...] = ()
    if periods:
        schedule = (
            (_positive(where, "on-seconds", values["on-seconds"]), True),
            (_positive(where, "off-seconds", values["off-seconds"]), False),
        )
    elif "trace" in values:
        schedule = read_trace(folder / str(values["trace"]))
    same_phase = values.get("same-phase", False)
    if not isinstance(same_phase, bool):
        raise UserError(f"{where}: same-phase = {same_phase!r}: expected true or false")
    probability = values.get("probability", 1.0)
    if not is_number(probability) or not 0 <= probability <= 1:
        raise UserError(f"{where}: probability = {probability!r}: expected a number from 0 to 1")
    return Availability(
        probability=float(probability),
        slot_seconds=_positive(where, "slot-seconds", values.get("slot-seconds", 3600.0)),
        schedule=schedule,
        same_phase=same_phase,
    )


def read_trace(path: Path) -> tuple[tuple[float, bool], ...]:
    """The schedule of a trace: (virtual seconds, there or not), from 0 on without gaps.

    Raises:
        UserError: if it cannot be read, or for the first row that is wrong, by its line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"trace {path} cannot be read: {reason}") from error
    if not rows or rows[0] != TRACE_COLUMNS:
        raise UserError(f"trace {path}: expected a first line {','.join(TRACE_COLUMNS)}")
    schedule: list[tuple[float, bool]] = []
    expected_start = 0.0
    for number, row in enumerate(rows[1:], start=2):
        where = f"trace {path}, line {number}"
        try:
            start, end = float(row[0]), float(row[1])
            is_available = {"0": False, "1": True}[row[2].strip()]
        except (ValueError, IndexError, KeyError) as error:
            raise UserError(f"{where}: expected two numbers and 0 or 1, not {row}") from error
        if start != expected_start:
            kind = "a gap" if start > expected_start else "an overlap"
            raise UserError(f"{where}: {kind}: starts at {start:g}, expected {expected_start:g}")
        if not (math.isfinite(end) and end > start):
            raise UserError(f"{where}: ends at {end:g}, expected a number above {start:g}")
        schedule.append((end - start, is_available))
        expected_start = end
    if not any(is_available for _, is_available in schedule):
        raise UserError(f"trace {path}: devices are never there")
    return tuple(schedule)


def _positive(where: str, key: str, value: Any) -> float:
    if not is_number(value) or not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: {key} = {value!r}: expected a number, > 0")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value of a YAML file is a number; Python takes true for one."""
    return isinstance(value, int | float) and not isinstance(value, bool)
