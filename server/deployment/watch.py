"""``python -m server watch``: a federation on the terminal while it runs, here or elsewhere.

Watching costs the federation nothing but, from elsewhere, a connection to its SuperLink.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live

from common.errors import UserError
from server.deployment.run_view import RunView
from server.records.recorder import METRICS_FILE, SUMMARY_FILE

POLL_SECONDS = 1.0


class Source(Protocol):
    """A run that can be watched."""

    def read(self) -> None:
        """Take in what there is by now."""

    def follow(self) -> None:
        """Take in what comes, until the run is over."""

    def render(self) -> Group:
        """How it stands; may be asked while another thread follows."""


class RunFolder:
    """A run in a folder of this machine, or in a copy of one: only metrics.jsonl is read.

    Args:
        folder: of the run; its files may not be there yet.

    Raises:
        UserError: if there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: expected the folder of a run, or https://HOST:PORT[/RUN-ID]"
            )
        self.folder = folder
        self.path = folder / METRICS_FILE
        self.view = RunView()
        self._last = b""
        """The last line that was taken in."""
        self._position = 0
        """Where it begins."""

    def read(self) -> None:
        """Take in new whole lines; all of them where a run that went on cut lines off."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
                if not content.startswith(self._last):
                    # Cut off, and grown again maybe: another line is where the last one was.
                    self.view, self._position, self._last = RunView(), 0, b""
                    file.seek(0)
                    content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        for line in lines[1 if self._last else 0 :]:
            self.view.add(json.loads(line))
        if lines:
            self._last = lines[-1]
            self._position += len(whole) - len(self._last)

    def follow(self) -> None:
        """Read every second until the run's summary is there."""
        is_over = False
        while not is_over:
            is_over = (self.folder / SUMMARY_FILE).exists()
            self.read()
            if not is_over:
                time.sleep(POLL_SECONDS)

    def render(self) -> Group:
        """The folder, and whether its run is over, or how long it has been silent."""
        if (self.folder / SUMMARY_FILE).exists():
            return self.view.render(f"{self.folder}: over")
        try:
            silent = max(0.0, time.time() - self.path.stat().st_mtime)
        except FileNotFoundError:
            return self.view.render(f"{self.folder}: no round yet")
        return self.view.render(f"{self.folder}: last record {silent:.0f} s ago")


def add_watch_command(commands: Any) -> None:
    """Add ``watch`` to the sub-commands of ``python -m server``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "watch", help="show a federation while it runs"
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="folder of a run, or https://HOST:PORT[/RUN-ID] of a SuperLink "
        "(not of the devices' proxy); without RUN-ID: its newest run",
    )
    parser.add_argument(
        "--ca",
        type=Path,
        default=Path("secrets/ca.crt"),
        help="CA of the SuperLink (default: secrets/ca.crt)",
    )
    parser.add_argument("--once", action="store_true", help="show what there is, and end")
    parser.set_defaults(command=watch)


def watch(options: argparse.Namespace) -> int:
    """Show a run until it is over; Ctrl-C ends the watching, not the run.

    Raises:
        UserError: if there is no such folder, or no such run at no such SuperLink.
    """
    run: str = options.run
    source: Source
    if "://" in run:
        # Imported late: it needs Flower, which takes seconds.
        from server.deployment.remote_run import RemoteRun

        source = RemoteRun(run, options.ca)
    else:
        source = RunFolder(Path(run))
    console = Console()
    with contextlib.suppress(KeyboardInterrupt):
        source.read()
        if options.once:
            console.print(source.render())
            return 0
        with Live(console=console, get_renderable=source.render, refresh_per_second=1):
            source.follow()
    return 0
