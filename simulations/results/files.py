"""Files that several processes write: whole or not at all, and one process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from common.atomic_file import replacing
from common.errors import UserError


@contextlib.contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """While entered, no other process has the lock ``path``, a file that is removed at the end.

    The operating system frees the lock of a process that dies; the file that it leaves is taken
    over by the next one.

    Args:
        path: of the lock's file; its folder is made.
        wait: until another process that holds it is done or dead; False: give way to it.

    Yields:
        Whether the lock is held.

    Raises:
        UserError: the file cannot be written.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        lock.release()


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
