"""Quantities as text."""

import pytest

from common.units import format_bytes, format_duration, format_energy


def test_bytes_are_in_powers_of_ten() -> None:
    """999.6 kB rounds to 1 MB; three digits are kept."""
    sizes = [0, 999, 1000, 1_234_567, 999_600, 2.5e9]
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "1 MB",
        "2.5 GB",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.32, "0.3 s"), (42.4, "42 s"), (420, "7 min"), (11100, "3 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("joules", "text"), [(101.6, "102 J"), (1230.0, "1.23 kJ"), (2.5e9, "2,500,000 kJ")]
)
def test_energies(joules: float, text: str) -> None:
    assert format_energy(joules) == text
