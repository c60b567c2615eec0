"""Snapshots: folders of files that are there whole or not at all, and are checked when read.

A snapshot is a numbered folder with a manifest, a safetensors file of arrays, and hard links to
files that are only ever replaced, never written into: a link costs nothing and keeps the content
of that moment. It is made under another name and renamed when everything is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.atomic_file import replacing

MANIFEST = "manifest.json"
ARRAYS = "arrays.safetensors"
KEPT_SNAPSHOTS = 2

Arrays = Mapping[str, NDArray[Any]]


class SnapshotError(ValueError):
    """What is wrong with a snapshot."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One snapshot, read and checked."""

    folder: Path
    facts: Mapping[str, Any]
    arrays: Arrays
    files: tuple[str, ...]
    """Names of the linked files, relative to ``folder``."""


class SnapshotStore:
    """The snapshots in one folder; the newest are kept.

    Args:
        root: made with the first snapshot.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # (inode, size, time of change) -> digest of the files of the newest snapshot: its links
        # hold the inodes, so that none of them can stand for another content.
        self._known: dict[tuple[int, int, int], str] = {}

    def write(self, facts: Mapping[str, Any], arrays: Arrays, links: Mapping[str, Path]) -> Path:
        """Make the next snapshot, and remove those that are no longer kept.

        Args:
            facts: what JSON can hold.
            arrays: name -> array.
            links: name in the snapshot -> file of the same file system, linked.

        Raises:
            OSError: if it can't be written.
        """
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 1
        partial = self.root / f".{number:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            known = self._fill(partial, facts, arrays, links)
        except OSError:
            # Of no use, and what follows, the next round's figures first, needs the room.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        folder = self.root / f"{number:06d}"
        os.rename(partial, folder)
        self._known = known
        _sync_folder(self.root)
        for old in self._numbers()[:-KEPT_SNAPSHOTS]:
            shutil.rmtree(self.root / f"{old:06d}", ignore_errors=True)
        return folder

    def _fill(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        arrays: Arrays,
        links: Mapping[str, Path],
    ) -> dict[tuple[int, int, int], str]:
        """Make the folder with everything in it, all of it on the disk; see `_known`."""
        folder.mkdir(parents=True)
        (folder / ARRAYS).write_bytes(
            save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        )
        for name, source in links.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        known: dict[tuple[int, int, int], str] = {}
        digests = {name: self._digest(folder / name, known) for name in [ARRAYS, *links]}
        content = {"facts": dict(facts), "files": digests}
        _write_synced(folder / MANIFEST, json.dumps([_text_digest(content), content]))
        _sync_folder(folder)
        return known

    def newest(
        self, check: Callable[[Snapshot], None], on_damaged: Callable[[str, str], None]
    ) -> Snapshot | None:
        """The newest snapshot that is whole; None if there is none.

        Args:
            check: raises SnapshotError for one that can't be used although its files are whole.
            on_damaged: told name and reason of every newer one.
        """
        for number in reversed(self._numbers()):
            folder = self.root / f"{number:06d}"
            try:
                snapshot = read_snapshot(folder)
                check(snapshot)
            except SnapshotError as error:
                on_damaged(folder.name, str(error))
            else:
                return snapshot
        return None

    def exists(self) -> bool:
        """Whether there is any snapshot, whole or not."""
        return bool(self._numbers())

    def discard_after(self, snapshot: Snapshot | None) -> None:
        """Remove snapshots newer than this one (None: all), and what was never finished."""
        newest = int(snapshot.folder.name) if snapshot else 0
        for number in self._numbers():
            if number > newest:
                shutil.rmtree(self.root / f"{number:06d}")
        for partial in self.root.glob(".*.partial"):
            shutil.rmtree(partial)

    def _numbers(self) -> list[int]:
        if not self.root.is_dir():
            return []
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdecimal())

    def _digest(self, path: Path, known: dict[tuple[int, int, int], str]) -> str:
        """The digest of a file that is then on the disk; unchanged ones are not read again."""
        status = path.stat()
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        digest = self._known.get(key)
        if digest is None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()
                os.fsync(file.fileno())
        known[key] = digest
        return digest


def read_snapshot(folder: Path) -> Snapshot:
    """A snapshot whose files are all as they were written.

    Raises:
        SnapshotError: naming the file that is missing, damaged or unreadable.
    """
    try:
        digest, content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        facts, files = content["facts"], content["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{MANIFEST}: {type(error).__name__}") from error
    if _text_digest(content) != digest:
        raise SnapshotError(f"{MANIFEST}: does not match its checksum")
    for name, expected in files.items():
        try:
            with (folder / name).open("rb") as file:
                actual = hashlib.file_digest(file, "blake2b").hexdigest()
        except OSError as error:
            raise SnapshotError(f"{name}: {error.strerror}") from error
        if actual != expected:
            raise SnapshotError(f"{name}: does not match its checksum")
    try:
        arrays = load((folder / ARRAYS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise SnapshotError(f"{ARRAYS}: {type(error).__name__}") from error
    links = tuple(name for name in files if name != ARRAYS)
    return Snapshot(folder=folder, facts=facts, arrays=arrays, files=links)


def restore_link(source: Path, target: Path) -> None:
    """Put a snapshot's file in its place, whole or not at all."""
    with replacing(target) as temporary:
        os.link(source, temporary)


def _text_digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put a folder's entries, names and renames, on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
