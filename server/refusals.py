"""Runs that are refused: what a user has to mend first, so that starting them again is no help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import UserError

REFUSED = "the run is refused: "
"""How Flower's details of a failed run tell of it."""


class RefusedRunError(UserError):
    """A run that can't begin, or go on, before somebody has changed something."""


@contextmanager
def refusing() -> Iterator[None]:
    """Within, what a user has to mend is a refusal of the run."""
    try:
        yield
    except UserError as error:
        raise RefusedRunError(str(error)) from error


@contextmanager
def marked_refusals() -> Iterator[None]:
    """Say of refusals that they are, to who only gets to see the message."""
    try:
        yield
    except RefusedRunError as error:
        raise RefusedRunError(f"{REFUSED}{error}") from error
