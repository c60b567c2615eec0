"""Tests of simulations.comparison.curves: accuracy over rounds and bytes, over seeds."""

from pathlib import Path

from simulations.comparison.curves import AXES, curve
from simulations.comparison.groups import Group
from simulations.comparison.positions import running_total, virtual_clock
from simulations.comparison.records import read_run
from tests.unit.run_folders import write_run


def make_group(folder: Path) -> Group:
    """Seed 0 was evaluated after rounds 2 and 4, seed 1 after 2, 4 and 6."""
    first = write_run(folder / "a", [50.0, 60.0])
    second = write_run(folder / "b", [54.0, 60.0, 61.0], settings={"run.seed": 1})
    return Group(label="x", settings={}, runs=[read_run(first), read_run(second)])


def test_a_curve_is_the_mean_at_the_rounds_that_all_seeds_have(tmp_path: Path) -> None:
    """50 and 54: mean 52, sample deviation sqrt(2² + 2²) = sqrt(8)."""
    found = curve(make_group(tmp_path), AXES[0])
    assert found is not None
    assert list(found.x) == [2, 4]
    assert [spread.mean for spread in found.accuracy] == [52.0, 60.0]
    assert [spread.std for spread in found.accuracy] == [8**0.5, 0.0]


def test_bytes_add_up_over_the_rounds_without_evaluation(tmp_path: Path) -> None:
    """1 MB in each round: 2 MB after the second, 4 MB after the fourth."""
    found = curve(make_group(tmp_path), AXES[1])
    assert found is not None
    assert list(found.x) == [2.0, 4.0]


def test_a_figure_that_was_not_recorded_has_no_curve(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    assert running_total("joules")(group.runs[0].rounds) == {}
    assert virtual_clock(group.runs[0].rounds) == {}
    assert [curve(group, axis) is None for axis in AXES] == [False, False, True, True]
    assert running_total("n")([{"round": 3, "n": 2}, {"round": 4, "n": 5}]) == {3: 2, 4: 7}
