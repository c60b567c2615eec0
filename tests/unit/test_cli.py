"""The command line: exit codes, one sentence for a user's mistake, nothing written then."""

import signal
from pathlib import Path

import pytest

from common.lock import hold
from common.settings import Scalar
from server.checkpoints.device_states import device_folder
from server.records import recorder
from simulations import cli, runner
from simulations.display.console import ConsoleReporter
from simulations.settings.scenario import Scenario


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)


def _no_run(*arguments: object, **options: object) -> None:
    raise AssertionError("nothing may start")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nope"],
        ["run", "digits", "--set", "data.alfa=1"],
        ["run", "digits", "--set", "run.seed=-1"],
        ["run", "digits", "--set", "run.out=a", "--out", "b"],
        ["run", "digits", "--set", "run.seed"],
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(runner, "run_scenario", _no_run)
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_may_not_be_looked_at_is_bad_input(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(locked / "mine")
    for arguments in (["run", name], ["run", "--resume", name], ["plan", "--fleet", name]):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err == f"error: [Errno 13] Permission denied: '{name}'\n"


def test_too_long_a_name_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    """File systems take 255 bytes."""
    name = "x" * 256
    for arguments in (["run", name], ["run", "--resume", name], ["run", "digits", "--out", name]):
        assert cli.main(arguments) == 2
        output = capsys.readouterr()
        assert output.err.startswith("error: [Errno 36] File name too long: ")
        assert output.err.count("\n") == 1


def test_settings_are_checked_against_the_number_of_devices_that_a_fleet_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scenario has ten devices, the fleet a hundred."""
    started: list[Scenario] = []
    monkeypatch.setattr(runner, "run_scenario", lambda scenario, *_, **__: started.append(scenario))
    settings = ["--set", "federation.min-devices=20", "run.seed=1"]
    assert cli.main(["run", "digits", "--fleet", "mixed-100", *settings]) == 0
    assert [scenario.config.data.num_devices for scenario in started] == [100]


def test_a_folder_in_use_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "LocalGrid", _no_run)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "summary.json").write_text("{}")
    assert cli.main(["run", "digits", "--out", "old"]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["summary.json"]


def test_a_second_run_in_a_folder_leaves_the_first_ones_devices_what_they_remember(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is refused as long as the first one writes there: nothing of that may be lost."""
    monkeypatch.setattr(recorder, "CLAIM_SECONDS", 0.01)
    folder = tmp_path / "run"
    state = device_folder(folder) / "2.state"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"coreset and error feedback")
    (folder / recorder.CONFIG_FILE).write_text("data: {dataset: digits}\n")
    with hold(folder / recorder.LOCK_FILE, wait_seconds=0.0):
        assert cli.main(["run", "--resume", str(folder), "--workers", "0"]) == 2
    assert "another run is writing there" in capsys.readouterr().err
    assert state.read_bytes() == b"coreset and error feedback"


def test_a_split_that_cannot_be_made_is_told_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the command, not by each of the devices when it is asked who it is. The 1,438 training
    images are enough for 143 devices with 10 each."""
    settings = ["data.num-devices=144", "data.partition=iid"]
    assert cli.main(["run", "digits", "--workers", "0", "--out", "new", "--set", *settings]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: data.num-devices = 144 with 10 samples each")
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(
    ("engine", "teacher", "reason"),
    [
        ("local", "lost.safetensors", "expected 'shipped' or an existing file"),
        ("ray", "lost.safetensors", "expected 'shipped' or an existing file"),
        ("local", "shipped", "there is none for resnet8-digits"),
    ],
)
def test_a_missing_teacher_is_told_before_anything_starts(
    engine: str,
    teacher: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for start in ("LocalGrid", "run_on_ray"):
        monkeypatch.setattr(runner, start, _no_run)
    command = ["run", "digits", "--engine", engine, "--set", f"model.teacher={teacher}"]
    assert cli.main(command) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith(f"error: model.teacher = '{teacher}': {reason}")
    assert list(tmp_path.iterdir()) == []


def test_ray_needs_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "digits", "--engine", "ray", "--workers", "0"]) == 2
    assert "--workers = 0: expected at least 1" in capsys.readouterr().err


def test_a_negative_number_of_workers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["run", "digits", "--workers", "-2"])
    assert exit_info.value.code == 2
    assert "expected a whole number, at least 0, not '-2'" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError("full"), 1)])
def test_exit_codes_of_runs_that_end_early(
    error: BaseException,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(runner, "run_scenario", run)
    assert cli.main(["run", "digits"]) == code
    said = capsys.readouterr().err
    assert said in ("interrupted\n", "error: OSError: full (--debug shows where)\n")


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(runner, "run_scenario", run)
    with pytest.raises(OSError, match="full"):
        cli.main(["run", "digits", "--debug"])


def test_what_the_options_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(scenario: runner.Scenario, reporter: object, **options: object) -> None:
        calls.append((scenario.settings["run.out"], scenario.config.run.seed, options))

    monkeypatch.setattr(runner, "run_scenario", run)
    arguments = ["run", "digits", "--set", "run.seed=3", "data.alpha=2", "--out", "it's: 12"]
    assert cli.main([*arguments, "--workers", "3", "--engine", "ray"]) == 0
    assert calls == [("it's: 12", 3, {"engine": "ray", "num_workers": 3, "debug": False})]


def test_a_run_goes_on_in_a_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = []

    def run(scenario: runner.Scenario, reporter: object, **options: object) -> None:
        resumed.append(scenario.config.run.resume)

    monkeypatch.setattr(runner, "run_scenario", run)
    assert cli.main(["run", "digits", "--resume", str(tmp_path)]) == 0
    assert resumed == [str(tmp_path)]
    assert cli.main(["run", "digits", "--resume", str(tmp_path / "none")]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err.replace("\n", " ")
    arguments = ["run", "digits", "--resume", str(tmp_path), "--out", str(tmp_path / "other")]
    assert cli.main(arguments) == 2


def test_a_run_goes_on_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {seed: 7, out: runs/elsewhere}\n")

    def run(scenario: runner.Scenario, reporter: ConsoleReporter, **options: object) -> None:
        assert scenario.config.run.seed == 7
        reporter.start(scenario.config, Path(scenario.config.run.resume))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_scenario", run)
    assert cli.main(["run", "--resume", str(folder)]) == 130
    hint = f"python -m simulations run --resume {folder}"
    assert capsys.readouterr().err.splitlines() == [
        f"interrupted; to go on after the last finished round: {hint}"
    ]
    assert cli.main(["run", "--resume", str(folder), "--out", str(tmp_path / "other")]) == 2
    assert "expected nothing beside run.resume" in capsys.readouterr().err.replace("\n", " ")
    (folder / "config.yaml").unlink()
    assert cli.main(["run", "--resume", str(folder)]) == 2
    assert cli.main(["run"]) == 2


def test_list_names_and_describes_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert titles == ["scenarios", "fleets", "grids"]
    names = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line[:1] == " "}
    assert {"digits", "pi-lab", "selection"} < names.keys()
    assert "classes" not in names
    assert names["pi-lab"].startswith("Ten Raspberry Pis")


def test_paths_hold_in_any_working_directory(tmp_path: Path) -> None:
    settings: dict[str, Scalar] = {
        "run.out": "r",
        "data.root": "",
        "model.teacher": "shipped",
        "run.seed": 1,
    }
    assert runner.absolute_paths(settings) == {**settings, "run.out": str(tmp_path / "r")}
    assert runner.absolute_paths({"model.teacher": "t.pt"}) == {
        "model.teacher": str(tmp_path / "t.pt")
    }
