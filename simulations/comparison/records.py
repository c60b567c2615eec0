"""Finished runs, as their run folders tell of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.config import Config
from common.errors import UserError
from common.messages import Stage
from common.settings import Scalar
from server.records.recorder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE
from simulations.settings.scenario import flatten_settings

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run."""

    folder: Path
    settings: Mapping[str, Scalar]
    """All settings, flat; one that is newer than the run has its default."""
    summary: Mapping[str, Any]
    """What summary.json holds."""
    rounds: Sequence[Line]
    """The lines of the quantization-aware rounds, in their order."""
    name: str = ""
    """What the run is called beside others, without its seed; empty: after its settings."""

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.settings["run.seed"]


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end: its summary is the last that it writes."""
    return (folder / SUMMARY_FILE).is_file()


def is_run_folder(folder: Path) -> bool:
    """Whether a run was started there."""
    return (folder / CONFIG_FILE).is_file()


def read_run(folder: Path, name: str = "") -> RunRecord:
    """A finished run.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    summary = _parsed(folder / SUMMARY_FILE, json.loads)
    if not isinstance(summary, dict):
        raise UserError(f"{folder / SUMMARY_FILE} is damaged: expected an object")
    return RunRecord(
        folder=folder,
        settings=read_settings(folder),
        summary=summary,
        rounds=_parsed(folder / METRICS_FILE, lambda text: list(_quantized_rounds(text))),
        name=name,
    )


def read_settings(folder: Path) -> dict[str, Scalar]:
    """All settings of a run, flat; one that is newer than the run has its default.

    Raises:
        UserError: the file that holds them is missing or damaged.
    """
    content = _parsed(folder / CONFIG_FILE, yaml.safe_load)
    if not isinstance(content, dict):
        raise UserError(f"{folder / CONFIG_FILE} is damaged: expected settings by section")
    return {**Config().to_flat(), **flatten_settings(content, str(folder / CONFIG_FILE))}


def _quantized_rounds(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        # There is a line for every device in every round as well: most are not worth parsing.
        if '"kind": "round"' in line:
            content = json.loads(line)
            if content["kind"] == "round" and content["stage"] == Stage.QUANTIZED.value:
                yield content


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
