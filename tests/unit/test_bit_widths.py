"""Which bit-widths are named, and which of them a device takes."""

from __future__ import annotations

import pytest

from common.bit_widths import choose_bits, parse_bits
from common.config import BIT_CHOICES, Config
from common.errors import UserError


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", ()), (" ", ()), (4, (4,)), ("4", (4,)), ("4, 2", (2, 4)), ("8,32,3", (3, 8, 32))],
)
def test_lists_of_bit_widths(value: str | int, expected: tuple[int, ...]) -> None:
    assert parse_bits("key", value, BIT_CHOICES) == expected


@pytest.mark.parametrize("value", ["2,2", "2,", "1", "2;4", "two", "-2", "2.0", True, 9, 4.0])
def test_what_is_no_list_of_bit_widths(value: str | int | float) -> None:
    with pytest.raises(UserError, match=r"^--bits = .*: expected bit-widths as '2,4', of \[2, 3"):
        parse_bits("--bits", value, BIT_CHOICES)


def test_a_device_takes_the_largest_that_it_supports_and_the_run_allows() -> None:
    assert choose_bits((2, 4, 8), (2, 3, 4), partition_id=0) == 4
    assert choose_bits((2, 4, 8), (2,), partition_id=5) == 2
    assert choose_bits((2, 4), (8, 16), partition_id=0) is None
    assert choose_bits((2,), (2, 4), partition_id=0) == 2


def test_devices_that_say_nothing_are_spread() -> None:
    assert [choose_bits((2, 4, 8), (), partition_id) for partition_id in range(5)] == [
        2,
        4,
        8,
        2,
        4,
    ]


def test_the_bit_widths_of_a_run() -> None:
    assert Config.from_flat({"quantization.weight-bits": 3}).device_bits == (3,)
    mixed = Config.from_flat({"federation.mixed-bits": "4,2"})
    assert mixed.device_bits == (2, 4)
    assert mixed.at_bits(4).quantization.weight_bits == 4


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"federation.mixed-bits": "2"}, "expected two bit-widths or more, or none"),
        ({"federation.mixed-bits": "4,8"}, "expected quantization.weight-bits = 2 among them"),
        ({"federation.mixed-bits": "2,32"}, "expected bit-widths as '2,4'"),
    ],
)
def test_a_run_refuses(flat: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Config.from_flat(flat)
