"""A run in a fleet: from its settings to its end."""

from __future__ import annotations

import datetime
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.arguments import split_settings
from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from server.deployment.control import ControlClient
from server.requirements import check_deployable

POLL_SECONDS = 3.0
OUTAGE_SECONDS = 300.0
"""A SuperLink that restarts within this time finds the run, and so does who follows it."""
COMPLETED = "finished:completed"
FAILED = "finished:failed"
RESTART_SECONDS = 10.0
"""Before a run that failed is started again."""


def run_settings(file: Path | None, overrides: Sequence[str]) -> dict[str, Scalar]:
    """The settings of a run: a TOML file of sections, then ``section.key=value`` overrides.

    Raises:
        UserError: for a file that can't be read, or a setting that is unknown, given twice or out
            of range; nothing has been started then.
    """
    settings = _read(file) if file is not None else {}
    settings |= {key: _value(text) for key, text in split_settings(overrides).items()}
    config = Config.from_flat(settings)
    check_deployable(config)
    return settings


def run_to_end(
    client: ControlClient, app: Path, settings: Mapping[str, Scalar], *, restarts: int = 0
) -> int:
    """Start a run and follow it; one that fails is started again and goes on where it was.

    One that is refused is not: that would not change before somebody has mended something.

    Args:
        client: of the SuperLink.
        app: the project's folder.
        settings: of the run.
        restarts: how often at most; needs ``run.resume``.

    Returns:
        0 if the run completed and 1 if it did not.

    Raises:
        UserError: if restarts can't work, or the SuperLink is away for longer than
            `OUTAGE_SECONDS`.
    """
    if restarts < 0:
        raise UserError(f"--restarts = {restarts}: expected 0 or more")
    if restarts and not settings.get("run.resume"):
        raise UserError("--restarts needs --set run.resume=FOLDER, in place of run.out")
    status = follow_run(client, client.start_run(app, settings))
    for number in range(1, restarts + 1):
        if status != FAILED:
            break
        _say(f"the run failed: started again in {RESTART_SECONDS:.0f} s ({number} of {restarts})")
        time.sleep(RESTART_SECONDS)
        status = follow_run(client, client.start_run(app, settings))
    return 0 if status == COMPLETED else 1


def follow_run(client: ControlClient, run_id: str) -> str:
    """Show a run's log until it is over; returns how it ended.

    Raises:
        UserError: if the SuperLink is away for longer than `OUTAGE_SECONDS`.
    """
    _say(f"run {run_id} is started; it goes on when this command is interrupted")
    while not (status := _status(client, run_id)).startswith("finished:"):
        # Ends early when the SuperLink restarts.
        client.follow_log(run_id)
        time.sleep(POLL_SECONDS)
    _say(f"run {run_id}: {status}")
    return status


def _status(client: ControlClient, run_id: str) -> str:
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return client.run_status(run_id)
        except UserError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_SECONDS)


def _read(file: Path) -> dict[str, Scalar]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"'{file}' can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"'{file}' is not TOML: {error}") from error
    for name, section in content.items():
        if not isinstance(section, dict):
            raise UserError(f"'{file}': {name} = {section!r}: expected a section")
    return {
        f"{name}.{key}": value
        for name, section in content.items()
        for key, value in section.items()
    }


def _value(text: str) -> Any:
    """A TOML value; what is none, or a date, is a string without its quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if isinstance(value, datetime.date | datetime.time) else value


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
