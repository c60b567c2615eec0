"""Memory and processor time of a process and of all that it started, from Linux's /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

PROC = Path("/proc")


def tree_bytes(pid: int) -> int:
    """Proportional set size: a page that n processes share counts as an n-th for each."""
    return sum(_proportional_bytes(member) for member in tree_pids(pid))


def tree_cpu_seconds(pid: int) -> float:
    """Processor time so far, in user and system mode, with that of children that have ended."""
    return sum(_cpu_ticks(member) for member in tree_pids(pid)) / os.sysconf("SC_CLK_TCK")


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
    fields = _fields(folder)
    return int(fields[1]) if fields else None


def _cpu_ticks(pid: int) -> int:
    # utime, stime, cutime and cstime: 14th to 17th in proc(5), where the state is the third.
    return sum(map(int, _fields(PROC / str(pid))[11:15]))


def _fields(folder: Path) -> list[str]:
    """What a process's stat says after its name, state first; nothing of one that has ended."""
    try:
        # The name, in brackets, may hold anything: the rest comes after the last bracket.
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _proportional_bytes(pid: int) -> int:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
