"""What metrics.jsonl tells of a test's run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def recorded(run_folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Lines so far, of one kind or all; one that is being written does not count."""
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    return [line for line in lines if kind in (None, line["kind"])]


def without_wall_clock(figures: dict[str, Any]) -> dict[str, Any]:
    """A line, or a summary, without what the wall clock measured."""
    return {
        name: value
        for name, value in figures.items()
        if name.startswith("virtual_") or not name.endswith("_seconds")
    }


def reproducible_lines(run_folder: Path) -> list[str]:
    """What two equal runs have in common; as text, in which 1 is not 1.0."""
    lines = map(without_wall_clock, recorded(run_folder))
    return [json.dumps(line, sort_keys=True) for line in lines]
