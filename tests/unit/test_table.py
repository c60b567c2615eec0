"""Tests of simulations.paper.table and plot."""

import csv
import io
from pathlib import Path

import pytest

from simulations.paper.folder import CellResult, cell_key
from simulations.paper.grid import Grid
from simulations.paper.plot import to_png
from simulations.paper.table import Entry, collect, text_tables, to_csv, to_markdown
from simulations.results.spread import Spread
from tests.unit.grid_files import GRID, make_grid, make_result


def entries_of(grid: Grid, accuracies: dict[tuple[str, str], list[float | None]]) -> list[Entry]:
    """Entries of (method, share) -> Top-1 by seed, training 10, 11, ... seconds by seed."""
    cells = grid.cells(range(3))
    results: dict[str, CellResult] = {}
    for cell in cells:
        by_seed = accuracies.get((cell.labels["method"], cell.labels["share"]), [])
        if cell.seed < len(by_seed):
            accuracy = by_seed[cell.seed]
            results[cell_key(cell)] = make_result(accuracy, train_seconds=10.0 + cell.seed)
    return collect(grid, cells, results)


SOME: dict[tuple[str, str], list[float | None]] = {
    ("random", "5 %"): [60.0, 62.0, 64.0],
    ("random", "10 %"): [70.0],
    ("res", "5 %"): [50.0, None, 51.0],
    ("res", "10 %"): [],
}


def test_spread_is_mean_and_sample_deviation() -> None:
    """60, 62, 64: mean 62, squares 4 + 0 + 4 over 2, root 2."""
    spread = Spread.of([60.0, 62.0, 64.0])
    assert spread == Spread(mean=62.0, std=2.0)
    assert spread.format(2) == "62.00 ± 2.00"


def test_one_value_has_no_spread() -> None:
    assert Spread.of([60.0]) == Spread(mean=60.0, std=None)
    assert Spread(mean=60.0, std=None).format(1) == "60.0"
    assert Spread.of([]) is None


def test_rows_by_columns(tmp_path: Path) -> None:
    """50 and 51: mean 50.5, deviation sqrt(0.25 + 0.25) = 0.71. Training takes 10, 11 and 12 s:
    11 ± 1 and twice that of processor time; with the middle one diverged sqrt(1 + 1) = 1.4."""
    grid = make_grid(tmp_path)
    top1, train, select = text_tables(grid, entries_of(grid, SOME))
    assert (top1.title, top1.header) == ("Top-1, %", ["method", "5 %", "10 %"])
    assert top1.rows == [
        ["random", "62.00 ± 2.00", "70.00"],
        ["res", "50.50 ± 0.71 (1 diverged)", "-"],
    ]
    assert train.rows == [
        ["random", "11.0 ± 1.0 (22.0)", "10.0 (20.0)"],
        ["res", "11.0 ± 1.4 (1 diverged) (22.0)", "-"],
    ]
    assert select.rows[0] == ["random", "1.0 ± 0.0 (2.0)", "1.0 (2.0)"]


def test_nothing_but_divergence_says_so(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    top1, *_ = text_tables(grid, entries_of(grid, {("res", "5 %"): [None, None]}))
    assert top1.rows[1] == ["res", "diverged", "-"]


def test_several_axes_can_be_rows(tmp_path: Path) -> None:
    text = GRID.replace("rows: method\n  columns: share", "columns: method")
    grid = make_grid(tmp_path, text)
    top1, *_ = text_tables(grid, entries_of(grid, SOME))
    assert top1.header == ["share", "random", "res"]
    assert [row[:2] for row in top1.rows] == [["5 %", "62.00 ± 2.00"], ["10 %", "70.00"]]


REFERENCE = """\
# Time
settings: {model: {name: resnet8, teacher: shipped}}
axes:
  data:
    full set: {coreset: {selection: full}}
    a fifth: {coreset: {selection: res, fraction: 0.2}}
    nothing: {coreset: {selection: random}}
table: {rows: data, reference: full set}
"""


def test_without_columns_a_table_of_all_figures_and_a_reference(tmp_path: Path) -> None:
    """Training 100 s and selection 0 s against 20 s and 5 s: a quarter. Top-1 63.5 to 65: -1.5."""
    grid = make_grid(tmp_path, REFERENCE)
    full, fifth, _ = grid.cells([0])
    results = {
        cell_key(full): make_result(65.0, train_seconds=100.0, select_seconds=0.0),
        cell_key(fifth): make_result(63.5, train_seconds=20.0, select_seconds=5.0),
    }
    (table,) = text_tables(grid, collect(grid, grid.cells([0]), results))
    assert table.header[-2:] == ["Top-1 to full set", "time to full set"]
    assert table.rows == [
        ["full set", "65.00", "100.0 (200.0)", "0.0 (0.0)", "+0.00", "100.0 %"],
        ["a fifth", "63.50", "20.0 (40.0)", "5.0 (10.0)", "-1.50", "25.0 %"],
        ["nothing", "-", "-", "-", "-", "-"],
    ]


def test_csv_has_a_line_for_each_combination(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    lines = list(csv.DictReader(io.StringIO(to_csv(grid, entries_of(grid, SOME)))))
    assert [(line["method"], line["share"]) for line in lines] == list(SOME)
    first, second, third, fourth = lines
    assert first["num_seeds"] == "3"
    assert first["top1_percent_mean"] == "62.0000"
    assert first["top1_percent_std"] == "2.0000"
    assert first["total_seconds_mean"] == "12.0000"
    assert first["total_cpu_seconds_mean"] == "24.0000"
    assert first["top1_by_seed"] == "0:60.00 1:62.00 2:64.00"
    assert second["top1_percent_std"] == ""
    assert (third["num_seeds"], third["num_diverged"]) == ("3", "1")
    assert third["top1_by_seed"] == "0:50.00 1:diverged 2:51.00"
    assert (fourth["num_seeds"], fourth["top1_percent_mean"]) == ("0", "")


def test_markdown_says_how_to_make_it_again(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    text = to_markdown(grid, entries_of(grid, SOME), command="python -m it", picture="small.png")
    assert text.startswith("# A small grid\n\nDigits, for tests.\nAs small as can be.\n")
    assert "```\npython -m it\n```" in text
    assert "| method | 5 % | 10 % |\n| --- | --- | --- |\n| random | 62.00 ± 2.00 | 70.00 |" in text
    assert "- Seeds: 0, 1, 2\n" in text
    assert "- Versions: torch 2, python 3\n" in text
    assert "![A small grid](small.png)" in text


@pytest.mark.parametrize(
    "text", [GRID, GRID.replace("rows: method\n  columns: share", "rows: [method, share]")]
)
def test_picture_is_a_png(tmp_path: Path, text: str) -> None:
    pytest.importorskip("matplotlib")
    grid = make_grid(tmp_path, text)
    assert to_png(grid, entries_of(grid, SOME)).startswith(b"\x89PNG\r\n\x1a\n")
