"""Tests of simulations.comparison.records: what is read from a run folder."""

from pathlib import Path

import pytest

from common.errors import UserError
from simulations.comparison.records import is_finished, is_run_folder, read_run
from tests.unit.run_folders import write_run


def test_a_run_is_its_settings_its_summary_and_its_quantized_rounds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [50.0, 61.5], settings={"run.seed": 3, "data.alpha": 0.1})
    run = read_run(folder, "first")
    assert (run.seed, run.name, run.summary["final_accuracy"]) == (3, "first", 61.5)
    assert (run.settings["data.alpha"], run.settings["coreset.selection"]) == (0.1, "random")
    assert [(line["round"], line.get("accuracy")) for line in run.rounds] == [
        (1, None),
        (2, 50.0),
        (3, None),
        (4, 61.5),
    ]


def test_a_setting_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [50.0])
    (folder / "config.yaml").write_text("run: {seed: 2}\ncoreset: {selection: res, gone: 1}\n")
    settings = read_run(folder).settings
    assert (settings["coreset.selection"], settings["coreset.gone"]) == ("res", 1)
    assert settings["coreset.fraction"] == 0.1


def test_only_a_summary_makes_a_run_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [50.0], finished=False)
    assert is_run_folder(folder)
    assert not is_finished(folder)
    assert not is_run_folder(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "metrics.jsonl"])
def test_damaged_and_missing_files_are_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "a", [50.0])
    (folder / name).write_text('"kind": "round" {')
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read_run(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        read_run(folder)
