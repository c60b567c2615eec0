"""Tests of ``python -m simulations compare``: what is run, kept, redone and refused."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from simulations import cli, runner
from simulations.comparison.folder import ComparisonFolder
from simulations.comparison.sweep import load_sweep, plan_runs
from simulations.display.console import ConsoleReporter
from simulations.settings.scenario import Scenario
from tests.unit.run_folders import write_run

pytest.importorskip("matplotlib")


class Runs:
    """Stands for the engine: writes a run folder, or fails."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.error: BaseException | None = None

    def __call__(self, scenario: Scenario, reporter: ConsoleReporter, **options: Any) -> None:
        settings = {**scenario.settings}
        out = Path(str(settings.pop("run.out")))
        self.names.append(out.name)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        assert not out.exists()
        reporter.start(scenario.config, out)
        write_run(out, [50.0, 60.0], settings=settings)
        reporter.finish({"final_accuracy": 60.0, "wall_seconds": 7.0})


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    fake = Runs()
    monkeypatch.setattr(runner, "run_scenario", fake)
    Path("lab.yaml").write_text("coreset: {selection: [res, full]}\n")
    return fake


def compare(*arguments: str) -> int:
    return cli.main(["compare", "lab.yaml", "--out", "out", *arguments])


RES_0, FULL_0 = "lab--selection-res--seed-0", "lab--selection-full--seed-0"
RES_1, FULL_1 = "lab--selection-res--seed-1", "lab--selection-full--seed-1"


def test_every_combination_is_run_once_and_reported(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("--seeds", "0,1") == 0
    assert runs.names == [RES_0, FULL_0, RES_1, FULL_1]
    lines = Path("out/table.md").read_text().splitlines()
    assert "python -m simulations compare lab.yaml --seeds 0,1 --out out" in lines
    assert [line[:14] for line in lines if line.startswith(("| res", "| full"))][:2] == [
        "| res | 0, 1 |",
        "| full | 0, 1 ",
    ]
    assert Path("out/report.html").exists()
    assert f"[2/4] {FULL_0}: 60.00 % Top-1, 7.0 s" in capsys.readouterr().out


def test_finished_runs_are_kept_and_unfinished_ones_are_redone(runs: Runs) -> None:
    compare()
    Path(f"out/runs/{FULL_0}/summary.json").unlink()
    assert compare("--seeds", "0,1") == 0
    assert runs.names == [RES_0, FULL_0, FULL_0, RES_1, FULL_1]


def test_a_run_whose_checkpoints_are_damaged_begins_anew(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only checkpoint has no manifest; the fake run wants its folder to be gone."""
    compare()
    folder = Path(f"out/runs/{RES_0}")
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "000001").mkdir(parents=True)
    assert compare() == 0
    assert runs.names == [RES_0, FULL_0, RES_0]
    assert (
        f"{RES_0} begins anew: run.resume = '{folder}': none of its checkpoints can be read"
        in capsys.readouterr().out
    )


def test_a_failed_run_does_not_keep_the_others_from_being_run(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.error = OSError("full")
    assert compare() == 1
    assert runs.names == [RES_0, FULL_0]
    assert f"failed: {RES_0}: OSError: full" in capsys.readouterr().out
    assert f"- Not finished: {RES_0}" in Path("out/table.md").read_text()
    assert compare() == 0
    assert runs.names == [RES_0, FULL_0, RES_0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.teacher=there.safetensors"], "expected 'shipped' or an existing file"),
        (["fleet.name=lab-fleet.yaml"], "no class trains at quantization.weight-bits = 2"),
        (["fleet.over-selection=2"], "expected 1 without fleet.name"),
        (["strategy.name=krum", "strategy.num-malicious=4"], "krum needs at least 11 devices"),
        (
            ["federation.mixed-bits='2,4'", "strategy.name=fedmedian"],
            "expected none of bulyan, fedmedian",
        ),
        (["data.dataset=folder", "data.root=nowhere"], "cannot read image folder nowhere: No such"),
        (["data.dataset=[digits, cifar10]", "data.root=nowhere"], "data folder nowhere does not"),
    ],
)
def test_what_is_known_to_fail_is_refused_before_anything_is_run(
    arguments: list[str], message: str, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is free for the command that was meant; Krum needs 2 * 4 + 3 of ten devices."""
    Path("lab-fleet.yaml").write_text(
        "classes: {a: {like: raspberry-pi-4, count: 10, weight-bits: [4]}}\n"
    )
    assert compare("--set", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert (runs.names, Path("out").exists()) == ([], False)
    assert compare() == 0


def test_an_interrupted_comparison_reports_what_is_finished(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    compare("--set", "coreset.selection=[res]")
    runs.error = KeyboardInterrupt()
    assert compare("--set", "coreset.selection=[res, full]") == 130
    assert f"- Not finished: {FULL_0}" in Path("out/table.md").read_text()
    assert "the same command goes on" in capsys.readouterr().err


def test_report_only_runs_nothing(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--report-only") == 2
    assert "there is no finished run" in capsys.readouterr().err
    assert not Path("out").exists()
    compare()
    Path("out/report.html").unlink()
    assert compare("--report-only", "--seeds", "0,1") == 0
    assert runs.names == [RES_0, FULL_0]
    assert Path("out/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "data.alpha=2"],
            "data.alpha of scenario lab is 0.5 there and 2.0 here",
        ),
        (
            ["--set", "data.alpha=[1, 2]"],
            "scenario lab sweeps coreset.selection there and coreset.selection, data.alpha here",
        ),
    ],
)
def test_a_folder_made_with_other_settings_is_refused(
    arguments: list[str], message: str, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    assert compare(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert len(runs.names) == 2


def test_a_run_made_with_other_settings_is_refused(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    config = Path(f"out/runs/{RES_0}/config.yaml")
    config.write_text(config.read_text().replace("alpha: 0.5", "alpha: 0.25"))
    assert compare() == 2
    assert "data.alpha is 0.25 there and 0.5 here" in capsys.readouterr().err


def test_runs_of_other_images_are_refused_before_another_is_made(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the seed that is asked for, and of one that is not; tables of both are refused as well."""
    compare("--set", "coreset.selection=[res]")
    summary = Path(f"out/runs/{RES_0}/summary.json")
    finished = json.loads(summary.read_text())
    summary.write_text(json.dumps({**finished, "data_fingerprint": "f" * 32}))
    for seeds in ("0,1", "1"):
        assert compare("--set", "coreset.selection=[res]", "--seeds", seeds) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert f"{RES_0} was made with another data set under the same name" in message
    assert runs.names == [RES_0]
    summary.write_text(json.dumps(finished))
    compare("--seeds", "0,1")
    for name, digit in ((RES_0, "e"), (FULL_1, "f")):
        summary = Path(f"out/runs/{name}/summary.json")
        summary.write_text(json.dumps({**finished, "data_fingerprint": digit * 32}))
    assert compare("--seeds", "0,1", "--report-only") == 2
    assert "another data set" in capsys.readouterr().err


@pytest.mark.parametrize("content", [{"note.txt": "x"}, {"comparison.json": "{"}])
def test_other_folders_are_left_alone(
    content: dict[str, str], runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    for name, text in content.items():
        Path("out", name).write_text(text)
    assert compare() == 2
    assert capsys.readouterr().err.startswith("error: out")
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == content
    assert runs.names == []


def test_a_missing_matplotlib_is_noticed_before_anything_is_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert compare() == 2
    assert "the pictures of a report needs the package" in capsys.readouterr().err
    assert (runs.names, Path("out").exists()) == ([], False)


def test_files_that_no_run_wrote_are_never_removed(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    for path in Path(f"out/runs/{RES_0}").iterdir():
        path.unlink()
    Path(f"out/runs/{RES_0}/mine.txt").write_text("x")
    assert compare() == 2
    assert "expected the files of a run" in capsys.readouterr().err
    assert Path(f"out/runs/{RES_0}/mine.txt").exists()


def test_a_run_that_was_killed_with_nothing_but_its_lock_begins_again(runs: Runs) -> None:
    compare()
    for path in Path(f"out/runs/{RES_0}").iterdir():
        path.unlink()
    Path(f"out/runs/{RES_0}/.lock").touch()
    assert compare() == 0
    assert runs.names == [RES_0, FULL_0, RES_0]


def test_scenarios_may_be_added(runs: Runs) -> None:
    compare()
    Path("second.yaml").write_text("coreset: {selection: acs}\n")
    assert cli.main(["compare", "lab.yaml", "second.yaml", "--out", "out"]) == 0
    assert runs.names == [RES_0, FULL_0, "second--seed-0"]
    remembered = json.loads(Path("out/comparison.json").read_text())["scenarios"]
    assert list(remembered) == ["lab", "second"]
    assert "| lab, full | 0 |" in Path("out/table.md").read_text()


def test_a_folder_that_another_process_uses_is_refused(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is in the middle of a run; afterwards, or when it is dead, the folder is free."""
    folder = ComparisonFolder(Path("out"), [load_sweep("lab.yaml", [], None)])
    with folder.claim():
        assert compare() == 2
        assert "error: out is in use" in capsys.readouterr().err
    assert runs.names == []
    Path("out/.lock").touch()  # as a process leaves it that was killed
    assert compare() == 0
    assert runs.names == [RES_0, FULL_0]
    assert not Path("out/.lock").exists()


def test_what_another_process_added_meanwhile_is_remembered(runs: Runs) -> None:
    """Both looked at the folder before either had written to it."""
    Path("second.yaml").write_text("coreset: {selection: acs}\n")
    late = ComparisonFolder(Path("out"), [load_sweep("second.yaml", [], None)])
    compare()
    (planned,) = plan_runs([load_sweep("second.yaml", [], None)])
    with late.claim():
        late.prepare(planned, print, goes_on=True)
    remembered = json.loads(Path("out/comparison.json").read_text())["scenarios"]
    assert list(remembered) == ["lab", "second"]
