"""The log of what happens: one JSON object per line, by event, through Python's logging.

A line tells what happened, when, in which run, stage and round and to which device, with the
figures that somebody who watches wants to see; all others are in metrics.jsonl. Of a device's
images, labels, files and coreset nothing is ever a field but how many there are.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from common.settings import Scalar

Field = Scalar | Mapping[str, int]

EVENTS_FILE = "events.jsonl"
PRINT_VARIABLE = "FEDQUARC_EVENTS"
"""Environment variable: set where a device's process is to print its events, as a service does."""

_LOGGER = logging.getLogger("fedquarc.events")
# Lines go to the handlers of this module alone, and nowhere where there are none.
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False
_LOGGER.setLevel(logging.INFO)

_BOUND: ContextVar[dict[str, Scalar]] = ContextVar("bound_fields")


def log_event(event: str, message: str = "", *, level: int = logging.INFO, **fields: Field) -> None:
    """Log one event.

    Args:
        event: what happened, in kebab-case, as ``round-ended``.
        message: the same for people, if the fields do not say it all.
        level: of Python's logging.
        fields: of the line, such as stage, round (from 1) and device (a partition id).
    """
    if not _LOGGER.isEnabledFor(level):
        return
    line: dict[str, Field] = {**_BOUND.get({}), **fields}
    if message:
        line["message"] = message
    _LOGGER.log(level, event, extra={"fields": line})


@contextmanager
def bound_fields(**fields: Scalar) -> Iterator[None]:
    """Fields, such as the run's name, of every event logged inside."""
    token = _BOUND.set({**_BOUND.get({}), **fields})
    try:
        yield
    finally:
        _BOUND.reset(token)


class EventFormatter(logging.Formatter):
    """A record of `log_event` as one line: time (UTC), level, event, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **record.__dict__["fields"],
        }
        return json.dumps(line)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event that a line of a log is; None for any other line."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def event_message(line: str) -> str:
    """What a line of the log says to people about the run; empty for one device's, and others."""
    event = parse_event(line)
    return "" if event is None or "device" in event else str(event.get("message", ""))


def print_events() -> None:
    """Print events to standard error from now on; called again, it changes nothing."""
    if any(isinstance(handler, _PrintHandler) for handler in _LOGGER.handlers):
        return
    handler = _PrintHandler()
    handler.setFormatter(EventFormatter())
    _LOGGER.addHandler(handler)


def print_events_of_a_service() -> None:
    """`print_events` where the environment asks for it: emulated devices stay silent."""
    if os.environ.get(PRINT_VARIABLE):
        print_events()


class _PrintHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error as it is when a line is written."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class EventFile:
    """Events as the lines of a file, from now on; a context manager that ends it.

    They are held back until `open` is called: a run that is refused writes nothing.

    Args:
        path: appended to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize)

    def __enter__(self) -> EventFile:
        _LOGGER.addHandler(self._memory)
        return self

    def __exit__(self, *_: object) -> None:
        _LOGGER.removeHandler(self._memory)
        target = self._memory.target
        self._memory.close()
        if target is not None:
            target.close()

    def open(self) -> None:
        """Write what was held back, and from now on every event at once."""
        target = logging.FileHandler(self._path, encoding="utf-8")
        target.setFormatter(EventFormatter())
        self._memory.setTarget(target)
        self._memory.capacity = 1
        self._memory.flush()
