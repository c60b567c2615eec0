"""The memory of a process and of all that it started, from Linux's /proc."""

from __future__ import annotations

import re
from pathlib import Path

PROC = Path("/proc")


def tree_bytes(pid: int) -> int:
    """Proportional set size: a page that n processes share counts as an n-th for each."""
    return sum(_proportional_bytes(member) for member in tree_pids(pid))


def tree_pids(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal() and (parent := _parent(folder)) is not None:
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        member = waiting.pop()
        found.append(member)
        waiting += children.get(member, [])
    return found


def _parent(folder: Path) -> int | None:
    try:
        # The name, in brackets, may hold anything: state and parent come after the last bracket.
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


def _proportional_bytes(pid: int) -> int:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
