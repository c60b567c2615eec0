"""Finished cells -> tables in the paper's form: mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from simulations.display.text_table import MISSING, TextTable
from simulations.paper.folder import CellResult, cell_key
from simulations.paper.grid import Cell, Grid
from simulations.results.spread import Spread

DIVERGED = "diverged"

Measure = Callable[[CellResult], float | None]

MEASURES: Mapping[str, Measure] = {
    "top1_percent": lambda result: result.accuracy,
    "select_seconds": lambda result: result.select_seconds,
    "train_seconds": lambda result: result.train_seconds,
    "total_seconds": lambda result: result.select_seconds + result.train_seconds,
    "select_cpu_seconds": lambda result: result.select_cpu_seconds,
    "train_cpu_seconds": lambda result: result.train_cpu_seconds,
    "total_cpu_seconds": lambda result: result.select_cpu_seconds + result.train_cpu_seconds,
}
"""What is averaged over seeds, by its name in the CSV file."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The results of one combination of choices, over seeds."""

    labels: Mapping[str, str]
    """Axis -> label."""
    results: Mapping[int, CellResult]
    """Seed -> result, of the finished cells; there is at least one."""

    @property
    def trained(self) -> list[CellResult]:
        """The results that did not diverge."""
        return [result for result in self.results.values() if not result.diverged]

    def on_seeds_of(self, other: Entry) -> Entry:
        """With those results alone, if any, whose seed did not diverge in either entry."""
        seeds = {seed for seed, result in other.results.items() if not result.diverged}
        shared = {
            seed: result
            for seed, result in self.results.items()
            if seed in seeds and not result.diverged
        }
        return replace(self, results=shared)

    def spread(self, measure: str) -> Spread | None:
        """Mean and standard deviation of one of `MEASURES`; None without any value."""
        values = [MEASURES[measure](result) for result in self.trained]
        return Spread.of([value for value in values if value is not None])

    def format(self, measure: str, digits: int) -> str:
        """The spread in words, with a note where some seed diverged."""
        spread = self.spread(measure)
        num_diverged = len(self.results) - len(self.trained)
        if spread is None:
            return DIVERGED
        note = f" ({num_diverged} {DIVERGED})" if num_diverged else ""
        return spread.format(digits) + note


def collect(grid: Grid, cells: Sequence[Cell], results: Mapping[str, CellResult]) -> list[Entry]:
    """An entry for every combination of choices that has a result, in the grid's order.

    Args:
        grid: the axes.
        cells: of all seeds that are shown.
        results: `cell_key` -> result, of the finished cells.
    """
    by_labels: dict[tuple[str, ...], dict[int, CellResult]] = {
        labels: {} for labels in itertools.product(*[axis.choices for axis in grid.axes])
    }
    for cell in cells:
        result = results.get(cell_key(cell))
        if result is not None:
            by_labels[tuple(cell.labels[axis.name] for axis in grid.axes)][cell.seed] = result
    names = [axis.name for axis in grid.axes]
    return [
        Entry(labels=dict(zip(names, labels, strict=True)), results=found)
        for labels, found in by_labels.items()
        if found
    ]


def text_tables(grid: Grid, entries: Sequence[Entry]) -> list[TextTable]:
    """Rows by columns, a table for each figure; without columns one table of all figures."""
    if grid.columns is None:
        return [_figures_table(grid, entries)]
    return [
        _matrix(grid, entries, "Top-1, %", lambda entry: entry.format("top1_percent", 2)),
        _matrix(grid, entries, "Training, s (CPU s)", lambda entry: _seconds(entry, "train")),
        _matrix(grid, entries, "Selection, s (CPU s)", lambda entry: _seconds(entry, "select")),
    ]


def _matrix(
    grid: Grid, entries: Sequence[Entry], title: str, show: Callable[[Entry], str]
) -> TextTable:
    columns = shown_columns(grid, entries)
    cells = {(_row(grid, entry), _column(grid, entry)): show(entry) for entry in entries}
    rows = itertools.product(*[grid.choices(name) for name in grid.rows])
    return TextTable(
        title=title,
        header=[*grid.rows, *columns],
        rows=[
            [*row, *[cells.get((row, column), MISSING) for column in columns]]
            for row in rows
            if any((row, column) in cells for column in columns)
        ],
        num_text_columns=len(grid.rows),
    )


def shown_columns(grid: Grid, entries: Sequence[Entry]) -> list[str]:
    """The columns' labels that have a result, in the grid's order; none without columns."""
    if grid.columns is None:
        return []
    shown = {_column(grid, entry) for entry in entries}
    return [label for label in grid.choices(grid.columns) if label in shown]


def _figures_table(grid: Grid, entries: Sequence[Entry]) -> TextTable:
    header = [*grid.rows, "Top-1, %", "training, s (CPU s)", "selection, s (CPU s)"]
    reference = next((entry for entry in entries if grid.reference in entry.labels.values()), None)
    if reference is not None:
        header += [f"Top-1 to {grid.reference}", f"time to {grid.reference}"]
    rows = []
    for entry in entries:
        figures = [entry.format("top1_percent", 2)]
        figures += [_seconds(entry, "train"), _seconds(entry, "select")]
        if reference is not None:
            figures += _relative(entry, reference)
        rows.append([*_row(grid, entry), *figures])
    return TextTable(title=grid.title, header=header, rows=rows, num_text_columns=len(grid.rows))


def _relative(entry: Entry, reference: Entry) -> list[str]:
    """Difference of the mean Top-1, and ratio of the mean processor times.

    Over the seeds that both have: others would add their own difficulty to the difference.
    """
    entry, reference = entry.on_seeds_of(reference), reference.on_seeds_of(entry)
    pairs = [
        (entry.spread(measure), reference.spread(measure))
        for measure in ("top1_percent", "total_cpu_seconds")
    ]
    (top1, top1_reference), (time, time_reference) = pairs
    if top1 is None or top1_reference is None or time is None or time_reference is None:
        return [MISSING, MISSING]
    return [
        f"{top1.mean - top1_reference.mean:+.2f}",
        f"{100 * time.mean / time_reference.mean:.1f} %",
    ]


def _seconds(entry: Entry, what: str) -> str:
    wall, cpu = entry.format(f"{what}_seconds", 1), entry.spread(f"{what}_cpu_seconds")
    return wall if cpu is None else f"{wall} ({cpu.mean:.1f})"


def _row(grid: Grid, entry: Entry) -> tuple[str, ...]:
    return tuple(entry.labels[name] for name in grid.rows)


def _column(grid: Grid, entry: Entry) -> str:
    assert grid.columns is not None
    return entry.labels[grid.columns]


def to_csv(grid: Grid, entries: Sequence[Entry]) -> str:
    """One line for each combination: all figures, and the Top-1 of every seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{name}_{part}" for name in MEASURES for part in ("mean", "std")]
    names = [axis.name for axis in grid.axes]
    writer.writerow([*names, "num_seeds", "num_diverged", "coreset_size", *figures, "top1_by_seed"])
    for entry in entries:
        line: list[str | int] = [entry.labels[name] for name in names]
        line += [len(entry.results), len(entry.results) - len(entry.trained)]
        line.append(entry.trained[0].coreset_size if entry.trained else "")
        for measure in MEASURES:
            spread = entry.spread(measure)
            mean = "" if spread is None else f"{spread.mean:.4f}"
            std = "" if spread is None or spread.std is None else f"{spread.std:.4f}"
            line += [mean, std]
        by_seed = (
            f"{seed}:{DIVERGED if result.accuracy is None else format(result.accuracy, '.2f')}"
            for seed, result in sorted(entry.results.items())
        )
        line.append(" ".join(by_seed))
        writer.writerow(line)
    return text.getvalue()


def to_markdown(
    grid: Grid, entries: Sequence[Entry], *, command: str, picture: str, note: str = ""
) -> str:
    """The tables with what is needed to make them again: protocol, command, seeds, versions."""
    parts = [f"# {grid.title}", grid.protocol, f"```\n{command}\n```"]
    for table in text_tables(grid, entries):
        parts += [f"**{table.title}**", table.to_markdown()]
    parts.append(note)
    parts.append(f"![{grid.title}]({picture})")
    parts.append("\n".join(_facts(entries)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(entries: Sequence[Entry]) -> list[str]:
    results = [result for entry in entries for result in entry.results.values()]
    seeds = sorted({seed for entry in entries for seed in entry.results})
    num_fewer = sum(len(entry.results) < len(seeds) for entry in entries)
    fewer = f" ({num_fewer} of {len(entries)} results are of fewer: num_seeds in the CSV file)"
    teachers = sorted({f"{result.teacher_accuracy:.2f} %" for result in results})
    versions = sorted(
        {", ".join(f"{name} {value}" for name, value in r.versions.items()) for r in results}
    )
    return [
        "- Top-1 of the quantized model on the test images after the last epoch, mean ± sample "
        "standard deviation over seeds; seconds are of one training, evaluation excluded.",
        f"- Seeds: {', '.join(map(str, seeds))}{fewer if num_fewer else ''}",
        f"- Float teacher: {', '.join(teachers)} Top-1",
        f"- Ran on: {', '.join(sorted({result.device for result in results}))}",
        *[f"- Versions: {line}" for line in versions],
    ]
