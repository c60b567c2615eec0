"""Tables of text: on a terminal and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = "-"
"""Shown where there is no value."""

MOST_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table to be shown."""

    title: str
    header: list[str]
    rows: list[list[str]]
    num_text_columns: int = 1
    """The first columns, aligned to the left; the others hold figures."""

    def to_markdown(self) -> str:
        """Header and rows, without the title."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)

    def print(self, console: Console) -> None:
        """Print it, brackets as they are."""
        table = Table(title=Text(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        for index, name in enumerate(self.header):
            cells = [row[index] for row in self.rows]
            table.add_column(
                _narrowed(name, cells), justify="left" if index < self.num_text_columns else "right"
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        # As wide as it is: a file, or a terminal that wraps, is better than columns cut short.
        Console(file=console.file, width=MOST_CHARACTERS).print(table, soft_wrap=True)


def _narrowed(name: str, cells: Sequence[str]) -> Text:
    """A column's name in lines that are, if words allow it, no wider than what is below it."""
    glued = glue_unit(name)
    width = max(map(len, [*cells, *glued.split(" ")]), default=1)
    lines = textwrap.wrap(glued, max(width, 1))
    return Text("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "))


def glue_unit(name: str) -> str:
    """A column's name, in which no line breaks before the unit at its end."""
    return re.sub(r" (%|s)$", "\N{NO-BREAK SPACE}\\1", name)
