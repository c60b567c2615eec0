"""Tests of simulations.display.text_table."""

from __future__ import annotations

import io

from rich.console import Console

from simulations.display.text_table import TextTable

TABLE = TextTable(
    title="Runs [all]",
    header=["a|b", "%"],
    rows=[["random [x]", "5"], ["a " + "long " * 40 + "name", "61.5"]],
)


def test_markdown() -> None:
    first, rule, row, _ = TABLE.to_markdown().splitlines()
    assert first == "| a\\|b | % |"
    assert rule == "| --- | --- |"
    assert row == "| random [x] | 5 |"


def test_it_is_printed_as_wide_as_it_is_with_figures_to_the_right() -> None:
    """On 40 columns a name of 206 characters stays on its line, and so do brackets."""
    file = io.StringIO()
    TABLE.print(Console(file=file, width=40))
    title, _, _, random, long = (
        line.rstrip() for line in file.getvalue().splitlines() if line.strip()
    )
    assert title == "Runs [all]"
    assert random.split() == ["random", "[x]", "5"]
    assert len(long) == len(random)
    assert long.endswith("name   61.5")


def test_a_columns_name_is_no_wider_than_it_has_to_be() -> None:
    """ "rounds to 80 %" over one digit takes the width of "rounds"; "80 %" stays together."""
    file = io.StringIO()
    table = TextTable(title="t", header=["run", "rounds to 80 %"], rows=[["a", "5"]])
    table.print(Console(file=file, width=40))
    lines = [line.split() for line in file.getvalue().splitlines() if line.strip()]
    assert lines[1:4] == [["rounds"], ["to"], ["run", "80", "%"]]
