"""Tests of simulations.paper.table and plot."""

import csv
import io
from pathlib import Path
from typing import Any

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
    assert top1.rows == [["res", "diverged"]]


def test_rows_and_columns_without_a_result_are_left_out(tmp_path: Path) -> None:
    """What is left keeps the grid's order: columns are 5 % first, although the first row with a
    result has 10 % alone."""
    text = GRID.replace("[random, res]", "[ds, random, res]").replace(
        "table:", "    20 %: {coreset: {fraction: 0.2}, training: {local-epochs: 1}}\ntable:"
    )
    grid = make_grid(tmp_path, text)
    results: dict[tuple[str, str], list[float | None]] = {
        ("random", "10 %"): [60.0],
        ("res", "5 %"): [50.0],
        ("res", "10 %"): [70.0],
    }
    entries = entries_of(grid, results)
    for table in text_tables(grid, entries):
        assert table.header == ["method", "5 %", "10 %"]
        assert [row[0] for row in table.rows] == ["random", "res"]
    assert text_tables(grid, entries)[0].rows == [
        ["random", "-", "60.00"],
        ["res", "50.00", "70.00"],
    ]
    lines = list(csv.DictReader(io.StringIO(to_csv(grid, entries))))
    assert [(line["method"], line["share"]) for line in lines] == list(results)


def test_rows_keep_the_grids_order_where_the_first_axis_is_the_columns(tmp_path: Path) -> None:
    """The first combination with a result is of 10 %, which is the second row."""
    text = GRID.replace("rows: method\n  columns: share", "rows: share\n  columns: method")
    grid = make_grid(tmp_path, text)
    entries = entries_of(grid, {("random", "10 %"): [60.0], ("res", "5 %"): [50.0]})
    top1, *_ = text_tables(grid, entries)
    assert top1.rows == [["5 %", "-", "50.00"], ["10 %", "60.00", "-"]]


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
    ]


def test_rows_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    """The reference has 60, 70 and 80 % with seeds 0, 1 and 2, in 10, 20 and 30 s. The second row
    has 61 and 71 with seeds 0 and 1, which is 1 above in half the time, although its mean of 66 is
    4 below the reference's 70; where only seed 0 did not diverge, 61 alone is compared, with 60.
    The third row has diverged."""
    grid = make_grid(tmp_path, REFERENCE)
    cells = grid.cells(range(3))
    full, fifth, nothing = (
        {cell.seed: cell_key(cell) for cell in cells if cell.labels["data"] == label}
        for label in ("full set", "a fifth", "nothing")
    )

    def rows(*of_fifth: tuple[int, float | None]) -> list[list[str]]:
        def timed(accuracy: float | None, seed: int, share: float) -> CellResult:
            seconds = share * 10 * (seed + 1)
            return make_result(accuracy, train_seconds=seconds, select_seconds=0.0)

        results = {full[seed]: timed(60.0 + 10 * seed, seed, 1.0) for seed in range(3)}
        results |= {fifth[seed]: timed(accuracy, seed, 0.5) for seed, accuracy in of_fifth}
        results[nothing[1]] = timed(None, 1, 0.1)
        (table,) = text_tables(grid, collect(grid, cells, results))
        return [row[-2:] for row in table.rows]

    assert rows((0, 61.0), (1, 71.0)) == [["+0.00", "100.0 %"], ["+1.00", "50.0 %"], ["-", "-"]]
    assert rows((0, 61.0), (2, None))[1] == ["+1.00", "50.0 %"]


def test_without_the_references_result_nothing_is_compared(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, REFERENCE)
    _, fifth, _ = grid.cells([0])
    entries = collect(grid, grid.cells([0]), {cell_key(fifth): make_result(63.5)})
    (table,) = text_tables(grid, entries)
    assert table.header == ["data", "Top-1, %", "training, s (CPU s)", "selection, s (CPU s)"]
    assert [row[0] for row in table.rows] == ["a fifth"]


def test_csv_has_a_line_for_each_combination(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    lines = list(csv.DictReader(io.StringIO(to_csv(grid, entries_of(grid, SOME)))))
    assert [(line["method"], line["share"]) for line in lines] == list(SOME)[:3]
    first, second, third = lines
    assert first["num_seeds"] == "3"
    assert first["top1_percent_mean"] == "62.0000"
    assert first["top1_percent_std"] == "2.0000"
    assert first["total_seconds_mean"] == "12.0000"
    assert first["total_cpu_seconds_mean"] == "24.0000"
    assert first["top1_by_seed"] == "0:60.00 1:62.00 2:64.00"
    assert second["top1_percent_std"] == ""
    assert (third["num_seeds"], third["num_diverged"]) == ("3", "1")
    assert third["top1_by_seed"] == "0:50.00 1:diverged 2:51.00"


def test_markdown_says_how_to_make_it_again(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    entries = entries_of(grid, SOME)
    whole = [entry for entry in entries if len(entry.results) == 3]
    text = to_markdown(grid, whole, command="python -m it", picture="small.png")
    assert "- Seeds: 0, 1, 2\n" in text
    text = to_markdown(
        grid, entries, command="python -m it", picture="small.png", note="Not run yet."
    )
    assert text.startswith("# A small grid\n\nDigits, for tests.\nAs small as can be.\n")
    assert "```\npython -m it\n```" in text
    assert "| method | 5 % | 10 % |\n| --- | --- | --- |\n| random | 62.00 ± 2.00 | 70.00 |" in text
    assert "| - |\n\nNot run yet.\n\n![" in text
    assert "- Seeds: 0, 1, 2 (1 of 3 results are of fewer: num_seeds in the CSV file)\n" in text
    assert "- Versions: torch 2, python 3\n" in text
    assert "![A small grid](small.png)" in text


@pytest.mark.parametrize(
    "text", [GRID, GRID.replace("rows: method\n  columns: share", "rows: [method, share]")]
)
def test_picture_is_a_png(tmp_path: Path, text: str) -> None:
    pytest.importorskip("matplotlib")
    grid = make_grid(tmp_path, text)
    assert to_png(grid, entries_of(grid, SOME)).startswith(b"\x89PNG\r\n\x1a\n")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved: list[Any] = []
    save = figure.savefig

    def keep(self: Any, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", keep)
    return saved


@pytest.mark.parametrize(
    ("columns", "places"), [(True, ["5 %", "10 %"]), (False, ["random, 10 %", "res, 5 %"])]
)
def test_pictures_places_are_those_of_the_table(
    columns: bool, places: list[str], tmp_path: Path, figures: list[Any]
) -> None:
    """The first point is of 10 %, which is the second column; nothing else has a place."""
    rows = "rows: method\n  columns: share"
    grid = make_grid(tmp_path, GRID if columns else GRID.replace(rows, "rows: [method, share]"))
    to_png(grid, entries_of(grid, {("random", "10 %"): [60.0], ("res", "5 %"): [50.0]}))
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == places


def test_a_long_title_takes_several_lines(tmp_path: Path, figures: list[Any]) -> None:
    """With two settings it has 121 characters, one more than a line: the last goes below."""
    changes = (f"model.teacher={'x' * 51}.safetensors", "training.batch-norm-images=4")
    grid = make_grid(tmp_path, overrides=changes)
    to_png(grid, entries_of(grid, SOME))
    first, second = figures[0].get_suptitle().splitlines()
    assert f"{first} {second}" == grid.title
    assert second == "training.batch-norm-images=4"


@pytest.mark.parametrize("text", [GRID, REFERENCE])
@pytest.mark.filterwarnings("error")
def test_a_picture_of_nothing_but_divergence(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grid = make_grid(tmp_path, text)
    cells = grid.cells([0])
    entries = collect(grid, cells, {cell_key(cells[0]): make_result(None)})
    assert to_png(grid, entries).startswith(b"\x89PNG\r\n\x1a\n")
