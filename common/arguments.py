"""Arguments that several sub-commands take, in one form."""

from __future__ import annotations

import argparse
from collections.abc import Callable


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


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``minimum`` on."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number, at least {minimum}, not {text!r}"
            )
        return int(text)

    return whole_number


def seed_list(text: str) -> list[int]:
    """The type of an argument that lists different seeds, as ``0,1,2``."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(
            f"expected different whole numbers, as 0,1,2, not {text!r}"
        )
    return [int(part) for part in parts]
