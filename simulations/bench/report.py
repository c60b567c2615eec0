"""The report of a run of the benchmarks: JSON, Markdown and a table on the terminal."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import UserError
from server.records.summary import versions
from simulations.bench.rows import Figure, Row
from simulations.bench.sizes import SEED
from simulations.display.text_table import TextTable

JSON_FILE = "bench.json"
MARKDOWN_FILE = "bench.md"

PACKAGES = ("numpy", "torchvision", "brevitas", "torchao", "openfl")
COLUMNS = ("what", "against", "median (quartiles)", "target", "met", "note")

EXPLANATION = """\
Two things are compared in turn, pair by pair, in one process; a ratio is the median over the pairs,
the quartiles in brackets. "x the time" below 1 is faster, "x the rate" above 1. Every training step
passes through the project's own loop: the same augmented batches, optimizer and loss (distillation;
the float step without a teacher: cross-entropy)."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows, and what they depend on."""

    command: str
    threads: int
    """Of torch."""
    load: float
    """Processes that wanted to run in the minute before the start."""
    seconds: float
    """Wall-clock time of the whole run."""
    rows: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        """What bench.json holds."""
        return {
            "command": self.command,
            "seed": SEED,
            "threads": self.threads,
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "load_before": round(self.load, 2),
            "seconds": round(self.seconds, 1),
            "versions": _versions(),
            "rows": [{**dataclasses.asdict(row), "is_met": row.is_met} for row in self.rows],
        }

    def as_markdown(self) -> str:
        """What bench.md holds."""
        used = ", ".join(f"{name} {version}" for name, version in _versions().items())
        lines = ["# Benchmarks", "", f"    {self.command}", ""]
        lines += [
            f"{cpu_model()}, {os.cpu_count()} cores, {self.threads} thread; {used}. Seed {SEED}, "
            f"synthetic images, fresh weights; {self.seconds / 60:.1f} minutes, load average "
            f"before: {self.load:.2f}.",
            "",
            EXPLANATION,
        ]
        for group, rows in groupby(self.rows, key=lambda row: row.group):
            cells = [_cells(row) for row in rows]
            table = TextTable(title=group, header=[*COLUMNS], rows=cells)
            lines += ["", f"## {group}", "", table.to_markdown()]
        return "\n".join([*lines, ""])

    def write(self, folder: Path) -> None:
        """Write bench.json and bench.md.

        Raises:
            UserError: they cannot be written.
        """
        content = {
            JSON_FILE: json.dumps(self.as_json(), indent=1) + "\n",
            MARKDOWN_FILE: self.as_markdown(),
        }
        for name, text in content.items():
            try:
                (folder / name).write_text(text, encoding="utf-8")
            except OSError as error:
                raise UserError(f"{folder / name} cannot be written: {error.strerror}") from error

    def show(self, console: Console) -> None:
        """Print the tables."""
        for group, rows in groupby(self.rows, key=lambda row: row.group):
            table = Table(title=group, title_justify="left")
            for column in COLUMNS:
                table.add_column(column)
            for row in rows:
                table.add_row(*map(Text, _cells(row)), style=_STYLES[row.is_met])
            console.print(table)


_STYLES = {None: "", True: "green", False: "yellow"}


def format_figure(figure: Figure) -> str:
    """``1.08 (1.07-1.1)``; a single measurement without quartiles."""
    if figure.count == 1:
        return _format(figure.median)
    return f"{_format(figure.median)} ({_format(figure.low)}-{_format(figure.high)})"


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> Mapping[str, str]:
    found = versions()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cells(row: Row) -> list[str]:
    met = {None: "", True: "yes", False: "no"}[row.is_met]
    figure = "not measured" if row.figure is None else f"{format_figure(row.figure)} {row.unit}"
    target = "" if row.target is None else str(row.target)
    return [row.subject, row.against, figure, target, met, row.note]


def _format(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
