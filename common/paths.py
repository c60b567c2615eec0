"""Paths as a user writes them."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError


def without_tilde(path: str | Path) -> Path:
    """A path with the home folder that a first part ``~`` or ``~user`` stands for.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: nobody has such a home folder") from error
