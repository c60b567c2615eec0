"""Files that are there whole or not at all, whenever the process that writes them ends."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A new file's path that takes the place of ``path`` when the block ends without an error.

    Whoever reads ``path`` sees the old file or the whole new one; after an error it is as it was.

    Args:
        path: its folder is made where it is missing.
        durable: have the content on the disk before the name, for when the machine may go down.

    Raises:
        OSError: it cannot be written, on a full disk for example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename is atomic within one file system only. Process ids would not do as
    # names: containers that share a folder have the same ones.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
