"""Tests of simulations.comparison.report and its command: run folders -> files."""

from pathlib import Path

import pytest

from simulations import cli
from tests.unit.run_folders import write_run


def test_report_of_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    finished = write_run(tmp_path / "a", [50.0, 60.0])
    running = write_run(tmp_path / "b", [50.0], finished=False, settings={"run.seed": 1})
    out = tmp_path / "out"
    assert cli.main(["report", str(finished), str(running), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "table.csv", "table.md"]
    output = capsys.readouterr().out
    assert f"Not finished, left out: {running}" in output
    assert "60.00" in output
    markdown = (out / "table.md").read_text()
    assert markdown.startswith("# resnet8 on digits\n")
    assert f"python -m simulations report {finished} {running} --out {out}" in markdown
    assert f"- Not finished, left out: {running}" in markdown


@pytest.mark.parametrize(
    ("finished", "message"),
    [(None, "is no run folder"), (False, "there is no finished run")],
)
def test_nothing_to_report_is_one_sentence(
    finished: bool | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    if finished is None:
        folder.mkdir()
    else:
        write_run(folder, [50.0], finished=finished)
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_comparisons_folder_is_told_from_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/runs/*" in capsys.readouterr().err


def test_a_target_that_no_run_reached_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's rounds have 50 and 60 %."""
    pytest.importorskip("matplotlib")
    run, out = write_run(tmp_path / "a", [50.0, 60.0]), tmp_path / "out"
    for target, is_said in (("60", False), ("60.5", True)):
        assert cli.main(["report", str(run), "--out", str(out), "--target", target]) == 0
        assert ("No run reached 60.5 %" in capsys.readouterr().out) is is_said
        assert ("- No run reached 60.5 %" in (out / "table.md").read_text()) is is_said


@pytest.mark.parametrize("target", ["nan", "0", "101", "60%"])
def test_what_is_no_target_is_refused(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["report", str(tmp_path), "--out", str(tmp_path / "out"), "--target", target])
    assert exit_info.value.code == 2
    assert f"expected a number above 0, at most 100, not '{target}'" in capsys.readouterr().err
