"""Tests of common.data.decoding_progress."""

import pytest

from common.data import decoding_progress
from common.data.decoding_progress import LARGE_BYTES, DecodingProgress


class Time:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_every_tenth_is_told_with_the_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 of 40 images in 60 s: 30 more take 180 s; 11 are no further tenth, the end is not told."""
    clock = Time()
    monkeypatch.setattr(decoding_progress, "time", clock)
    progress = DecodingProgress("toys", num_images=40, num_bytes=LARGE_BYTES)
    clock.now = 60.0
    for num_images in (10, 1, 29):
        progress.advance(num_images)
    assert caplog.messages == [
        "decoding toys, once: 40 images, 1 GB",
        "25 % decoded, about 3 min left",
    ]


def test_nothing_is_told_of_few(caplog: pytest.LogCaptureFixture) -> None:
    DecodingProgress("toys", num_images=40, num_bytes=LARGE_BYTES - 1).advance(20)
    assert caplog.messages == []
