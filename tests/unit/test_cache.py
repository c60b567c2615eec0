"""Tests of common.cache."""

from pathlib import Path

import pytest

from common.cache import cache_dir


def test_a_home_that_no_shell_has_put_in_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a service's environment file, or quoted; FEDQUARC_DATA and data.root take it as well."""
    monkeypatch.setenv("HOME", "/home/pi")
    monkeypatch.setenv("FEDQUARC_CACHE", "~/kept")
    assert cache_dir() == Path("/home/pi/kept")
