"""The pictures of a comparison, as SVG that takes its colours and its font from the page.

Matplotlib draws in colours that stand for something; they are replaced by CSS variables, so that
one picture is right on a light page and on a dark one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from common.extras import import_extra
from simulations.comparison.curves import AXES, Axis, Curve, curve
from simulations.comparison.groups import Comparison, Group
from simulations.comparison.measures import ACCURACY, device_seconds
from simulations.results.spread import Spread

NEEDED_FOR = "the pictures of a report"
NUM_COLOURS = 8
INK, GRID = "#010203", "#010204"
SERIES = tuple(f"#0101{index + 16:02x}" for index in range(NUM_COLOURS))
"""Stand for --ink, --grid and --series-0 ... --series-7."""
LINES = ("-", "--", ":", "-.")
"""The ninth series has the first colour again, but another line."""
MOST_CHARACTERS = 32
"""Of a label beside a picture."""
WIDTH, HEIGHT = 5.6, 3.6
"""Inches; 72 units of the SVG each."""


def draw_all(comparison: Comparison) -> list[tuple[str, str]]:
    """(title, SVG) of every picture that there are figures for.

    Raises:
        UserError: matplotlib is not installed.
    """
    groups = comparison.groups
    height = 1.0 + 0.3 * max(len(groups), 3)  # a row for each group
    dots = _svg("dots", partial(_draw_dots, groups), height)
    pictures = [("Accuracy of every run", dots)]
    for axis in AXES:
        curves = [curve(group, axis) for group in groups]
        if any(found is not None and len(found.x) > 1 for found in curves):
            pictures.append((axis.title, _svg(axis.name, partial(_draw_curves, axis, curves))))
    if any(device_seconds(run) for run in comparison.runs):
        pictures.append(("Accuracy by device time", _svg("cost", partial(_draw_cost, groups))))
    return pictures


def series_style(index: int) -> tuple[str, str]:
    """Colour (one of `SERIES`) and line style of a series."""
    return SERIES[index % NUM_COLOURS], LINES[index // NUM_COLOURS % len(LINES)]


def themed(svg: str) -> str:
    """The ``<svg>`` element alone, with colours that the page sets and without a fixed size."""
    svg = svg[svg.index("<svg") :].strip()
    for colour, name in [(INK, "ink"), (GRID, "grid")] + [
        (colour, f"series-{index}") for index, colour in enumerate(SERIES)
    ]:
        svg = svg.replace(colour, f"var(--{name})")
    head, rest = svg.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + ' role="img">' + rest


def _svg(name: str, draw: Callable[[Any], None], height: float = HEIGHT) -> str:
    with _style(name):
        figure = import_extra("matplotlib.figure", needed_for=NEEDED_FOR).Figure(
            figsize=(WIDTH, height), layout="constrained"
        )
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None}, transparent=True)
    return themed(content.getvalue())


def _style(name: str) -> AbstractContextManager[None]:
    """Text stays text, ids are the same in every report and differ between its pictures."""
    context: AbstractContextManager[None] = import_extra(
        "matplotlib", needed_for=NEEDED_FOR
    ).rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": f"fedquarc-{name}",
            "font.size": 10,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": GRID,
            "axes.axisbelow": True,
        }
    )
    return context


def _draw_dots(groups: Sequence[Group], axes: Any) -> None:
    """One row for each group: every seed, their mean and standard deviation."""
    for row, group in enumerate(groups):
        colour, _ = series_style(row)
        values = [value for run in group.runs if (value := ACCURACY.value(run)) is not None]
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.45, markersize=5)
        spread = Spread.of(values)
        if spread is not None:
            axes.errorbar(
                spread.mean, row, xerr=spread.std, fmt="|", color=colour, capsize=4, markersize=13
            )
    axes.set_yticks(range(len(groups)), [_cut(group.label) for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("Top-1 after the last round, %")
    axes.tick_params(axis="y", length=0)


def _draw_curves(axis: Axis, curves: Sequence[Curve | None], axes: Any) -> None:
    for index, found in enumerate(curves):
        if found is None:
            continue
        colour, line = series_style(index)
        means = [spread.mean for spread in found.accuracy]
        marker = "o" if len(means) <= 25 else None
        axes.plot(found.x, means, line, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
        below = [spread.mean - (spread.std or 0.0) for spread in found.accuracy]
        above = [spread.mean + (spread.std or 0.0) for spread in found.accuracy]
        if below != above:
            axes.fill_between(found.x, below, above, color=colour, alpha=0.15, linewidth=0)
    _finish(axes, axis.label)
    if axis.name == "rounds":
        ticker = import_extra("matplotlib.ticker", needed_for=NEEDED_FOR)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))


def _draw_cost(groups: Sequence[Group], axes: Any) -> None:
    for index, group in enumerate(groups):
        seconds = [value for run in group.runs if (value := device_seconds(run)) is not None]
        time, accuracy = Spread.of(seconds), group.spread(ACCURACY)
        if time is None or accuracy is None:
            continue
        colour, _ = series_style(index)
        axes.errorbar(
            time.mean,
            accuracy.mean,
            xerr=time.std,
            yerr=accuracy.std,
            fmt="o",
            color=colour,
            markerfacecolor=colour if index < NUM_COLOURS else "none",
            capsize=3,
            markersize=6,
        )
    _finish(axes, "seconds of selection and training, all devices")
    low, high = axes.get_xlim()
    if low > 0 and high > 20 * low:
        ticker = import_extra("matplotlib.ticker", needed_for=NEEDED_FOR)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())


def _cut(label: str) -> str:
    """Room for the figures is left beside it; the legend has all of it."""
    return label if len(label) <= MOST_CHARACTERS else f"{label[: MOST_CHARACTERS - 1]}\u2026"


def _finish(axes: Any, label: str) -> None:
    axes.grid(visible=True, axis="y")
    axes.set_xlabel(label)
    axes.set_ylabel("Top-1, %")
