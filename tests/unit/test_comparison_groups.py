"""Tests of simulations.comparison.groups: what belongs together, and what tells it apart."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from simulations.comparison.groups import (
    compare_runs,
    describe_settings,
    format_value,
    label_groups,
    not_default,
    short_names,
)
from simulations.comparison.measures import ACCURACY, MEASURES
from simulations.comparison.records import RunRecord
from simulations.results.spread import Spread
from simulations.settings.scenario import PLACES

MEASURE = {measure.name: measure for measure in MEASURES}


def record(
    seed: int,
    accuracy: float | None = 60.0,
    *,
    name: str = "",
    settings: dict[str, Scalar] | None = None,
    **summary: float,
) -> RunRecord:
    return RunRecord(
        folder=Path(f"run-{seed}"),
        settings={**Config().to_flat(), **(settings or {}), "run.seed": seed},
        summary={"final_accuracy": accuracy, **summary},
        rounds=[],
        name=name,
    )


def test_seeds_of_one_setting_are_a_group_wherever_they_were_written() -> None:
    comparison = compare_runs(
        [
            record(2, settings={"coreset.selection": "res", "run.out": "a"}),
            record(1, settings={"coreset.selection": "random", "data.root": "here"}),
            record(0, settings={"coreset.selection": "res", "run.resume": "b"}),
        ]
    )
    assert [group.label for group in comparison.groups] == ["res", "random"]
    assert [[run.seed for run in group.runs] for group in comparison.groups] == [[0, 2], [1]]
    assert list(comparison.varying) == ["coreset.selection"]
    assert comparison.shared["coreset.fraction"] == 0.1
    assert not {"coreset.selection", "run.seed", *PLACES} & set(comparison.shared)


def test_mean_and_sample_deviation_over_seeds() -> None:
    """60, 62, 64: mean 62, deviations -2, 0, 2: sqrt(8 / 2) = 2."""
    group = compare_runs([record(seed, 60.0 + 2 * seed) for seed in range(3)]).groups[0]
    spread = group.spread(ACCURACY)
    assert spread is not None
    assert (spread.mean, spread.std) == (62.0, 2.0)
    assert ACCURACY.show(spread) == "62.00 ± 2.00"


def test_figures_that_a_run_does_not_have_are_left_out() -> None:
    """The share is 1.5 of 12 MB, 12.5 %; a round is 1.5 MB / 3 = 500 kB."""
    group = compare_runs(
        [
            record(0, None),
            record(1, 61.0, upload_bytes=1.5e6, num_rounds=3, float32_upload_bytes=12e6),
        ]
    ).groups[0]
    shown = {}
    for name in ("accuracy_percent", "upload_share_percent", "upload_bytes_per_round"):
        spread = group.spread(MEASURE[name])
        assert spread is not None
        shown[name] = MEASURE[name].show(spread)
    assert list(shown.values()) == ["61.00", "12.5 %", "500 kB"]
    assert group.spread(MEASURE["wall_seconds"]) is None


def test_figures_of_an_emulated_fleet() -> None:
    """Of 8 + 2 devices that were asked 6 + 1 answered in time: 70 %. Ten more answered in the
    warm-up, whose rounds a record does not have."""
    participation = {"pi": {"trained": 16, "late": 2}, "phone": {"trained": 1, "failed": 1}}
    group = compare_runs([record(0, virtual_seconds=1234.5, joules=45_600.0)]).groups[0]
    summary = {**group.runs[0].summary, "class_participation": participation}
    rounds = [{"fates": {"trained": 6, "late": 2}}, {"fates": {"trained": 1, "failed": 1}}]
    run = replace(group.runs[0], summary=summary, rounds=rounds)
    shown = {}
    for name in ("virtual_seconds", "joules", "replies_used_percent"):
        value = MEASURE[name].value(run)
        assert value is not None
        shown[name] = MEASURE[name].show(Spread(mean=value, std=None))
    assert list(shown.values()) == ["1,234", "45.6 kJ", "70.0 %"]


def test_two_runs_of_one_setting_and_seed_are_refused() -> None:
    with pytest.raises(UserError, match="have the same settings and seed 4"):
        compare_runs([record(4, 60.0), record(4, 61.0)])


def test_true_is_not_one() -> None:
    comparison = compare_runs(
        [record(0, settings={"x.y": True}), record(0, settings={"x.y": False})]
    )
    assert [group.label for group in comparison.groups] == ["true", "false"]


def test_names_that_were_given_are_the_labels() -> None:
    comparison = compare_runs(
        [
            record(0, name="wait", settings={"coreset.selection": "full"}),
            record(0, name="drop", settings={"coreset.selection": "random"}),
        ]
    )
    assert comparison.is_named
    assert [group.label for group in comparison.groups] == ["wait", "drop"]


def test_labels_say_what_differs() -> None:
    keys = ["coreset.fraction", "federation.fraction", "training.loss"]
    assert short_names(keys) == {keys[0]: keys[0], keys[1]: keys[1], keys[2]: "loss"}
    settings: dict[str, Scalar] = {keys[0]: 0.1, keys[1]: 1.0, keys[2]: "kd"}
    assert describe_settings(settings, keys[1:]) == "fraction 1, loss kd"
    assert describe_settings(settings, []) == "all runs"
    assert describe_settings(settings, keys[:1]) == "0.1"


def test_what_most_groups_have_goes_without_saying() -> None:
    """Of selection three values, so it is always named; two of three have the same bits."""
    keys = ["quantization.weight-bits", "coreset.selection"]
    rows: list[dict[str, Scalar]] = [
        {keys[0]: 2, keys[1]: "quarc"},
        {keys[0]: 4, keys[1]: "res"},
        {keys[0]: 2, keys[1]: "random"},
    ]
    assert label_groups(rows, keys) == ["quarc", "res, weight-bits 4", "random"]
    assert label_groups(rows[:1], []) == ["all runs"]


def test_labels_of_a_grid_name_both_settings() -> None:
    keys = ["coreset.selection", "coreset.fraction"]
    rows: list[dict[str, Scalar]] = [
        {keys[0]: selection, keys[1]: fraction}
        for selection in ("res", "full")
        for fraction in (0.1, 0.5)
    ]
    assert label_groups(rows, keys)[:2] == [
        "selection res, fraction 0.1",
        "selection res, fraction 0.5",
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["a", "b"]), st.booleans()),
        min_size=1,
        max_size=12,
        unique=True,
    )
)
def test_labels_differ_where_settings_do(values: list[tuple[int, str, bool]]) -> None:
    keys = ["x.n", "y.n", "z.flag"]
    rows: list[dict[str, Scalar]] = [dict(zip(keys, each, strict=True)) for each in values]
    varying = [key for key in keys if len({row[key] for row in rows}) > 1]
    assert len(set(label_groups(rows, varying))) == len(rows)


def test_values_are_shown_as_a_scenario_has_them() -> None:
    shown = [format_value(value) for value in (True, 5e-4, 1.0, 3, "", "res")]
    assert shown == ["true", "0.0005", "1", "3", "none given", "res"]


def test_defaults_are_left_out() -> None:
    assert not_default({"data.alpha": 0.5, "data.num-devices": 3}) == {"data.num-devices": 3}
