"""Tests of simulations.comparison.sweep: lists of values -> runs."""

from pathlib import Path

import pytest

from common.errors import UserError
from simulations.comparison.sweep import PlannedRun, load_sweep, plan_runs


def write(folder: Path, text: str, name: str = "lab") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def plan(*files: str, overrides: tuple[str, ...] = (), seeds: list[int] | None = None) -> list[str]:
    return [run.name for run in planned(*files, overrides=overrides, seeds=seeds)]


def planned(
    *files: str, overrides: tuple[str, ...] = (), seeds: list[int] | None = None
) -> list[PlannedRun]:
    return plan_runs([load_sweep(file, overrides, seeds) for file in files])


def test_lists_are_combined_and_seeds_come_one_after_the_other(tmp_path: Path) -> None:
    file = write(
        tmp_path, "coreset: {selection: [res, full], balanced: false}\ndata.alpha: [0.1, 1]\n"
    )
    runs = planned(file, seeds=[3, 0])
    assert [run.name for run in runs[:5]] == [
        "lab--selection-res--alpha-0.1--seed-3",
        "lab--selection-res--alpha-1--seed-3",
        "lab--selection-full--alpha-0.1--seed-3",
        "lab--selection-full--alpha-1--seed-3",
        "lab--selection-res--alpha-0.1--seed-0",
    ]
    assert len(runs) == 8
    config = runs[3].config
    assert (config.coreset.selection, config.coreset.balanced) == ("full", False)
    assert (config.data.alpha, config.run.seed) == (1.0, 3)
    assert {run.label for run in runs} == {""}


def test_scenarios_are_named_in_the_report(tmp_path: Path) -> None:
    first = write(tmp_path, "training: {loss: [kd, ce]}\nrun: {seed: [0, 1]}\n", "wait")
    second = write(tmp_path, "run: {seed: 1}\ncoreset: {selection: full}\n", "drop")
    runs = planned(first, second)
    assert [(run.label, run.config.run.seed) for run in runs] == [
        ("wait, kd", 0),
        ("wait, ce", 0),
        ("wait, kd", 1),
        ("wait, ce", 1),
        ("drop", 1),
    ]


def test_the_command_line_replaces_values_and_may_have_lists(tmp_path: Path) -> None:
    file = write(tmp_path, "coreset: {selection: [res, full], fraction: 0.5}\n")
    assert plan(file, overrides=("coreset.selection=acs", "coreset.fraction=[0.1, 0.2]")) == [
        "lab--fraction-0.1--seed-0",
        "lab--fraction-0.2--seed-0",
    ]


def test_names_are_file_names(tmp_path: Path) -> None:
    file = write(tmp_path, "model: {teacher: [a/b c, '']}\n")
    assert plan(file, overrides=("data.alpha=[1, 2]",))[::2] == [
        "lab--teacher-a-b-c--alpha-1--seed-0",
        "lab--teacher-none-given--alpha-1--seed-0",
    ]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("data.alpha: []", (), "data.alpha = []: expected at least one value"),
        ("data.alpha: [[1]]", (), "expected at least one value"),
        ("data.alpha: [1, 2, 1]", (), "1 comes twice"),
        ("data.alpha: [1, -2]", (), "data.alpha = -2.0: expected float, > 0.0"),
        ("data.alfa: [1]", (), "unknown setting 'data.alfa'"),
        ("", ("run.out=x",), "--set run.out: expected --out"),
        ("", ("run.resume=x",), "--set run.resume: expected none"),
        ("run.seed: [0, 0]", (), "0 comes twice"),
        ("model.teacher: [a/b, a-b]", (), "two runs would both be called"),
    ],
)
def test_bad_sweeps_are_named(
    text: str, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        plan(write(tmp_path, text), overrides=overrides)
    assert message in str(error.value)


def test_seeds_are_given_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set run\.seed: expected no --seeds beside it"):
        plan(write(tmp_path, ""), overrides=("run.seed=1",), seeds=[0])
    assert plan(write(tmp_path, ""), overrides=("run.seed=[1, 2]",)) == [
        "lab--seed-1",
        "lab--seed-2",
    ]


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path, "data.alpha: 0.5", "a"), write(tmp_path, "", "b")
    with pytest.raises(UserError, match="a--seed-0 and b--seed-0 have the same settings"):
        plan(first, second)
    with pytest.raises(UserError, match="two scenarios are called 'a'"):
        plan(first, first)


def test_work_counts_epochs_over_the_images(tmp_path: Path) -> None:
    """10 rounds of 2 epochs over 0.1 or all images, and 5 warm-up rounds of 2 epochs or none."""
    rounds = "federation.num-rounds: 10\nwarmup.num-rounds: 5\n"
    file = write(tmp_path, f"{rounds}training.local-epochs: 2\ncoreset.selection: [res, full]\n")
    assert [run.work for run in planned(file)] == [12.0, 30.0]
    with_teacher = planned(file, overrides=("model.teacher=shipped",))
    assert [run.work for run in with_teacher] == [2.0, 20.0]


def test_a_fleet_of_a_fixed_number_sets_the_number_of_devices(tmp_path: Path) -> None:
    """pi-lab has 10 devices, mixed-100 has 100: what a run records is what was planned."""
    file = write(tmp_path, "data.num-devices: 7\nfleet.name: [pi-lab, mixed-100, homogeneous]\n")
    runs = planned(file)
    assert [run.config.data.num_devices for run in runs] == [10, 100, 7]
    assert [run.compared["data.num-devices"] for run in runs] == [10, 100, 7]
    few = ("federation.min-devices=20", "fleet.name=[mixed-100, mixed-1000]")
    sweep = load_sweep(file, few)
    assert [run.config.data.num_devices for run in plan_runs([sweep])] == [100, 1000]
    assert sweep.compared["data.num-devices"] == 7
    with pytest.raises(UserError, match="unknown fleet 'nope'"):
        planned(file, overrides=("fleet.name=nope",))
