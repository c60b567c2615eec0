"""Tests of simulations.emulation.settling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.emulation.hardware import FATES, Fate
from simulations.emulation.settling import FAILED, LATE, SURPLUS, TRAINED, replies_wanted, settle


def fates_of(
    seconds: list[float], fails: list[bool], num_wanted: int, deadline: float
) -> tuple[list[int], float]:
    fates, round_seconds = settle(
        np.array(seconds), np.array(fails, dtype=bool), num_wanted=num_wanted, deadline=deadline
    )
    return fates.tolist(), round_seconds


@pytest.mark.parametrize(
    ("num_asked", "over_selection", "num_required", "wanted"),
    [(20, 1.0, 1, 20), (20, 1.3, 1, 16), (21, 1.4, 1, 15), (3, 1.5, 3, 3)],
)
def test_over_selection_wants_its_part_of_the_replies(
    num_asked: int, over_selection: float, num_required: int, wanted: int
) -> None:
    """20 / 1.3 = 15.4, rounded up; 21 / 1.4 is 15, in floating point a little more; 3 / 1.5 = 2
    are fewer than make a round."""
    assert replies_wanted(num_asked, over_selection, num_required) == wanted


@pytest.mark.parametrize(
    ("num_wanted", "deadline", "fates", "round_seconds"),
    [
        # All are wanted: the server waits for the slowest, 9 s.
        (5, 0.0, [TRAINED, FAILED, TRAINED, TRAINED, TRAINED], 9.0),
        # Two: those after 1 and 4 s; the device that breaks off at 2 s was heard of before.
        (2, 0.0, [TRAINED, FAILED, TRAINED, SURPLUS, SURPLUS], 4.0),
        # One: what happens after 1 s is no matter any more.
        (1, 0.0, [TRAINED, SURPLUS, SURPLUS, SURPLUS, SURPLUS], 1.0),
        # 5 s are the deadline, and a reply at the deadline is in time.
        (5, 5.0, [TRAINED, FAILED, TRAINED, TRAINED, LATE], 5.0),
        # The third reply is there at 5 s: the round is over, the fourth is late all the same.
        (3, 6.0, [TRAINED, FAILED, TRAINED, TRAINED, LATE], 5.0),
    ],
)
def test_who_makes_it(
    num_wanted: int, deadline: float, fates: list[int], round_seconds: float
) -> None:
    seconds, fails = [1.0, 2.0, 4.0, 5.0, 9.0], [False, True, False, False, False]
    assert fates_of(seconds, fails, num_wanted, deadline) == (fates, round_seconds)


def test_of_equal_times_the_first_come_first() -> None:
    """Two replies are wanted of three at 3 s; the failure between them is heard, that after not."""
    fates, seconds = fates_of([3.0] * 5, [False, True, False, True, False], 2, 0.0)
    assert fates == [TRAINED, FAILED, TRAINED, SURPLUS, SURPLUS]
    assert seconds == 3.0


def heard_one_by_one(
    devices: list[tuple[int, bool]], num_wanted: int, deadline: float
) -> tuple[list[int], float]:
    """The rules as a server lives through them, one device after the other."""
    fates, round_seconds = [LATE] * len(devices), 0.0
    for index in sorted(range(len(devices)), key=lambda index: devices[index][0]):
        seconds, fails = devices[index]
        if deadline and seconds > deadline:
            break
        if fates.count(TRAINED) == num_wanted:
            fates[index] = SURPLUS
        else:
            fates[index] = FAILED if fails else TRAINED
            round_seconds = float(seconds)
    if LATE in fates and fates.count(TRAINED) < num_wanted:
        round_seconds = deadline
    return fates, round_seconds


@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=14),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.5, 3.0, 4.5]),
)
def test_all_at_once_or_one_by_one(
    devices: list[tuple[int, bool]], num_wanted: int, deadline: float
) -> None:
    """Whole seconds, so that many devices have the same time."""
    seconds, fails = [float(seconds) for seconds, _ in devices], [fails for _, fails in devices]
    assert fates_of(seconds, fails, num_wanted, deadline) == heard_one_by_one(
        devices, num_wanted, deadline
    )


def test_fates_have_the_emulations_names() -> None:
    assert [FATES[fate] for fate in (TRAINED, LATE, SURPLUS, FAILED)] == [
        Fate.TRAINED,
        Fate.LATE,
        Fate.SURPLUS,
        Fate.FAILED,
    ]
