"""Quantities as text."""

import pytest

from common.units import format_bytes, format_count, format_duration, format_energy, format_number


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (0.01234, 3, "0.0123"),
        (12.345, 3, "12.3"),
        (999.4, 3, "999"),
        (999.6, 3, "1,000"),
        (2951.0, 3, "2,951"),
        (2951.0, 4, "2951"),
        (29_510.4, 4, "29,510"),
    ],
)
def test_numbers_have_no_power_of_ten(value: float, digits: int, text: str) -> None:
    """2,951 has more than three digits, and four of four."""
    assert format_number(value, digits) == text


def test_one_is_no_plural() -> None:
    assert [format_count(count, "device") for count in (0, 1, 2, 1000)] == [
        "0 devices",
        "1 device",
        "2 devices",
        "1,000 devices",
    ]


def test_bytes_are_in_powers_of_ten() -> None:
    """999.6 kB rounds to 1 MB; three digits are kept, more in the largest unit."""
    sizes = [0, 999, 1000, 1_234_567, 999_600, 2.5e9, 1.2e12]
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "1 MB",
        "2.5 GB",
        "1,200 GB",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.32, "0.3 s"), (42.4, "42 s"), (420, "7 min"), (11100, "3 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("joules", "text"),
    [(101.6, "102 J"), (1230.0, "1.23 kJ"), (999_700.0, "1,000 kJ"), (2.5e9, "2,500,000 kJ")],
)
def test_energies(joules: float, text: str) -> None:
    assert format_energy(joules) == text
