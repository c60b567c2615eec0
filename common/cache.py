"""The folder where things are kept that can be made again: decoded images, teachers."""

from __future__ import annotations

import os
from pathlib import Path

from common.paths import without_tilde


def cache_dir() -> Path:
    """FEDQUARC_CACHE, else $XDG_CACHE_HOME/fedquarc, else ~/.cache/fedquarc (not created here)."""
    explicit = os.environ.get("FEDQUARC_CACHE")
    if explicit:
        return without_tilde(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedquarc"
