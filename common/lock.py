"""What only one process at a time may do, on one machine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError


@contextlib.contextmanager
def hold(path: Path, *, wait_seconds: float) -> Iterator[bool]:
    """While entered, no other process has the lock ``path``, a file that is removed at the end.

    The operating system frees the lock of a process that dies; the file that it leaves is taken
    over by the next one.

    Args:
        path: of the lock's file; its folder is made.
        wait_seconds: for another process that holds it to be done or dead; infinite: without end.

    Yields:
        Whether the lock is held.

    Raises:
        UserError: the file cannot be written.
    """
    lock = FileLock(path, timeout=-1 if math.isinf(wait_seconds) else wait_seconds)
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
