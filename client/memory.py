"""How much memory this process has and uses, from Linux's /proc and control groups."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

from common.errors import UserError

MB = 1_000_000
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
SUPERNODE_PROGRAMS = {"client.supernode", "flower-supernode", "flower-superexec"}

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where it cannot be known."""
    return _status("VmRSS")


def supernode_bytes() -> int:
    """Memory of its own that the SuperNode which started this process holds; 0 without one.

    The SuperNode and its SuperExec; pages of files, which processes share, are not counted.
    """
    total, pid = 0, os.getppid()
    while pid > 1:
        folder = PROC / str(pid)
        try:
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return total
        if SUPERNODE_PROGRAMS & {Path(argument).name for argument in arguments[:3]}:
            total += _read_number(folder / "status", "RssAnon:") * 1024
        pid = _read_number(folder / "status", "PPid:")
    return total


def peak_bytes() -> int:
    """The most that this process ever held."""
    # ru_maxrss would count the parent's memory before exec too.
    peak = _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int:
    """Memory that new processes could get, the limit of the control group respected; 0: unknown."""
    free = _read_number(PROC / "meminfo", "MemAvailable:") * 1024
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def give_back_freed() -> None:
    """Have glibc return to the system what this process has freed; others keep what they keep.

    Feature maps of a few images are too small for it to do so by itself: after a round of
    MobileNetV2 in parts of two images it holds 100 MB that nothing needs.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def parse_size(text: str) -> int:
    """Bytes of "512M" (10^6), "1.5G", "512Mi" (2^20) or "1000".

    Raises:
        UserError: it is no size.
    """
    unit = text.strip().rstrip("bB").lstrip("0123456789.").upper()
    number = text.strip()[: len(text.strip().rstrip("bB")) - len(unit)]
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError) as error:
        raise UserError(f"size {text!r}: expected a number with K, M or G, as 512M") from error
    if size < 1:
        raise UserError(f"size {text!r}: expected more than 0 bytes")
    return size


def _status(field: str) -> int:
    return _read_number(PROC / "self" / "status", f"{field}:") * 1024


def _read_number(path: Path, field: str) -> int:
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
