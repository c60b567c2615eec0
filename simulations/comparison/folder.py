"""The folder of a comparison: what was asked for, and a run folder for each run.

``DIR/comparison.json`` remembers the scenarios, ``DIR/runs/<name>`` are the runs. Values, seeds and
scenarios may be added later; what is there already must mean the same.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.lock import hold
from server.records.recorder import holds_files
from simulations.comparison.records import (
    RunRecord,
    is_finished,
    is_run_folder,
    read_run,
    read_settings,
)
from simulations.comparison.sweep import RUN_OUT, RUN_RESUME, PlannedRun, Sweep
from simulations.results.files import GOES_ON, write_atomically

FORMAT = 1
COMPARISON_FILE = "comparison.json"
RUN_FOLDER = "runs"
LOCK_FILE = ".lock"


class ComparisonFolder:
    """Where the runs of a comparison are.

    Args:
        path: new, empty, or of an earlier call; nothing is written before `prepare`.
        sweeps: what is compared.

    Raises:
        UserError: the folder holds other files, or scenarios with other settings.
    """

    def __init__(self, path: Path, sweeps: Sequence[Sweep]) -> None:
        self.path = path
        self._sweeps = sweeps
        self._content = self._recorded_and_mine()

    def _recorded_and_mine(self) -> dict[str, Any]:
        """What the folder remembers from now on."""
        path, recorded = self.path, _read(self.path)
        is_new = not path.exists() or (path.is_dir() and _names(path) <= {LOCK_FILE})
        if recorded is None and not is_new:
            raise UserError(
                f"{path} is no folder of a comparison: expected a new or empty folder, or one with "
                f"a {COMPARISON_FILE}"
            )
        mine = describe(self._sweeps)
        difference = first_difference(recorded or mine, mine)
        if difference is not None:
            raise UserError(
                f"{path} was made with other settings: {difference}; give another folder with --out"
            )
        earlier = {} if recorded is None else recorded["scenarios"]
        return {**mine, "scenarios": {**earlier, **mine["scenarios"]}}

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """While entered, no other process runs anything of this comparison.

        Raises:
            UserError: another process does, or has just finished something that contradicts.
        """
        with hold(self.path / LOCK_FILE, wait_seconds=0.0) as is_free:
            if not is_free:
                raise UserError(
                    f"{self.path} is in use: another process runs a comparison there; wait for its "
                    f"end, or give another folder with --out"
                )
            self._content = self._recorded_and_mine()  # it may have added scenarios
            yield

    def run_folder(self, run: PlannedRun) -> Path:
        """Where a run's files are."""
        return self.path / RUN_FOLDER / run.name

    def finished_runs(self) -> list[RunRecord]:
        """All that are there in full, of earlier calls as well.

        Raises:
            UserError: one is damaged.
        """
        folders = sorted((self.path / RUN_FOLDER).glob("*"))
        return [read_run(folder) for folder in folders if is_finished(folder)]

    def is_finished(self, run: PlannedRun) -> bool:
        """Whether a run is there in full.

        Raises:
            UserError: it was made with other settings.
        """
        folder = self.run_folder(run)
        if not is_finished(folder):
            return False
        recorded = read_settings(folder)
        for key, value in run.compared.items():
            if recorded[key] != value:
                raise UserError(
                    f"{folder} was made with other settings: {key} is {recorded[key]!r} there and "
                    f"{value!r} here; give another folder with --out"
                )
        return True

    def prepare(
        self, run: PlannedRun, note: Callable[[str], None], *, goes_on: bool
    ) -> dict[str, str]:
        """A place for a run that is not finished: its own checkpoints', or an empty one.

        Args:
            run: what is to be run.
            note: told why checkpoints are of no use, if they are of none.
            goes_on: False: the run begins anew.

        Returns:
            The setting that names the place: run.resume or run.out.

        Raises:
            UserError: something is there that no run has written, or nothing can be written.
        """
        # Imported late: it needs torch, which is not needed to report or to refuse.
        from server.checkpoints.resumption import can_go_on

        content = json.dumps(self._content, indent=1).encode() + b"\n"
        write_atomically(self.path / COMPARISON_FILE, content, hint=GOES_ON)
        folder = self.run_folder(run)
        if folder.exists():
            if holds_files(folder) and not is_run_folder(folder):
                raise UserError(f"{folder}: expected the files of a run, found others")
            try:
                if goes_on and can_go_on(folder, run.config):
                    return {RUN_RESUME: str(folder)}
            except UserError as error:
                note(f"{run.name} begins anew: {error}")
            shutil.rmtree(folder)
        return {RUN_OUT: str(folder)}


def describe(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """What a comparison's folder remembers."""
    return {
        "format": FORMAT,
        "scenarios": {
            sweep.name: {"settings": sweep.compared, "swept": list(sweep.axes)} for sweep in sweeps
        },
    }


def first_difference(recorded: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """Where two comparisons contradict each other, in words; None where one only has more."""
    if recorded.get("format") != mine["format"]:
        return f"format is {recorded.get('format')!r} there and {mine['format']!r} here"
    for name, ours in mine["scenarios"].items():
        theirs = recorded["scenarios"].get(name, ours)
        if theirs["swept"] != ours["swept"]:
            there, here = (", ".join(each["swept"]) or "nothing" for each in (theirs, ours))
            return f"scenario {name} sweeps {there} there and {here} here"
        for key, value in ours["settings"].items():
            # A setting that was added since then kept the earlier behaviour as its default.
            if theirs["settings"].get(key, value) != value:
                return (
                    f"{key} of scenario {name} is {theirs['settings'][key]!r} there and {value!r} "
                    f"here"
                )
    return None


def _names(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir()}


def _read(path: Path) -> dict[str, Any] | None:
    file = path / COMPARISON_FILE
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("scenarios"), dict):
        raise UserError(f"{file} is damaged: give another folder with --out")
    return content
