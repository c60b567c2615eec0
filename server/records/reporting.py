"""What a run tells while it runs: the reporter's interface, and one that logs events."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from common.bit_widths import describe_accuracies
from common.config import Config
from common.errors import UserError
from common.events import log_event
from common.messages import Stage
from server.exchange.replies import RefusalKind

ROUND_FIGURES = (
    *("num_asked", "num_accepted", "refused", "train_loss", "accuracy"),
    *("upload_bytes", "download_bytes", "round_seconds"),
)
"""Of a recorded round: what its event tells as well."""
DEVICE_FIGURES = (
    *("weight_bits", "num_samples", "coreset_size", "round_seconds", "temperature_celsius"),
    *("upload_bytes", "download_bytes"),
)
"""Of a recorded reply: what its event tells as well."""


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


class EventReporter:
    """Logs what happens as events (see `common.events`), and passes it on.

    Args:
        inner: a reporter for people, if there is one.
    """

    def __init__(self, inner: Reporter | None = None) -> None:
        self.inner = inner

    def start(self, config: Config, run_folder: Path) -> None:
        mixed = config.federation.mixed_bits
        log_event(
            "run-started",
            f"{config.model.name} on {config.data.dataset}, "
            f"{config.quantization.weight_bits}-bit weights{f' of {mixed}' if mixed else ''}, "
            f"{config.strategy.name}; results: {run_folder}",
        )
        if self.inner:
            self.inner.start(config, run_folder)

    def stage(self, name: Stage, num_rounds: int) -> None:
        log_event(
            "stage-started",
            f"stage {name}: {num_rounds} round(s)",
            stage=name.value,
            num_rounds=num_rounds,
        )
        if self.inner:
            self.inner.stage(name, num_rounds)

    def round_done(self, stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> None:
        log_event(
            "round-ended",
            describe_round(stage, round_index, metrics),
            stage=stage.value,
            round=round_index + 1,
            skipped=bool(metrics["skipped"]),
            **_figures(metrics, ROUND_FIGURES),
        )
        if self.inner:
            self.inner.round_done(stage, round_index, metrics)

    def note(self, text: str) -> None:
        log_event("note", text)
        if self.inner:
            self.inner.note(text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        log_event(
            "run-ended",
            f"done in {summary['wall_seconds']:.0f} s: float {summary['float_accuracy']:.2f} %, "
            f"quantized before training {summary['quantized_accuracy_before']:.2f} %, "
            f"after {summary['final_accuracy']:.2f} % (best {summary['best_accuracy']:.2f} %)",
        )
        if self.inner:
            self.inner.finish(summary)


def describe_round(stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> str:
    """One line about one round; figures that were not measured are left out."""
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
    parts += describe_accuracies(metrics.get("bit_accuracy", {}))
    parts.append(f"up {metrics['upload_bytes']:,} B, down {metrics['download_bytes']:,} B")
    return f"{stage} round {round_index + 1}: {', '.join(parts)}"


def log_reply(line: Mapping[str, Any]) -> None:
    """Log what became of one device's reply, from its recorded line; other lines are no replies."""
    if line["kind"] != "device":
        return
    status = line["status"]
    outcome = {"ok": "accepted", RefusalKind.NO_REPLY.value: "failed"}.get(status, "refused")
    fields: dict[str, Any] = {name: line[name] for name in ("stage", "round", "task")}
    fields |= _figures(line, DEVICE_FIGURES)
    if outcome == "accepted":
        log_event("reply-accepted", **fields, device=line["partition_id"])
    else:
        log_event(
            f"reply-{outcome}",
            line["reason"],
            level=logging.WARNING,
            **fields,
            device=line["partition_id"],
            status=status,
        )


def recorded_line(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recorded line that an event tells of, with the figures that it has; None if of none."""
    if event["event"] == "round-ended":
        return {"kind": "round", **event}
    if event["event"] in ("reply-accepted", "reply-refused", "reply-failed"):
        return {"kind": "device", "partition_id": event["device"], "status": "ok", **event}
    return None


def _figures(line: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those that were measured and are finite: an event is strict JSON."""
    figures = {name: line[name] for name in names if line.get(name) is not None}
    return {
        name: value
        for name, value in figures.items()
        if not isinstance(value, float) or math.isfinite(value)
    }


@contextmanager
def logged_failure() -> Iterator[None]:
    """Log what ends the run before its time, and let it through."""
    try:
        yield
    except BaseException as error:
        # Only a user's error is known to say nothing but what a user may read.
        message = str(error) if isinstance(error, UserError) else ""
        log_event("run-failed", message, level=logging.ERROR, error=type(error).__name__)
        raise


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
