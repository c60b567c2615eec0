"""``python -m server watch``: a running federation on the terminal, from what it records.

Only metrics.jsonl is read, as it grows: watching costs the federation nothing, and works on a
copy of the run folder as well. Text that devices sent was made printable before it was recorded.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.errors import UserError
from server.recorder import METRICS_FILE, SUMMARY_FILE

POLL_SECONDS = 1.0
SHOWN_ROUNDS = 8


@dataclass
class DeviceView:
    """What is known of one device."""

    last_round: str = ""
    """Of its last good reply."""
    missed: int = 0
    """Requests since then."""
    status: str = ""
    coreset_size: int | None = None
    round_seconds: float | None = None
    temperature: float | None = None
    upload_bytes: int = 0
    download_bytes: int = 0
    num_refused: int = 0


@dataclass
class RunView:
    """What the lines so far tell of a run."""

    rounds: list[Mapping[str, Any]] = field(default_factory=list)
    devices: dict[int, DeviceView] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in one line of metrics.jsonl."""
        if line["kind"] == "round":
            self.rounds.append(line)
        elif line["kind"] == "device":
            self._add_device(line)

    def _add_device(self, line: Mapping[str, Any]) -> None:
        device = self.devices.setdefault(line["partition_id"], DeviceView())
        device.status = line["status"]
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
        return Group(Text(title, style="bold"), self._rounds_table(), self._devices_table())

    def _rounds_table(self) -> Table:
        table = Table(title="last rounds", title_justify="left")
        for name in ("round", "accuracy", "loss", "replies", "refused", "up", "down", "seconds"):
            table.add_column(name, justify="left" if name == "round" else "right")
        for line in self.rounds[-SHOWN_ROUNDS:]:
            table.add_row(
                f"{line['stage']} {line['round']}{' (skipped)' if line['skipped'] else ''}",
                _number(line.get("accuracy"), ".2f", " %"),
                _number(line.get("train_loss"), ".4f"),
                f"{line['num_accepted']}/{line['num_asked']}",
                ", ".join(f"{kind} {count}" for kind, count in line["refused"].items()) or "-",
                _number(line["upload_bytes"], ",d", " B"),
                _number(line["download_bytes"], ",d", " B"),
                _number(line.get("round_seconds"), ".1f"),
            )
        return table

    def _devices_table(self) -> Table:
        table = Table(title="devices", title_justify="left")
        for name in (
            *("device", "last reply", "missed", "status", "coreset", "seconds", "°C"),
            *("up", "down", "refused"),
        ):
            table.add_column(name, justify="left" if name in ("last reply", "status") else "right")
        for partition_id, device in sorted(self.devices.items()):
            table.add_row(
                str(partition_id),
                device.last_round or "never",
                str(device.missed),
                Text(device.status, style="" if device.status == "ok" else "red"),
                _number(device.coreset_size, "d"),
                _number(device.round_seconds, ".1f"),
                _number(device.temperature, ".0f"),
                _number(device.upload_bytes, ",d", " B"),
                _number(device.download_bytes, ",d", " B"),
                str(device.num_refused),
            )
        return table


class MetricsTail:
    """Reads metrics.jsonl as it grows, whole lines only.

    Args:
        path: may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.view = RunView()
        self._position = 0

    def read(self) -> None:
        """Take in what is new; from the beginning where a run that went on cut lines off."""
        try:
            with self.path.open("rb") as file:
                if self.path.stat().st_size < self._position:
                    self.view, self._position = RunView(), 0
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self.view.add(json.loads(line))
        self._position += len(whole)


def add_watch_command(commands: Any) -> None:
    """Add ``watch`` to the sub-commands of ``python -m server``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "watch", help="show a federation while it runs"
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path)
    parser.add_argument("--once", action="store_true", help="show what there is, and end")
    parser.set_defaults(command=watch)


def watch(options: argparse.Namespace) -> int:
    """Show a run until it is over; Ctrl-C ends the watching, not the run.

    Raises:
        UserError: if there is no such folder.
    """
    folder: Path = options.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the folder of a run")
    console, tail = Console(), MetricsTail(folder / METRICS_FILE)
    if options.once:
        tail.read()
        console.print(tail.view.render(_title(folder)))
        return 0
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                is_over = (folder / SUMMARY_FILE).exists()
                tail.read()
                live.update(tail.view.render(_title(folder)), refresh=True)
                if is_over:
                    return 0
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            return 0


def _title(folder: Path) -> str:
    """The folder, and whether its run is over, or how long it has been silent."""
    if (folder / SUMMARY_FILE).exists():
        return f"{folder}: over"
    try:
        silent = max(0.0, time.time() - (folder / METRICS_FILE).stat().st_mtime)
    except FileNotFoundError:
        return f"{folder}: no round yet"
    return f"{folder}: last record {silent:.0f} s ago"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
