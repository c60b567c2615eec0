"""Tests of simulations.display.terminal."""

import io

import pytest
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from simulations.display.terminal import LiveLines, print_line


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_for_terminals_alone(is_terminal: bool) -> None:
    """Hiding the cursor is how rich begins to draw."""
    output = io.StringIO()
    with LiveLines(Console(file=output, force_terminal=is_terminal), BarColumn()) as lines:
        lines._progress.add_task("", total=2)
    assert ("\x1b[?25l" in output.getvalue()) is is_terminal


def test_lines_stay_above_the_bar() -> None:
    output = io.StringIO()
    with LiveLines(Console(file=output, force_terminal=False), TextColumn("bar")) as lines:
        lines._line("first")
        lines._line("second")
    assert output.getvalue() == "first\nsecond\n"


def test_a_line_is_printed_as_it_is_however_narrow_the_output() -> None:
    output = io.StringIO()
    text = "/a/long/path/[bold]that rich would take for markup[/bold]"
    print_line(Console(file=output, width=20), text)
    assert output.getvalue() == f"{text}\n"
