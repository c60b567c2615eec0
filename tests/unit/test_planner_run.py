"""Tests of ``python -m simulations plan``: sizes, fleets, tables and files."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from simulations import cli
from simulations.emulation.fleet_file import load_fleet
from simulations.planner.payload import known_inputs, measure_messages
from simulations.planner.planned_round import PlannedRound
from simulations.planner.plot import draw_devices, draw_traffic, from_zero
from simulations.planner.run import scale_fleet
from simulations.planner.summary import (
    ENERGY_UNITS,
    fitting_unit,
    rounds_table,
    to_csv,
    totals,
)


@pytest.mark.parametrize(
    ("update_format", "least", "most"),
    [("codes", 2 / 32, 4 / 32), ("delta", 4 / 32, 6 / 32), ("float32", 1.0, 1.0)],
)
def test_sizes_are_those_of_packed_messages(update_format: str, least: float, most: float) -> None:
    """2-bit codes, 4-bit deltas: that share of float32, with scales, steps and names beside it."""
    settings: dict[str, Scalar] = {
        "model.teacher": "shipped",
        "model.name": "resnet20",
        "data.dataset": "cifar100",
        "federation.update-format": update_format,
    }
    sizes = measure_messages(Config.from_flat(settings))
    assert least <= sizes.reply_bytes[2] / sizes.float32_reply_bytes <= most
    # ResNet-20 for 100 classes has 275,572 weights, four bytes each, and running statistics.
    assert 4 * 275_572 < sizes.request_bytes < 4 * 275_572 * 1.05
    assert 2 * 4 * 275_572 < sizes.first_request_bytes < 2 * 4 * 275_572 * 1.05


def test_codes_of_every_bit_width_are_measured() -> None:
    """4-bit codes are twice as large as 2-bit ones; scales, names and statistics are the same."""
    mixed: dict[str, Scalar] = {
        "model.name": "resnet20",
        "federation.update-format": "codes",
        "federation.mixed-bits": "2,4",
    }
    sizes = measure_messages(Config.from_flat(mixed))
    assert 1.5 < sizes.reply_bytes[4] / sizes.reply_bytes[2] < 2
    alone = measure_messages(Config.from_flat({**mixed, "federation.mixed-bits": ""}))
    assert dict(alone.reply_bytes) == {2: sizes.reply_bytes[2]}
    # A request says the bits, in an entry of a Protocol Buffers map: 2 bytes before it, 2 before
    # its key, "weight-bits" (11), 2 before its value, and 2 of the value, a tag and the number.
    assert sizes.request_bytes == alone.request_bytes + 19
    assert sizes.first_request_bytes == alone.first_request_bytes + 19
    assert "at" not in alone.describe_replies()
    assert re.fullmatch(r"\S+ kB at 2 bits, \S+ kB at 4 bits", sizes.describe_replies())


def test_a_small_downlink_is_measured_as_well() -> None:
    settings: dict[str, Scalar] = {"federation.downlink-format": "int8"}
    small, full = (measure_messages(Config.from_flat(flat)) for flat in (settings, {}))
    assert small.request_bytes < 0.4 * full.request_bytes
    assert small.reply_bytes == full.reply_bytes


def test_requests_with_changes_are_measured_as_long_as_they_are_worth_it() -> None:
    """A 4-bit change is more than an eighth of float32: seven are less than the model, eight not.
    One that is not sent them is sent the whole model."""
    flat: dict[str, Scalar] = {"federation.downlink-format": "delta", "model.name": "resnet20"}
    sizes, whole = (
        measure_messages(Config.from_flat(settings))
        for settings in (flat, {**flat, "federation.downlink-format": "float32"})
    )
    assert whole.change_request_bytes == ()
    assert sizes.request_bytes == whole.request_bytes
    assert len(sizes.change_request_bytes) == 7
    for number, size in enumerate(sizes.change_request_bytes, start=1):
        assert number / 8 < size / sizes.request_bytes < number / 8 * 1.1


def test_images_of_a_folder_are_not_looked_for() -> None:
    with pytest.raises(UserError, match=r"data\.dataset = 'folder': a plan reads no images"):
        known_inputs(Config.from_flat({"data.dataset": "folder", "data.root": "x"}))


def test_fleets_of_a_fixed_number_are_scaled() -> None:
    """mixed-1000 has 150 Raspberry Pi 5 of 1,000: 1,500 of 10,000."""
    fleet = load_fleet("mixed-1000")
    counts = scale_fleet(fleet, 10_000).class_counts(10_000)
    assert counts == [10 * member.count for member in fleet.classes]
    assert scale_fleet(fleet, 1000) is fleet


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "plan"
    arguments = ["plan", "--fleet", "mixed-100", "--devices", "300", "--rounds", "4"]
    arguments += ["--scenario", "digits", "--samples", "50", "--set", "federation.fraction=0.5"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "300 devices of mixed-100, resnet8 on digits, 50 images each" in output
    assert "raspberry-pi-zero-2-w" in output
    with (out / "rounds.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["round"] for line in lines] == ["1", "2", "3", "4"]
    for line in lines:
        asked, there = int(line["num_asked"]), int(line["num_available"])
        assert asked == round(0.5 * there)
        fates = ("num_trained", "num_late", "num_surplus", "num_failed")
        assert sum(int(line[name]) for name in fates) == asked
    assert (out / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_rounds_that_hardly_differ_are_not_cut() -> None:
    """Of 92.0 to 92.3 s matplotlib shows 91.985 to 92.315: from 0 on, 0.3 s are next to nothing."""
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    axes.plot([1, 2], [92.0, 92.3])
    from_zero(axes)
    assert axes.get_ylim() == pytest.approx((0.0, 1.05 * 92.315))


FIRST = PlannedRound(
    round=1,
    virtual_start_seconds=0.0,
    virtual_waited_seconds=0.0,
    virtual_seconds=10.0,
    num_available=8,
    num_asked=4,
    num_trained=2,
    num_late=1,
    num_surplus=0,
    num_failed=1,
    is_skipped=False,
    download_bytes=4e6,
    upload_bytes=2e6,
    egress_peak_gbits=0.04,
    ingress_peak_gbits=0.02,
    joules=7200.0,
)
SECOND = PlannedRound(
    round=2,
    virtual_start_seconds=10.0,
    virtual_waited_seconds=60.0,
    virtual_seconds=30.0,
    num_available=10,
    num_asked=8,
    num_trained=4,
    num_late=0,
    num_surplus=4,
    num_failed=0,
    is_skipped=True,
    download_bytes=8e6,
    upload_bytes=4e6,
    egress_peak_gbits=0.06,
    ingress_peak_gbits=0.04,
    joules=3600.0,
)


def test_figures_of_two_rounds_by_hand() -> None:
    """Least and most are one and the other, the quantiles lie between them; 16 Mbit in 10 s, 32 in
    30 s, and twice as many out; 3,600 J are 1 Wh."""
    rows = {label: " ".join(cells) for label, *cells in rounds_table([FIRST, SECOND]).rows}
    assert rows == {
        "round, virtual s": "10 12 20 28 30 20",
        "waiting before it, virtual s": "0 6 30 54 60 30",
        "devices there": "8 8.2 9 9.8 10 9",
        "devices asked": "4 4.4 6 7.6 8 6",
        "replies used": "2 2.2 3 3.8 4 3",
        "replies used, % of asked": "50 50 50 50 50 50",
        "late, % of asked": "0 2.5 12.5 22.5 25 12.5",
        "surplus, % of asked": "0 5 25 45 50 25",
        "broke off, % of asked": "0 2.5 12.5 22.5 25 12.5",
        "server ingress, MB": "2 2.2 3 3.8 4 3",
        "server ingress, mean Mbit/s": "1.07 1.12 1.33 1.55 1.6 1.33",
        "server ingress, peak Mbit/s": "20 22 30 38 40 30",
        "server egress, MB": "4 4.4 6 7.6 8 6",
        "server egress, mean Mbit/s": "2.13 2.24 2.67 3.09 3.2 2.67",
        "server egress, peak Mbit/s": "40 42 50 58 60 50",
        "energy of devices asked, Wh": "1 1.1 1.5 1.9 2 1.5",
    }
    assert totals([FIRST, SECOND]) == [
        "2 rounds: 100 virtual s (2 min), 1 skipped for too few replies",
        "server: 6 MB in, 12 MB out",
        "energy of the devices asked: 3 Wh",
    ]
    assert totals([FIRST])[0] == "1 round: 10 virtual s"


def test_rounds_as_csv() -> None:
    header, first, second = to_csv([FIRST, SECOND]).splitlines()
    assert header.split(",")[-3:] == ["joules", "ingress_gbits", "egress_gbits"]
    assert first == "1,0,0,10,8,4,2,1,0,1,0,4000000,2000000,0.04,0.02,7200,0.0016,0.0032"
    assert second.startswith("2,10,60,30,10,8,4,0,4,0,1,8000000,")


def test_a_single_round_can_be_seen() -> None:
    """Of six devices five reply and one breaks off: areas of 1 x 5 and 1 x 1, a round wide."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    devices, traffic = figure.subplots(1, 2)
    planned = replace(FIRST, num_asked=6, num_trained=5, num_late=0, num_failed=1)
    draw_devices(devices, [planned])
    boxes = [area.get_paths()[0].get_extents().bounds for area in devices.collections]
    assert boxes == [(0.5, 0, 1, 5), (0.5, 5, 1, 0), (0.5, 5, 1, 0), (0.5, 5, 1, 1)]
    draw_traffic(traffic, [planned])
    assert [line.get_marker() for line in traffic.lines] == ["."] * 4


def test_numbers_of_devices_and_rounds_may_be_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """A fleet of 100 is scaled; what else is set is checked against the number that is planned."""
    arguments = ["plan", "--fleet", "mixed-100", "--scenario", "digits", "--samples", "50"]
    assert cli.main([*arguments, "--set", "data.num-devices=200", "federation.num-rounds=3"]) == 0
    output = capsys.readouterr().out
    assert "200 devices of mixed-100" in output
    assert "\n3 rounds: " in output
    few = ["--rounds", "1", "--set", "federation.min-devices=150"]
    assert cli.main([*arguments, "--devices", "300", *few]) == 0
    assert "300 devices of mixed-100" in capsys.readouterr().out
    assert cli.main([*arguments, *few]) == 2
    assert "at most data.num-devices = 100" in capsys.readouterr().err


def test_one_device_and_one_round_are_no_plural(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--fleet", "homogeneous", "--scenario", "digits", "--samples", "1"]
    one = ["--devices", "1", "--rounds", "1", "--set", "federation.min-devices=1"]
    assert cli.main([*arguments, *one]) == 0
    output = capsys.readouterr().out
    assert output.startswith("1 device of homogeneous, resnet8 on digits, 1 image each,")
    assert "\n1 round: " in output


def test_a_plan_that_cannot_be_written_promises_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grids and comparisons go on where the disk was full; a plan keeps nothing to go on from."""
    file = tmp_path / "file"
    file.write_text("no folder")
    arguments = ["plan", "--fleet", "pi-lab", "--rounds", "1", "--scenario", "digits"]
    assert cli.main([*arguments, "--out", str(file / "plan")]) == 2
    assert capsys.readouterr().err.endswith("rounds.csv cannot be written: Not a directory\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fleet", "nope"], "unknown fleet 'nope'"),
        (["--fleet", "pi-lab", "--set", "fleet.name=flaky"], "fleet.name is set twice"),
        (
            ["--fleet", "pi-lab", "--devices", "9", "--set", "data.num-devices=9"],
            "data.num-devices is set twice: by --set and by --devices",
        ),
        (
            ["--fleet", "pi-lab", "--rounds", "9", "--set", "federation.num-rounds=9"],
            "federation.num-rounds is set twice: by --set and by --rounds",
        ),
        (["--fleet", "pi-lab", "--set", "fleet.deadline=1e-6"], "no device can meet it"),
        (["--fleet", "pi-lab", "--devices", "2000000"], "data.num-devices = 2000000"),
    ],
)
def test_bad_plans_are_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("joules", "unit", "size"), [(0.0, "J", 1.0), (7.2e3, "Wh", 3.6e3), (3.6e10, "MWh", 3.6e9)]
)
def test_a_figure_is_shown_in_the_unit_that_fits(joules: float, unit: str, size: float) -> None:
    assert fitting_unit(ENERGY_UNITS, joules) == (unit, size)
