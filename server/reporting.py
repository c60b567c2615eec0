"""What a run tells while it runs: the reporter's interface, and one that writes log lines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from common.config import Config
from common.messages import Stage

LOGGER_NAME = "fedquarc"


class Reporter(Protocol):
    """Hears what happens in a run, in the order in which it happens."""

    def start(self, config: Config, run_folder: Path) -> None:
        """A run begins."""

    def stage(self, name: Stage, num_rounds: int) -> None:
        """A stage of ``num_rounds`` rounds begins."""

    def round_done(self, stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> None:
        """Round ``round_index`` (from 0) of a stage is over; ``metrics`` is its recorded line."""

    def note(self, text: str) -> None:
        """One sentence that a user should see."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over; ``summary`` is what summary.json holds."""


class LogReporter:
    """Reports as log lines, for a ServerApp whose output goes to a log."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger

    def start(self, config: Config, run_folder: Path) -> None:
        self.logger.info(
            "%s on %s, %s-bit weights, %s; results: %s",
            config.model.name,
            config.data.dataset,
            config.quantization.weight_bits,
            config.strategy.name,
            run_folder,
        )

    def stage(self, name: Stage, num_rounds: int) -> None:
        self.logger.info("stage %s: %d round(s)", name, num_rounds)

    def round_done(self, stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> None:
        parts = [f"{metrics['num_accepted']}/{metrics['num_asked']} replies"]
        if metrics["skipped"]:
            parts.append("skipped")
        parts += [
            f"{label} {metrics[name]:.{digits}f}{unit}"
            for name, label, digits, unit in (
                ("train_loss", "training loss", 4, ""),
                ("accuracy", "accuracy", 2, " %"),
                ("device_accuracy", "on devices", 2, " %"),
            )
            if metrics.get(name) is not None
        ]
        parts.append(f"up {metrics['upload_bytes']:,} B, down {metrics['download_bytes']:,} B")
        self.logger.info("%s round %d: %s", stage, round_index + 1, ", ".join(parts))

    def note(self, text: str) -> None:
        self.logger.info("%s", text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.logger.info(
            "done in %.0f s: float %.2f %%, quantized before training %.2f %%, after %.2f %% "
            "(best %.2f %%)",
            summary["wall_seconds"],
            summary["float_accuracy"],
            summary["quantized_accuracy_before"],
            summary["final_accuracy"],
            summary["best_accuracy"],
        )


def console_logger() -> logging.Logger:
    """The project's logger, writing plain lines to standard error."""
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        # Flower and its dependencies configure the root logger: lines would come twice.
        logger.propagate = False
    return logger


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Flower's warnings, without the INFO lines that its strategies write in every round."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
