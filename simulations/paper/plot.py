"""The picture of a grid: Top-1 by column, and Top-1 against time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from common.extras import import_extra
from simulations.paper.grid import Grid
from simulations.paper.table import Entry

NEEDED_FOR = "the picture of the table"


def to_png(grid: Grid, entries: Sequence[Entry]) -> bytes:
    """A PNG with error bars of one standard deviation.

    Raises:
        UserError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    figure = module.Figure(figsize=(13, 5), dpi=110, layout="constrained")
    accuracy, cost = figure.subplots(1, 2, sharey=True)
    for series, (label, points) in enumerate(_series(grid, entries).items()):
        colour = _colour(series)
        _plot_accuracy(accuracy, points, label, colour)
        _plot_cost(cost, points, label, colour)
    teachers = {r.teacher_accuracy for entry in entries for r in entry.results.values()}
    for axes in (accuracy, cost):
        for value in sorted(teachers):
            axes.axhline(value, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", alpha=0.25)
    accuracy.set_ylabel("Top-1, % (dashed: the float teacher)")
    accuracy.set_xlabel(grid.columns or ", ".join(grid.rows))
    if grid.columns is None:
        accuracy.tick_params(axis="x", rotation=30)
    cost.set_xlabel("training and selection, processor seconds")
    cost.set_xscale("log")
    cost.legend(fontsize=8, loc="lower right")
    figure.suptitle(grid.title)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _series(grid: Grid, entries: Sequence[Entry]) -> dict[str, list[tuple[str, Entry]]]:
    """Row -> its points by column; without columns every row is a point of its own."""
    series: dict[str, list[tuple[str, Entry]]] = {}
    for entry in entries:
        row = ", ".join(entry.labels[name] for name in grid.rows)
        column = row if grid.columns is None else entry.labels[grid.columns]
        points = series.setdefault(row, [])
        if entry.trained:
            points.append((column, entry))
    return series


def _plot_accuracy(axes: Any, points: Sequence[tuple[str, Entry]], label: str, colour: Any) -> None:
    columns = [column for column, _ in points]
    means, errors = _bars(points, "top1_percent")
    axes.errorbar(columns, means, errors, fmt="o-", capsize=3, label=label, color=colour)


def _plot_cost(axes: Any, points: Sequence[tuple[str, Entry]], label: str, colour: Any) -> None:
    means, errors = _bars(points, "top1_percent")
    seconds, _ = _bars(points, "total_cpu_seconds")
    axes.errorbar(seconds, means, errors, fmt="o-", capsize=3, label=label, color=colour)


def _bars(points: Sequence[tuple[str, Entry]], measure: str) -> tuple[list[float], list[float]]:
    spreads = [spread for _, entry in points if (spread := entry.spread(measure)) is not None]
    return [spread.mean for spread in spreads], [spread.std or 0.0 for spread in spreads]


def _colour(series: int) -> Any:
    colours = import_extra("matplotlib", needed_for=NEEDED_FOR).colormaps["tab20"]
    return colours(series % colours.N)
