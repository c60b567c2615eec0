"""Run folders -> report.html, table.csv and table.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from common.errors import UserError
from simulations.comparison.folder import COMPARISON_FILE, RUN_FOLDER
from simulations.comparison.groups import Comparison, compare_runs
from simulations.comparison.page import to_html
from simulations.comparison.records import RunRecord, is_finished, is_run_folder, read_run
from simulations.comparison.tables import Origin, figures_table, to_csv, to_markdown
from simulations.display.terminal import print_line
from simulations.results.files import write_atomically

REPORT_FILE = "report.html"
CSV_FILE = "table.csv"
MARKDOWN_FILE = "table.md"


def read_runs(folders: Sequence[Path]) -> tuple[list[RunRecord], list[Path]]:
    """The finished runs among some run folders, and the folders of the others.

    Raises:
        UserError: one is no run folder, or is damaged.
    """
    records, unfinished = [], []
    for folder in folders:
        if is_finished(folder):
            records.append(read_run(folder))
        elif is_run_folder(folder):
            unfinished.append(folder)
        else:
            is_comparison = (folder / COMPARISON_FILE).is_file()
            hint = f" (those of this comparison: {folder / RUN_FOLDER}/*)" if is_comparison else ""
            raise UserError(f"{folder} is no run folder: expected one that `run` has written{hint}")
    return records, unfinished


def write_report(records: Sequence[RunRecord], out: Path, origin: Origin, console: Console) -> None:
    """Print the table of some runs, and write the report.

    Raises:
        UserError: there is no run, two are the same, a file cannot be written, or matplotlib is
            not installed.
    """
    if not records:
        raise UserError("there is no finished run to report: expected at least one")
    comparison = compare_runs(records)
    if not origin.title:
        origin = replace(origin, title=describe_title(comparison))
    figures_table(comparison, origin).print(console)
    write_atomically(out / CSV_FILE, to_csv(comparison, origin).encode())
    write_atomically(out / MARKDOWN_FILE, to_markdown(comparison, origin).encode())
    write_atomically(out / REPORT_FILE, to_html(comparison, origin).encode())
    print_line(console, f"report: {out / REPORT_FILE}, {CSV_FILE} and {MARKDOWN_FILE} beside it")


def describe_title(comparison: Comparison) -> str:
    """``resnet20 on cifar100``, of what all runs share."""
    model, dataset = comparison.shared.get("model.name"), comparison.shared.get("data.dataset")
    parts = [str(model) if model else "several models", "on", str(dataset or "several data sets")]
    return " ".join(parts)
