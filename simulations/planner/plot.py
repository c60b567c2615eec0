"""The picture of a plan: time, devices, the server's line and energy over the rounds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from common.extras import import_extra
from server.records.plots import finish_rounds
from simulations.planner.planned_round import PlannedRound
from simulations.planner.summary import ENERGY_UNITS, fitting_unit

NEEDED_FOR = "the picture of a plan"
FATES = (
    ("num_trained", "reply used", "#2a8c4a"),
    ("num_surplus", "surplus", "#9ecae1"),
    ("num_late", "late", "#d9620c"),
    ("num_failed", "broke off", "#c2263f"),
)
UP, DOWN, TIME, ENERGY = "#d9620c", "#1f6fb2", "#1f4e79", "#8a6100"


def to_png(title: str, rounds: Sequence[PlannedRound]) -> bytes:
    """A PNG with four panels.

    Raises:
        UserError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", needed_for=NEEDED_FOR)
    figure = module.Figure(figsize=(12, 7.2), dpi=110, layout="constrained")
    (time, devices), (traffic, energy) = figure.subplots(2, 2)
    numbers = [each.round for each in rounds]
    time.plot(numbers, [each.virtual_seconds for each in rounds], ".-", color=TIME)
    time.set_title("Round, virtual seconds")
    draw_devices(devices, rounds)
    draw_traffic(traffic, rounds)
    traffic.set_yscale("log")
    traffic.set_title("The server's line, Gbit/s (logarithmic)")
    joules = [each.joules for each in rounds]
    unit, divisor = fitting_unit(ENERGY_UNITS, max(joules))
    energy.plot(numbers, [each / divisor for each in joules], ".-", color=ENERGY)
    energy.set_title(f"Energy of the devices asked, {unit}")
    for axes in (time, devices, traffic, energy):
        finish_rounds(axes)
    traffic.yaxis.set_major_formatter(
        import_extra("matplotlib.ticker", needed_for=NEEDED_FOR).FormatStrFormatter("%g")
    )
    for axes in (devices, traffic):
        # Below the panel: lines and areas are everywhere in it.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    for axes in (time, devices, energy):
        from_zero(axes)
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def draw_devices(axes: Any, rounds: Sequence[PlannedRound]) -> None:
    """What became of the devices that were asked; a round is as wide as any other."""
    last = rounds[-1]
    axes.stackplot(
        [*[each.round - 0.5 for each in rounds], last.round + 0.5],
        *[[getattr(each, name) for each in (*rounds, last)] for name, _, _ in FATES],
        labels=[label for _, label, _ in FATES],
        colors=[colour for _, _, colour in FATES],
        linewidth=0,
        step="post",
    )
    axes.set_title("Devices that were asked")
    axes.margins(x=0)


def draw_traffic(axes: Any, rounds: Sequence[PlannedRound]) -> None:
    """Mean and peak of the server's line; with points, for a single round makes no line."""
    numbers = [each.round for each in rounds]
    for name, label, colour in (("egress", "to devices", DOWN), ("ingress", "from devices", UP)):
        for kind, line in (("_gbits", ".-"), ("_peak_gbits", ".:")):
            values = [getattr(each, name + kind) for each in rounds]
            shown = f"{label}, {'mean' if kind == '_gbits' else 'peak'}"
            axes.plot(numbers, values, line, color=colour, label=shown)


def from_zero(axes: Any) -> None:
    """Begin at 0, with room above: figures that hardly differ lie at the upper edge."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
