"""What a run shows on the terminal: progress while it runs, and a table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from common.bit_widths import describe_accuracies
from common.config import FLOAT_BITS, Config
from common.messages import Stage
from common.units import (
    format_bytes,
    format_count,
    format_duration,
    format_energy,
    format_number,
)
from simulations.display.terminal import LiveLines

STAGE_NAMES = {
    Stage.FLOAT: "float warm-up",
    Stage.CALIBRATION: "calibration",
    Stage.QUANTIZED: "QuaRC",
}


class ConsoleReporter(LiveLines):
    """A reporter (see `server.records.reporting.Reporter`) for people; a context manager.

    On a terminal the current round is shown live below the lines of the rounds that are over;
    elsewhere there are only the lines.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[devices]}"),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("", total=None, visible=False, devices="")
        self._num_rounds = 0
        self.run_folder: Path | None = None
        """Of the run that has begun."""

    def start(self, config: Config, run_folder: Path) -> None:
        """Say what is run."""
        self.run_folder = run_folder
        self._line(describe_run(config))

    def stage(self, name: Stage, num_rounds: int) -> None:
        """Begin counting the rounds of a stage."""
        self._num_rounds = num_rounds
        self._progress.reset(
            self._task, total=num_rounds, description=STAGE_NAMES[name], visible=True, devices=""
        )

    def replied(self, num_replies: int, num_messages: int) -> None:
        """Show how many devices have answered (a `simulations.engines.local.ReplyListener`)."""
        self._progress.update(self._task, devices=f"devices {num_replies}/{num_messages}")

    def round_done(self, stage: Stage, round_index: int, metrics: Mapping[str, Any]) -> None:
        """Print a line for a round that is over."""
        self._progress.update(self._task, completed=round_index + 1, devices="")
        self._line(describe_round(stage, round_index, self._num_rounds, metrics))

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._line(text, style="dim")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the results and where they are."""
        self._progress.stop()
        self.console.print(results_table(summary))
        self._line(f"results: {self.run_folder}")


def describe_run(config: Config) -> str:
    """``resnet20 on cifar100, 10 devices (dirichlet 0.5), 2w32a, quarc 10 %, ...``."""
    data, quantization = config.data, config.quantization
    split = f"{data.partition} {data.alpha:g}" if data.partition == "dirichlet" else data.partition
    weight_bits = "+".join(map(str, config.device_bits))
    bits = f"{weight_bits}w{quantization.activation_bits}a"
    coreset = config.coreset.selection
    if coreset != "full":
        coreset += f" {100 * config.coreset.fraction:g} %"
    return (
        f"{config.model.name} on {data.dataset}, {format_count(data.num_devices, 'device')} "
        f"({split}), {bits}, {coreset}, {config.strategy.name} of "
        f"{config.federation.update_format} updates, "
        f"seed {config.run.seed}"
    )


def describe_round(
    stage: Stage, round_index: int, num_rounds: int, metrics: Mapping[str, Any]
) -> str:
    """One line about one round; figures that were not measured are left out."""
    width = len(str(num_rounds))
    parts = [f"{STAGE_NAMES[stage]} {round_index + 1:{width}d}/{num_rounds}"]
    if metrics.get("skipped"):
        parts.append("skipped, too few good replies")
    for name, label in (("accuracy", "accuracy"), ("device_accuracy", "on devices")):
        if metrics.get(name) is not None:
            parts.append(f"{label} {metrics[name]:5.2f} %")
    parts += describe_accuracies(metrics.get("bit_accuracy", {}))
    if metrics.get("train_loss") is not None:
        parts.append(f"training loss {metrics['train_loss']:.4f}")
    parts.append(f"{metrics['num_accepted']}/{metrics['num_asked']} devices")
    parts.append(f"up {format_bytes(metrics['upload_bytes'])}")
    if metrics.get("virtual_seconds") is not None:
        parts.append(f"{format_number(metrics['virtual_seconds'])} virtual s")
    parts.append(f"{metrics['round_seconds']:.1f} s")
    return "  ".join(parts)


def results_table(summary: Mapping[str, Any]) -> Table:
    """What came of a run, from its summary."""
    title = f"{summary['model']} on {summary['dataset']}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    bits = f"{summary['weight_bits']}w{summary['activation_bits']}a"
    method = "training" if summary["weight_bits"] == FLOAT_BITS else "QuaRC"
    table.add_row("float model", _percent(summary["float_accuracy"]))
    table.add_row(f"{bits} before {method}", _percent(summary["quantized_accuracy_before"]))
    table.add_row(f"{bits} after {method}, last round", _percent(summary["final_accuracy"]))
    table.add_row(f"{bits} after {method}, best round", _percent(summary["best_accuracy"]))
    for width, accuracy in summary.get("best_bit_accuracy", {}).items():
        table.add_row(f"  best round at {width} bits", _percent(accuracy))
    table.add_section()
    upload, reference = summary["upload_bytes"], summary["float32_upload_bytes"]
    table.add_row(f"sent by devices, {method} rounds", format_bytes(upload))
    table.add_row("  the same as float32", format_bytes(reference))
    if reference:
        table.add_row("  share", f"{100 * upload / reference:.1f} %")
    table.add_row(f"sent to devices, {method} rounds", format_bytes(summary["download_bytes"]))
    table.add_section()
    table.add_row("selecting coresets, all devices", f"{summary['select_seconds']:.1f} s")
    table.add_row("training, all devices", f"{summary['train_seconds']:.1f} s")
    table.add_row("wall clock", f"{summary['wall_seconds']:.1f} s")
    if "virtual_seconds" in summary:
        table.add_section()
        table.add_row(
            f"virtual time, fleet {summary['fleet']}", format_duration(summary["virtual_seconds"])
        )
        table.add_row("energy, all devices", format_energy(summary["joules"]))
    return table


def _percent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f} %"
