"""Files of results: whole or not at all."""

from __future__ import annotations

from pathlib import Path

from common.atomic_file import replacing
from common.errors import UserError

GOES_ON = "; what was finished before is kept, and the same command goes on from there"


def write_atomically(path: Path, content: bytes, *, hint: str = "") -> None:
    """Write a file so that it holds the old content or all of the new; makes its folder.

    Args:
        path: of the file.
        content: all of it.
        hint: how the error's sentence ends; `GOES_ON` where that is so.

    Raises:
        UserError: it cannot be written, on a full disk for example.
    """
    try:
        with replacing(path, durable=True) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}{hint}") from error
