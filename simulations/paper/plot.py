"""The picture of a grid: Top-1 by column, and Top-1 against time."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from common.extras import import_extra
from simulations.paper.grid import Grid
from simulations.paper.table import Entry, shown_columns

NEEDED_FOR = "the picture of the table"
SPREAD, STEP = 0.5, 0.06
"""Shares of a column's width: what its series are spread over, so that error bars do not cover each
other, and how far they are apart at most."""
MARKERS = "osD^v"
"""Of series beyond the tenth, whose colours come again."""

TITLE_CHARACTERS = 120
"""In a line, as wide as the picture."""

Points = Sequence[tuple[str, Entry]]
"""Column and entry."""


def to_png(grid: Grid, entries: Sequence[Entry]) -> bytes:
    """A PNG with error bars of one standard deviation.

    Raises:
        UserError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    ticker = import_extra("matplotlib.ticker", needed_for=NEEDED_FOR)
    figure = module.Figure(figsize=(14, 5), dpi=110, layout="constrained")
    accuracy, cost = figure.subplots(1, 2, sharey=True)
    series = _series(grid, entries)
    columns = shown_columns(grid, entries) or [_row(grid, entry) for entry in entries]
    for number, (label, points) in enumerate(series.items()):
        # Without columns every row has a place of its own already.
        step = min(SPREAD / len(series), STEP) if grid.columns else 0.0
        shift = step * (number - (len(series) - 1) / 2)
        places = [columns.index(column) + shift for column, _ in points]
        style = {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)]}
        _plot(accuracy, places, points, label, style)
        _plot(cost, _values(points, "total_cpu_seconds")[0], points, label, style)
    teachers = {r.teacher_accuracy for entry in entries for r in entry.results.values()}
    for axes in (accuracy, cost):
        for value in sorted(teachers):
            axes.axhline(value, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", alpha=0.25)
    accuracy.set_ylabel("Top-1, % (dashed: the float teacher)")
    accuracy.set_xlabel(grid.columns or ", ".join(grid.rows))
    accuracy.set_xticks(range(len(columns)), columns)
    accuracy.set_xlim(-0.5, len(columns) - 0.5)
    if not grid.columns:  # rows' names, which are longer
        for label in accuracy.get_xticklabels():
            label.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
    cost.set_xlabel("training and selection, processor seconds")
    cost.set_xscale("log")
    cost.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    cost.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    cost.xaxis.set_minor_locator(ticker.NullLocator())
    figure.legend(*cost.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(textwrap.fill(grid.title, TITLE_CHARACTERS, break_on_hyphens=False))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _series(grid: Grid, entries: Sequence[Entry]) -> dict[str, list[tuple[str, Entry]]]:
    """Row -> its points by column; without columns every row is a point of its own."""
    series: dict[str, list[tuple[str, Entry]]] = {}
    for entry in entries:
        row = _row(grid, entry)
        column = row if grid.columns is None else entry.labels[grid.columns]
        if entry.trained:
            series.setdefault(row, []).append((column, entry))
    return series


def _row(grid: Grid, entry: Entry) -> str:
    return ", ".join(entry.labels[name] for name in grid.rows)


def _plot(
    axes: Any, places: Sequence[float], points: Points, label: str, style: Mapping[str, str]
) -> None:
    means, errors = _values(points, "top1_percent")
    axes.errorbar(places, means, errors, label=label, capsize=3, linewidth=1, **style)


def _values(points: Points, measure: str) -> tuple[list[float], list[float]]:
    """Means and standard deviations of a measure."""
    spreads = [spread for _, entry in points if (spread := entry.spread(measure)) is not None]
    return [spread.mean for spread in spreads], [spread.std or 0.0 for spread in spreads]
