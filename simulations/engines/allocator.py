"""Memory that training frees stays with the process: the next step takes it without page faults.

Feature maps are large blocks, which glibc gives back to the system. Each of the next step's then
comes as pages that fault one by one when first written: in MobileNetV2's step of 64 images 120,000
to 140,000 faults, a fifth of its processor time and more beside other work, 2 % on an idle machine
(docs/results/bench.md); kept, none. The peak is 6 % higher, for blocks that fit into no gap.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""glibc's malloc.h."""

LARGEST_KEPT = 2**30
"""A block above this, a data set rather than a feature map, is given back."""


def keep_freed_memory() -> None:
    """Tell the allocator of this process, if it is glibc's; others are left as they are."""
    set_thresholds(mmap=LARGEST_KEPT, trim=2**31 - 1)


def set_thresholds(*, mmap: int, trim: int) -> None:
    """What glibc gives back to the system when it is freed; does nothing to other allocators.

    Args:
        mmap: blocks of more bytes, at once.
        trim: what is free at the heap's end, from so many bytes on.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, mmap)
    mallopt(M_TRIM_THRESHOLD, trim)
