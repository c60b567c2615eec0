"""Where a stage of a run begins, or goes on after a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from server.model.aggregation import State


def arrays_under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a stage without common rounds adds to a checkpoint."""

    facts: Mapping[str, Any]
    """As JSON can hold them."""
    arrays: Mapping[str, NDArray[Any]]
    busy_nodes: frozenset[int] = frozenset()
    """Node ids of the devices that are training; a checkpoint has their states from before."""


@dataclass(frozen=True, kw_only=True)
class StageStart:
    """Where a stage begins, or goes on."""

    state: State
    num_done: int = 0
    """Rounds that are over."""
    float32_bytes: int = 0
    progress: Progress | None = None
