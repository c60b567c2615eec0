"""Progress for people: lines that stay and, on a terminal, a bar below them that lives."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.text import Text


def live_progress(console: Console, *columns: ProgressColumn) -> Progress:
    """A bar that vanishes at its end; where the console is no terminal, one that shows nothing."""
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line, however narrow the output is; brackets stay what they are (paths, titles)."""
    console.print(Text(text, style=style), soft_wrap=True)


class LiveLines:
    """Lines above one bar; a context manager.

    Args:
        console: where to.
        columns: of the bar.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self.console = console
        self._progress = live_progress(console, *columns)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _line(self, text: str, style: str = "") -> None:
        print_line(self.console, text, style)
