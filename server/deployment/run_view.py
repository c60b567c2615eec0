"""What an operator sees of a run: its last rounds and all its devices, from recorded lines.

Text that devices sent was made printable before it was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.units import format_bytes

SHOWN_ROUNDS = 8


@dataclass
class DeviceView:
    """What is known of one device."""

    last_round: str = ""
    """Of its last good reply."""
    missed: int = 0
    """Requests since then."""
    status: str = ""
    weight_bits: int | None = None
    """None: those of the run."""
    num_samples: int = 0
    """Its training images."""
    coreset_size: int | None = None
    round_seconds: float | None = None
    temperature: float | None = None
    upload_bytes: int = 0
    download_bytes: int = 0
    num_refused: int = 0


@dataclass
class RunView:
    """What the lines so far tell of a run; may be shown while another thread adds lines."""

    rounds: list[Mapping[str, Any]] = field(default_factory=list)
    devices: dict[int, DeviceView] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in one line of metrics.jsonl; a round that is told again replaces what was told."""
        with self._lock:
            if line["kind"] == "round":
                told = (line["stage"], line["round"])
                self.rounds = [old for old in self.rounds if (old["stage"], old["round"]) != told]
                self.rounds.append(line)
            elif line["kind"] == "device":
                self._add_device(line)

    def _add_device(self, line: Mapping[str, Any]) -> None:
        device = self.devices.setdefault(line["partition_id"], DeviceView())
        device.status = line["status"]
        device.weight_bits = line.get("weight_bits")
        device.num_samples = line.get("num_samples", 0)
        device.upload_bytes += line["upload_bytes"]
        device.download_bytes += line["download_bytes"]
        if line["status"] != "ok":
            device.num_refused += 1
            device.missed += 1
            return
        device.last_round, device.missed = f"{line['stage']} {line['round']}", 0
        if line["task"] == "train":
            device.coreset_size = line.get("coreset_size", device.coreset_size)
            device.round_seconds = line.get("round_seconds", device.round_seconds)
            device.temperature = line.get("temperature_celsius", device.temperature)

    def render(self, title: str) -> Group:
        """Tables of the last rounds and of all devices."""
        with self._lock:
            return Group(Text(title, style="bold"), self._rounds_table(), self._devices_table())

    def _rounds_table(self) -> Table:
        table = _table("last rounds")
        for name in ("round", "accuracy", "loss", "replies", "refused", "up", "down", "seconds"):
            table.add_column(name, justify="left" if name == "round" else "right")
        for line in self.rounds[-SHOWN_ROUNDS:]:
            table.add_row(
                f"{line['stage']} {line['round']}{' (skipped)' if line['skipped'] else ''}",
                _number(line.get("accuracy"), ".2f", " %"),
                _number(line.get("train_loss"), ".4f"),
                f"{line['num_accepted']}/{line['num_asked']}",
                ", ".join(f"{kind} {count}" for kind, count in line["refused"].items()) or "-",
                format_bytes(line["upload_bytes"]),
                format_bytes(line["download_bytes"]),
                _number(line.get("round_seconds"), ".1f"),
            )
        return table

    def _devices_table(self) -> Table:
        table = _table("devices")
        views = [device for _, device in sorted(self.devices.items())]
        # What nobody tells takes no room: a terminal has 80 columns.
        has_bits = any(device.weight_bits is not None for device in views)
        has_temperature = any(device.temperature is not None for device in views)
        for name, is_shown in (
            *(("device", True), ("last reply", True), ("missed", True), ("status", True)),
            *(("bits", has_bits), ("coreset", True), ("seconds", True), ("°C", has_temperature)),
            *(("up", True), ("down", True), ("refused", True)),
        ):
            is_text = name in ("last reply", "status")
            if is_shown:
                table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
        for partition_id, device in sorted(self.devices.items()):
            table.add_row(
                str(partition_id),
                device.last_round or "never",
                str(device.missed),
                Text(device.status, style="" if device.status == "ok" else "red"),
                *([_number(device.weight_bits, ".0f")] if has_bits else []),
                _number(device.coreset_size, ".0f", _share(device)),
                _number(device.round_seconds, ".1f"),
                *([_number(device.temperature, ".0f")] if has_temperature else []),
                format_bytes(device.upload_bytes),
                format_bytes(device.download_bytes),
                str(device.num_refused),
            )
        return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box has a space between columns
        pad_edge=False,
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _share(device: DeviceView) -> str:
    if not device.coreset_size or not device.num_samples:
        return ""
    return f" ({device.coreset_size / device.num_samples:.0%})"
