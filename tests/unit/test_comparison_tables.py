"""Tests of simulations.comparison.tables: what people and programs read."""

import csv
import io
from pathlib import Path

from common.settings import Scalar
from simulations.comparison.groups import Comparison, compare_runs
from simulations.comparison.records import read_run
from simulations.comparison.tables import (
    Origin,
    differences_table,
    figures_table,
    headline,
    runs_table,
    shared_table,
    to_csv,
    to_markdown,
)
from tests.unit.run_folders import write_run


def make_comparison(folder: Path, name: str = "") -> Comparison:
    """Two seeds of res with 60 and 62 %, one of random with 59 %."""
    shared: dict[str, Scalar] = {"data.num-devices": 4}
    records = []
    for selection, seed, accuracy in (("res", 0, 60.0), ("res", 1, 62.0), ("random", 0, 59.0)):
        path = write_run(
            folder / f"{selection}-{seed}",
            [50.0, accuracy],
            settings={**shared, "coreset.selection": selection, "run.seed": seed},
        )
        records.append(read_run(path, name and f"{name} {selection}"))
    return compare_runs(records)


ORIGIN = Origin(title="T", command="c")


def test_one_row_for_each_setting(tmp_path: Path) -> None:
    """60 and 62: mean 61, deviation sqrt(1 + 1). 4 of 32 MB: 12.5 %; 4 MB in 4 rounds."""
    table = figures_table(make_comparison(tmp_path), ORIGIN)
    assert table.header[:3] == ["selection", "seeds", "Top-1, %"]
    assert ["|".join(row) for row in table.rows] == [
        "res|0, 1|61.00 ± 1.41|61.00 ± 1.41|66.00|2.00|1 MB|12.5 %|10.0|90.0|120",
        "random|0|59.00|59.00|66.00|2.00|1 MB|12.5 %|10.0|90.0|120",
    ]


def test_names_replace_columns_of_settings(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, "lab")
    assert figures_table(comparison, ORIGIN).header[0] == "run"
    differences = differences_table(comparison)
    assert differences is not None
    assert differences.header == ["setting", "lab res", "lab random"]
    assert differences.rows == [["coreset.selection", "res", "random"]]
    assert differences_table(make_comparison(tmp_path / "unnamed")) is None


def test_every_run_has_a_row(tmp_path: Path) -> None:
    rows = runs_table(make_comparison(tmp_path), ORIGIN).rows
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("res", "0", "60.00", "res-0"),
        ("res", "1", "62.00", "res-1"),
        ("random", "0", "59.00", "random-0"),
    ]


def test_the_headline_is_the_highest_mean(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path)
    assert headline(comparison) == "Highest Top-1 of 2: res, 61.00 ± 1.41 % (2 seeds)."


def test_shared_settings_are_those_that_are_not_the_defaults(tmp_path: Path) -> None:
    assert shared_table(make_comparison(tmp_path)).rows == [["data.num-devices", "4"]]


def test_csv_has_settings_figures_and_every_seed(tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(make_comparison(tmp_path), ORIGIN))))
    res, random = lines
    assert (res["coreset.selection"], res["num_seeds"], res["seeds"]) == ("res", "2", "0 1")
    assert (res["accuracy_percent_mean"], res["accuracy_percent_std"]) == ("61", "1.41421")
    assert (random["accuracy_percent_mean"], random["accuracy_percent_std"]) == ("59", "")
    assert res["accuracy_percent_by_seed"] == "0:60.0 1:62.0"
    assert res["upload_bytes_per_round_mean"] == "1e+06"


def test_markdown_says_how_it_was_made(tmp_path: Path) -> None:
    origin = Origin(title="A | B", command="python -m simulations report x", notes=["Left out: y"])
    text = to_markdown(make_comparison(tmp_path, "a|b"), origin)
    for line in (
        "# A | B",
        "| a\\|b res | 0, 1 | 61.00 ± 1.41 | 61.00 ± 1.41 | 66.00 | 2.00 | 1 MB | 12.5 % "
        "| 10.0 | 90.0 | 120 |",
        "- Seeds: 0, 1",
        "- Versions: python 3.11.7, torch 2.9.0",
        "- Left out: y",
        "python -m simulations report x",
    ):
        assert line in text.splitlines()


def test_what_it_took_to_reach_an_accuracy(tmp_path: Path) -> None:
    """Evaluated after rounds 2 and 4, with 1 MB, 10 virtual seconds and 500 J a round.

    res reaches 60 % after 4 rounds with both seeds: 4 MB, 40 s, 2 kJ; random never does.
    """
    comparison = make_comparison(tmp_path)
    for run in comparison.runs:
        for line in run.rounds:
            assert isinstance(line, dict)
            line |= {"virtual_clock_seconds": 10.0 * line["round"], "joules": 500.0}
    table = figures_table(comparison, Origin(title="T", command="c", target=60.0))
    start = table.header.index("rounds to 60 %")
    assert table.header[start:] == [
        "rounds to 60 %",
        "up to 60 %",
        "virtual s to 60 %",
        "energy to 60 %",
    ]
    assert [row[start:] for row in table.rows] == [["4", "4 MB", "40.0", "2 kJ"], ["-"] * 4]
