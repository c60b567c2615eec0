"""How far the decoding of a large data set is, as lines of the log."""

from __future__ import annotations

import logging
import time

from common.units import format_bytes, format_duration

LARGE_BYTES = 10**9
"""Images that take more are decoded for minutes or hours; of smaller ones nothing is told."""

_logger = logging.getLogger(__name__)


class DecodingProgress:
    """Tells what is decoded when it begins, and the time left after every tenth.

    Args:
        what: the images, in words.
        num_images: all of them.
        num_bytes: what they take when they are decoded.
    """

    def __init__(self, what: str, *, num_images: int, num_bytes: int) -> None:
        self._num_images = num_images
        self._is_told = num_bytes >= LARGE_BYTES
        self._num_done = 0
        self._started = time.monotonic()
        if self._is_told:
            # A warning: nothing less is shown where logging was not set up.
            _logger.warning(
                "decoding %s, once: %s images, %s",
                what,
                f"{num_images:,}",
                format_bytes(num_bytes),
            )

    def advance(self, num_images: int) -> None:
        """So many more images are decoded."""
        tenth = self._tenth
        self._num_done += num_images
        if self._is_told and tenth < self._tenth < 10:
            share = self._num_done / self._num_images
            left = (time.monotonic() - self._started) * (1 / share - 1)
            _logger.warning("%.0f %% decoded, about %s left", 100 * share, format_duration(left))

    @property
    def _tenth(self) -> int:
        return 10 * self._num_done // self._num_images
