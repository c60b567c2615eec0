"""A comparison as tables: for people, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.comparison.groups import (
    Comparison,
    Group,
    format_value,
    not_default,
    short_names,
)
from simulations.comparison.measures import ACCURACY, notes_on, report_measures
from simulations.display.text_table import MISSING, TextTable
from simulations.results.spread import Spread

MOST_COLUMNS = 4
"""More settings that vary than these have a table of their own."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a report came about."""

    title: str
    """Empty: made from what all runs share."""
    command: str
    notes: Sequence[str] = ()
    """What a reader should know besides: runs that were left out, for example."""
    target: float | None = None
    """Top-1 in percent; shown is what it took to reach it."""


def figures_table(comparison: Comparison, origin: Origin) -> TextTable:
    """One row for each group: what tells it apart, seeds and figures."""
    keys = list(comparison.varying) if _has_setting_columns(comparison) else []
    names = short_names(keys)
    measures = report_measures(comparison.runs, origin.target)
    header = [names[key] for key in keys] or ["run"]
    header.append("seeds")
    num_text_columns = len(header)
    header += [measure.header for measure in measures]
    rows = []
    for group in comparison.groups:
        row = [_setting(group, key) for key in keys] or [group.label]
        row.append(describe_seeds(group))
        for measure in measures:
            spread = group.spread(measure)
            row.append(MISSING if spread is None else measure.show(spread))
        rows.append(row)
    return TextTable(title="Results", header=header, rows=rows, num_text_columns=num_text_columns)


def differences_table(comparison: Comparison) -> TextTable | None:
    """One row for each setting that varies; None where they are columns of the results."""
    if not comparison.varying or _has_setting_columns(comparison):
        return None
    return TextTable(
        title="Settings that differ",
        header=["setting", *(group.label for group in comparison.groups)],
        rows=[
            [key, *(_setting(group, key) for group in comparison.groups)]
            for key in comparison.varying
        ],
        num_text_columns=1 + len(comparison.groups),
    )


def runs_table(comparison: Comparison, origin: Origin) -> TextTable:
    """One row for each run."""
    measures = report_measures(comparison.runs, origin.target)
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            row = [group.label, format_value(run.seed)]
            for measure in measures:
                value = measure.value(run)
                row.append(MISSING if value is None else measure.show(Spread(mean=value, std=None)))
            rows.append([*row, run.folder.name])
    header = ["run", "seed", *(measure.header for measure in measures), "folder"]
    return TextTable(title="Every run", header=header, rows=rows, num_text_columns=2)


def shared_table(comparison: Comparison) -> TextTable:
    """The settings of all runs that are not the defaults."""
    shared = not_default(comparison.shared)
    return TextTable(
        title="Settings of all runs",
        header=["setting", "value"],
        rows=[[key, format_value(value)] for key, value in shared.items()],
        num_text_columns=2,
    )


def describe_seeds(group: Group) -> str:
    """``0, 1, 2``."""
    return ", ".join(format_value(run.seed) for run in group.runs)


def headline(comparison: Comparison) -> str:
    """Which group has the highest mean accuracy, in a sentence."""
    ranked = [
        (spread, group)
        for group in comparison.groups
        if (spread := group.spread(ACCURACY)) is not None
    ]
    if not ranked:
        return "No run has an accuracy."
    spread, group = max(ranked, key=lambda entry: entry[0].mean)
    seeds = "one seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds"
    if len(ranked) == 1:
        return f"{ACCURACY.show(spread)} % Top-1 ({seeds})."
    return f"Highest Top-1 of {len(ranked)}: {group.label}, {ACCURACY.show(spread)} % ({seeds})."


def versions(comparison: Comparison) -> list[str]:
    """The sets of versions that the runs were made with, one line each."""
    found = {
        ", ".join(f"{name} {value}" for name, value in run.summary.get("versions", {}).items())
        for run in comparison.runs
    }
    return sorted(found - {""})


def to_csv(comparison: Comparison, origin: Origin) -> str:
    """One line for each group: settings in full, all figures, and the Top-1 of every seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = report_measures(comparison.runs, origin.target)
    figures = [f"{measure.name}_{part}" for measure in measures for part in ("mean", "std")]
    writer.writerow(
        ["run", *comparison.varying, "num_seeds", "seeds", *figures, "accuracy_percent_by_seed"]
    )
    for group in comparison.groups:
        line = [group.label, *(_setting(group, key) for key in comparison.varying)]
        line += [str(len(group.runs)), " ".join(format_value(run.seed) for run in group.runs)]
        for measure in measures:
            spread = group.spread(measure)
            line.append("" if spread is None else f"{spread.mean:.6g}")
            line.append("" if spread is None or spread.std is None else f"{spread.std:.6g}")
        accuracies = [(run.seed, ACCURACY.value(run)) for run in group.runs]
        line.append(" ".join(f"{seed}:{MISSING if a is None else a}" for seed, a in accuracies))
        writer.writerow(line)
    return text.getvalue()


def to_markdown(comparison: Comparison, origin: Origin) -> str:
    """The tables with what is needed to make them again."""
    tables = [
        figures_table(comparison, origin),
        differences_table(comparison),
        runs_table(comparison, origin),
        shared_table(comparison),
    ]
    parts = [f"# {origin.title}", headline(comparison)]
    for table in tables:
        if table is not None and table.rows:
            parts += [f"## {table.title}", table.to_markdown()]
    parts.append(
        "\n".join(
            f"- {line}" for line in [*notes_of(comparison, origin), *facts(comparison, origin)]
        )
    )
    parts.append(f"```\n{origin.command}\n```")
    return "\n\n".join(parts) + "\n"


def notes_of(comparison: Comparison, origin: Origin) -> list[str]:
    """What the columns mean, one line each."""
    return notes_on(report_measures(comparison.runs, origin.target))


def facts(comparison: Comparison, origin: Origin) -> list[str]:
    """Seeds, versions and notes, one line each."""
    seeds = sorted({int(run.seed) for run in comparison.runs})
    return [
        f"Seeds: {', '.join(map(str, seeds))}",
        *(f"Versions: {line}" for line in versions(comparison)),
        *origin.notes,
    ]


def _has_setting_columns(comparison: Comparison) -> bool:
    return not comparison.is_named and 0 < len(comparison.varying) <= MOST_COLUMNS


def _setting(group: Group, key: str) -> str:
    return format_value(group.settings[key]) if key in group.settings else MISSING
