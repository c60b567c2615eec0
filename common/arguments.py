"""Arguments that several sub-commands take, in one form, and what ends a command."""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from common.config import DEFAULT_KEYS
from common.errors import UserError
from common.settings import refuse_unknown

REFUSED_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""Errors that Python 3.11 raises where it is asked whether there is a file: the path is another's
or too long."""


def write_error(line: str) -> None:
    """Write a line to the standard error output."""
    sys.stderr.write(f"{line}\n")


def run_command(options: argparse.Namespace, say: Callable[[str], None] = write_error) -> int:
    """Run the sub-command that was asked for; returns the exit code, 0 where it gives none.

    Args:
        options: with the sub-command as ``command``.
        say: shows the line that says why a command ended early.
    """
    try:
        return int(options.command(options) or 0)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except BrokenPipeError:
        if not output_is_closed():
            raise
        return 1
    except OSError as error:
        if error.errno not in REFUSED_PATHS:
            raise
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted")
        return 130


def output_is_closed() -> bool:
    """Whether nobody reads what is printed any more, as after ``| head``; then nothing more is."""
    poller = select.poll()
    poller.register(sys.stdout, select.POLLERR)
    if not poller.poll(0):
        return False
    # Or the interpreter would complain when it ends, of what it could not write.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def add_settings_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add ``--set KEY=VALUE ...``, which may be given several times, as ``settings``."""
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help=help_text,
    )


def split_settings(texts: Iterable[str]) -> dict[str, str]:
    """``["data.alpha=0.1"]`` -> ``{"data.alpha": "0.1"}``.

    Raises:
        UserError: if one is not ``key=value``, is unknown or comes twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"{text!r}: expected key=value, for example data.alpha=0.1")
        refuse_unknown([key], DEFAULT_KEYS)
        if key in settings:
            raise UserError(f"{key} is set twice on the command line")
        settings[key] = value
    return settings


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``minimum`` on."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number, at least {minimum}, not {text!r}"
            )
        return int(text)

    return whole_number


def named_path(text: str) -> Path:
    """The type of an argument that is a path; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, not ''")
    return Path(text)


def percentage(text: str) -> float:
    """The type of an argument that is a part of a hundred, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 100, not {text!r}")
    return value


def seed_list(text: str) -> list[int]:
    """The type of an argument that lists different seeds, as ``0,1,2``."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(
            f"expected different whole numbers, as 0,1,2, not {text!r}"
        )
    return [int(part) for part in parts]
