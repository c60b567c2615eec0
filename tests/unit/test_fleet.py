"""Tests of fleet, fleet_file and availability_file in simulations.emulation."""

from pathlib import Path

import numpy as np
import pytest

from common.config import Config
from common.errors import UserError
from simulations.emulation.fleet import check_fleet
from simulations.emulation.fleet_file import fit_settings, fleet_overrides, load_fleet
from simulations.settings.scenario import load_scenario
from simulations.settings.shipped import FLEETS

CLASS = """
    training-gflops: 2
    memory-mb: 1000
    uplink-mbits: 8
    downlink-mbits: 16
    latency-seconds: 0.5
    training-watts: 5
    idle-watts: 1
    radio-watts: 3
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", list(FLEETS.descriptions()))
def test_shipped_fleets_load(name: str) -> None:
    fleet = load_fleet(name)
    num_devices = fleet.num_devices or 37
    assert sum(fleet.class_counts(num_devices)) == num_devices


def test_the_shipped_fleets_are_there() -> None:
    sizes = {name: load_fleet(name).num_devices for name in FLEETS.descriptions()}
    assert sizes == {
        "flaky": 0,
        "homogeneous": 0,
        "mixed-100": 100,
        "mixed-1000": 1000,
        "pi-lab": 10,
        "pi-lab-bits": 10,
    }


def test_a_class_like_another_with_figures_of_its_own(tmp_path: Path) -> None:
    fleet = load_fleet(
        write(
            tmp_path,
            "classes: {slow: {like: raspberry-pi-5, share: 1, uplink-mbits: 1, weight-bits: [2]}}",
        )
    )
    (slow,) = fleet.profiles
    (pi,) = load_fleet(write(tmp_path, "classes: {raspberry-pi-5: {share: 1.0}}")).profiles
    assert slow.class_name == "slow"
    assert slow.uplink_mbits == 1.0
    assert slow.weight_bits == (2,)
    assert slow.training_gflops == pi.training_gflops


def test_shares_are_rounded_by_largest_remainder(tmp_path: Path) -> None:
    """Of 10 devices 0.45 and 0.35 and 0.2 are 4.5, 3.5 and 2: the first 5, then 3, then 2."""
    text = "classes:\n" + "".join(
        f"  {name}: {{like: raspberry-pi-4, share: {share}}}\n"
        for name, share in (("a", 0.45), ("b", 0.35), ("c", 0.2))
    )
    fleet = load_fleet(write(tmp_path, text))
    assert fleet.class_counts(10) == [5, 3, 2]
    classes = fleet.assign(10, seed=3)
    assert np.bincount(classes).tolist() == [5, 3, 2]
    assert (classes == fleet.assign(10, seed=3)).all()
    assert not (classes == np.sort(classes)).all()


def test_a_fixed_number_of_devices() -> None:
    with pytest.raises(UserError, match=r"pi-lab has 10 devices: data.num-devices = 9"):
        load_fleet("pi-lab").assign(9, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected names and values"),
        ("classes: {}", "classes is empty"),
        ("clases: {}", "unknown setting 'clases'"),
        ("classes: {a: {like: pi-9, share: 1}}", "like = 'pi-9': expected one of raspberry"),
        ("classes: {a: {like: [pi-9], share: 1}}", "like = ['pi-9']: expected one of raspberry"),
        ("classes: {raspberry-pi-4: {share: 0.4}}", "the shares add up to 0.4, not to 1"),
        ("classes: {raspberry-pi-4: {share: -1}}", "share = -1: expected"),
        ("classes: {raspberry-pi-4: {count: 0}}", "count = 0: expected a whole number"),
        ("classes: {raspberry-pi-4: {count: 1.5}}", "count = 1.5: expected a whole number"),
        ("classes: {raspberry-pi-4: {}}", "expected either count or share"),
        ("classes: {raspberry-pi-4: {count: 1, share: 1}}", "expected either count or share"),
        (
            "classes: {raspberry-pi-4: {count: 1}, raspberry-pi-5: {share: 1}}",
            "a count in every class or a share in every class",
        ),
        (
            "classes: {raspberry-pi-4: {count: 1, uplink-mbits: -3}}",
            "raspberry-pi-4: uplink-mbits = -3.0: expected a number, > 0",
        ),
        ("classes: {raspberry-pi-4: {count: 1, uplink: 3}}", "unknown setting 'uplink'"),
        ("classes: {raspberry-pi-4: {count: 1, latency-seconds: no}}", "'no': expected a number"),
        ("classes: {mine: {count: 1}}", "class mine: training-gflops is missing"),
        ("classes: {raspberry-pi-4: {count: 1, model: resnet20}}", "model goes with seconds"),
        (
            "classes: {raspberry-pi-4: {count: 1, availability: {probability: 2}}}",
            "probability = 2: expected a number from 0 to 1",
        ),
        (
            "classes: {raspberry-pi-4: {count: 1, availability: {on-seconds: 2}}}",
            "on-seconds and off-seconds go together",
        ),
        (
            "classes: {raspberry-pi-4: {count: 1, availability: {odds: 2}}}",
            "availability: unknown setting 'odds'",
        ),
    ],
)
def test_bad_fleets(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_fleet(write(tmp_path, text))
    assert message in str(error.value)


def test_an_unknown_fleet_names_those_that_there_are() -> None:
    with pytest.raises(UserError, match="unknown fleet 'pi': expected one of flaky, homogeneous"):
        load_fleet("pi")


def trace_fleet(folder: Path, rows: str) -> str:
    header = "start_seconds,end_seconds,available\n"
    (folder / "trace.csv").write_text(header + rows, encoding="utf-8")
    return write(
        folder, f"classes:\n  mine:{CLASS}    count: 2\n    availability: {{trace: trace.csv}}\n"
    )


def test_a_trace(tmp_path: Path) -> None:
    (profile,) = load_fleet(trace_fleet(tmp_path, "0,10,1\n10,15,0\n")).profiles
    assert profile.availability.schedule == ((10.0, True), (5.0, False))


def test_a_trace_of_a_spreadsheet(tmp_path: Path) -> None:
    """With a byte order mark and the line ends of Windows."""
    fleet = trace_fleet(tmp_path, "0,10,1\n")
    trace = tmp_path / "trace.csv"
    trace.write_bytes(b"\xef\xbb\xbf" + trace.read_bytes().replace(b"\n", b"\r\n"))
    (profile,) = load_fleet(fleet).profiles
    assert profile.availability.schedule == ((10.0, True),)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,10,1\n12,15,0\n", "line 3: a gap: starts at 12, expected 10"),
        ("0,10,1\n8,15,0\n", "line 3: an overlap: starts at 8, expected 10"),
        ("5,10,1\n", "line 2: a gap: starts at 5, expected 0"),
        ("0,0,1\n", "line 2: ends at 0, expected a number above 0"),
        ("0,10,yes\n", "line 2: expected two numbers and 0 or 1"),
        ("0,10,0\n", "devices are never there"),
    ],
)
def test_bad_traces(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_fleet(trace_fleet(tmp_path, rows))
    assert message in str(error.value)


def test_a_missing_trace(tmp_path: Path) -> None:
    text = f"classes:\n  mine:{CLASS}    count: 2\n    availability: {{trace: none.csv}}\n"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_fleet(write(tmp_path, text))


def test_a_measured_speed(tmp_path: Path) -> None:
    """A tenth of a second for ResNet-20's 244,028,928 operations (test_flops derives them)."""
    text = "classes: {raspberry-pi-4: {count: 1, seconds-per-sample: 0.1, model: resnet20}}"
    (profile,) = load_fleet(write(tmp_path, text)).profiles
    assert profile.training_gflops == pytest.approx(2.44028928, abs=1e-9)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ("seconds-per-sample: 0, model: resnet20", "seconds-per-sample = 0: expected"),
        ("seconds-per-sample: 1", "seconds-per-sample needs the name of its model"),
        (
            "seconds-per-sample: 1, model: resnet20, training-gflops: 2",
            "give training-gflops or seconds-per-sample, not both",
        ),
    ],
)
def test_bad_measured_speeds(tmp_path: Path, figures: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_fleet(write(tmp_path, f"classes: {{raspberry-pi-4: {{count: 1, {figures}}}}}"))
    assert message in str(error.value)


class TestRun:
    def test_a_fleet_fixes_the_number_of_devices(self) -> None:
        scenario = load_scenario("cifar100", ["fleet.name=mixed-100"], fit_settings)
        assert scenario.config.data.num_devices == 100
        assert scenario.settings["data.num-devices"] == 100

    def test_settings_are_checked_against_the_fleets_number(self) -> None:
        """Twenty of 100 devices, where a scenario's own are ten."""
        settings = ["fleet.name=mixed-100", "federation.min-devices=20"]
        with pytest.raises(UserError, match=r"at most data\.num-devices = 10"):
            load_scenario("digits", settings)
        scenario = load_scenario("digits", settings, fit_settings)
        assert (scenario.config.data.num_devices, scenario.config.federation.min_devices) == (
            100,
            20,
        )
        assert fit_settings({"fleet.name": "flaky"}) == {"fleet.name": "flaky"}
        assert fit_settings({"data.alpha": 1.0}) == {"data.alpha": 1.0}
        with pytest.raises(UserError, match="unknown fleet 'nope'"):
            fit_settings({"fleet.name": "nope"})

    def test_another_number_on_the_command_line_is_refused(self) -> None:
        assert fleet_overrides("mixed-100", {"data.num-devices": 100}) == ["fleet.name='mixed-100'"]
        with pytest.raises(UserError, match=r"mixed-100 has 100 devices: data.num-devices = 7"):
            fleet_overrides("mixed-100", {"data.num-devices": 7})
        with pytest.raises(UserError, match=r"fleet.name is set twice"):
            fleet_overrides("mixed-100", {"fleet.name": "flaky"})

    def test_a_fleet_that_cannot_train_at_these_bits(self, tmp_path: Path) -> None:
        text = "classes: {raspberry-pi-4: {count: 4, weight-bits: [8]}}"
        with pytest.raises(UserError, match=r"no class trains at quantization.weight-bits = 2"):
            check_fleet(load_fleet(write(tmp_path, text)), Config())

    def test_every_bit_width_has_a_class(self) -> None:
        """Classes of pi-lab-bits take 2 or 4 bits; those of pi-lab can do both and take 4."""
        mixed = Config.from_flat({"federation.mixed-bits": "2,4"})
        check_fleet(load_fleet("pi-lab-bits"), mixed)
        with pytest.raises(UserError, match=r"no class trains at 2 of federation.mixed-bits = 2,4"):
            check_fleet(load_fleet("pi-lab"), mixed)
