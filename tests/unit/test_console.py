"""What a run prints."""

import io
from pathlib import Path

from rich.console import Console

from common.config import Config
from common.messages import Stage
from simulations.display.console import (
    ConsoleReporter,
    describe_round,
    describe_run,
    results_table,
)

SUMMARY = {
    "dataset": "digits",
    "model": "resnet8",
    "weight_bits": 2,
    "activation_bits": 32,
    "float_accuracy": 95.0,
    "quantized_accuracy_before": 17.271,
    "final_accuracy": 90.5,
    "best_accuracy": None,
    "upload_bytes": 80_000,
    "download_bytes": 1_500_000,
    "float32_upload_bytes": 1_000_000,
    "select_seconds": 1.25,
    "train_seconds": 12.0,
    "wall_seconds": 30.04,
}
ROUND = {
    "num_accepted": 3,
    "num_asked": 4,
    "skipped": False,
    "accuracy": 57.2,
    "train_loss": 0.5,
    "upload_bytes": 1000,
    "round_seconds": 2.0,
}


def _printed(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=60, color_system=None)
    with ConsoleReporter(console) as reporter:
        reporter.start(Config(), Path("runs/[bold]x"))
        reporter.stage(Stage.QUANTIZED, 10)
        reporter.replied(2, 4)
        reporter.round_done(Stage.QUANTIZED, 1, ROUND)
        reporter.note("a sentence " * 10)
        reporter.finish(SUMMARY)
    return stream.getvalue()


def test_plain_output_is_one_line_for_each_thing() -> None:
    lines = _printed(terminal=False).splitlines()
    assert lines[0] == describe_run(Config())
    assert lines[1] == (
        "QuaRC  2/10  accuracy 57.20 %  training loss 0.5000  3/4 devices  up 1 kB  2.0 s"
    )
    assert lines[2] == "a sentence " * 10
    assert lines[-1] == "results: runs/[bold]x"


def test_the_table_compares_with_float32() -> None:
    """80 kB of 1 MB are 8 %."""
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in _printed(terminal=False).splitlines()
        if line.startswith("│")
    ]
    table = {row[0]: row[1] for row in rows}
    assert table["float model"] == "95.00 %"
    assert table["2w32a before QuaRC"] == "17.27 %"
    assert table["2w32a after QuaRC, last round"] == "90.50 %"
    assert table["2w32a after QuaRC, best round"] == "not finite"
    assert table["sent by devices, QuaRC rounds"] == "80 kB"
    assert table["share"] == "8.0 %"
    assert table["sent to devices, QuaRC rounds"] == "1.5 MB"
    assert table["wall clock"] == "30.0 s"


def test_emulated_runs_tell_virtual_time_and_energy() -> None:
    """5,400 s are 90 minutes; the wall clock stays beside it."""
    line = describe_round(Stage.QUANTIZED, 1, 10, {**ROUND, "virtual_seconds": 12.345})
    assert line.endswith("up 1 kB  12.3 virtual s  2.0 s")
    line = describe_round(Stage.QUANTIZED, 1, 10, {**ROUND, "virtual_seconds": 2950.6})
    assert line.endswith("up 1 kB  2,951 virtual s  2.0 s")
    summary = {**SUMMARY, "fleet": "pi-lab", "virtual_seconds": 5400.0, "joules": 1230.0}
    table = results_table(summary)
    cells = dict(zip(*(column.cells for column in table.columns), strict=True))
    assert cells["virtual time, fleet pi-lab"] == "1 h 30 min"
    assert cells["energy, all devices"] == "1.23 kJ"


def test_a_terminal_shows_the_devices_of_the_round_that_runs() -> None:
    printed = _printed(terminal=True)
    assert "QuaRC  2/10  accuracy 57.20 %" in printed
    assert "\x1b[?25h" in printed  # the cursor is visible again


def test_a_run_is_described_by_what_sets_it_apart() -> None:
    config = Config.from_flat(
        {
            "coreset.selection": "full",
            "data.partition": "iid",
            "quantization.weight-bits": 4,
        }
    )
    described = describe_run(config)
    assert "10 devices (iid), 4w32a, full, fedavg" in described
    alone = Config.from_flat({"data.num-devices": 1, "federation.min-devices": 1})
    assert "digits, 1 device (" in describe_run(alone)
