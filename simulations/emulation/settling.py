"""Who makes it in a round: on arrays, so that a plan has it for a million devices as well."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

TRAINED, LATE, SURPLUS, FAILED = range(4)
"""As `simulations.emulation.hardware.Fate`, in its order."""


def replies_wanted(num_asked: int, over_selection: float, num_required: int) -> int:
    """How many replies end a round; the devices beyond them are surplus.

    Args:
        num_asked: devices.
        over_selection: how many times as many are asked as are wanted.
        num_required: fewest replies that make a round.
    """
    # 21 / 1.4 is 15.000000000000002 in floating point.
    return max(num_required, math.ceil(num_asked / over_selection - 1e-9))


def settle(
    virtual_seconds: NDArray[np.float64],
    fails: NDArray[np.bool_],
    *,
    num_wanted: int,
    deadline: float,
) -> tuple[NDArray[np.int8], float]:
    """The fate of every device of a round, and the virtual seconds that it took.

    The first ``num_wanted`` replies within the deadline are used, and the last of them ends the
    round. With fewer, the round ends at the deadline or, if nothing is late, when the server has
    heard of every device. Of devices with the same time the first come first.

    Args:
        virtual_seconds: when the server hears of each device, [devices].
        fails: whether it then hears that the device broke off, [devices].
        num_wanted: replies; at least 1.
        deadline: virtual seconds; 0: there is none.
    """
    fates = np.where(fails, FAILED, TRAINED).astype(np.int8)
    in_time = virtual_seconds <= deadline if deadline else np.ones(len(fates), dtype=np.bool_)
    fates[~in_time] = LATE
    replies = virtual_seconds[in_time & ~fails]
    if len(replies) < num_wanted:
        if not in_time.all():
            return fates, deadline
        return fates, float(virtual_seconds.max(initial=0.0))
    last = float(np.partition(replies, num_wanted - 1)[num_wanted - 1])
    fates[in_time & (virtual_seconds > last)] = SURPLUS
    tied = np.flatnonzero(virtual_seconds == last)
    # Among the tied, everything after the reply that completes the wanted ones is too late.
    still_wanted = num_wanted - int(np.count_nonzero(replies < last))
    complete = np.cumsum(~fails[tied]) - ~fails[tied] >= still_wanted
    fates[tied[complete]] = SURPLUS
    return fates, last
