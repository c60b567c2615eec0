"""The shipped scenarios of slow devices differ in what they are about, and in nothing else."""

import pytest

from common.config import Config
from simulations.comparison.sweep import load_sweep, plan_runs
from simulations.settings.scenario import load_scenario

WAIT, DROP, PARTIAL, QUARC, ADAPTIVE, FEDBUFF = (
    f"stragglers-{name}" for name in ("wait", "drop", "partial", "quarc", "adaptive", "fedbuff")
)
LENGTH = {"federation.num-rounds", "evaluation.interval"}
"""Chosen so that all take about the same virtual time."""


def differences(first: str, second: str) -> set[str]:
    one, other = (load_scenario(name).config.to_flat() for name in (first, second))
    return {key for key, value in one.items() if other[key] != value}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (WAIT, DROP, {"fleet.deadline"}),
        (DROP, PARTIAL, {"strategy.name", "training.partial-work"}),
        (DROP, QUARC, {"coreset.selection", "coreset.pool"}),
        (QUARC, ADAPTIVE, {"coreset.adaptive"}),
        (
            WAIT,
            FEDBUFF,
            {
                "strategy.name",
                "strategy.concurrency",
                "strategy.buffer-size",
                "federation.fraction",
            },
        ),
    ],
)
def test_they_differ_in_one_thing(first: str, second: str, expected: set[str]) -> None:
    assert differences(first, second) - LENGTH == expected


def test_they_are_compared_as_they_are() -> None:
    runs = plan_runs(
        [load_sweep(name, seeds=[0, 1]) for name in (WAIT, DROP, PARTIAL, QUARC, ADAPTIVE, FEDBUFF)]
    )
    assert len(runs) == 12
    assert {run.config.fleet.name for run in runs} == {"mixed-100"}
    assert {run.config.data.num_devices for run in runs} == {100}
    waiting, buffered = (load_scenario(name).config for name in (WAIT, FEDBUFF))
    assert buffered.strategy.concurrency == waiting.federation.fraction * 100
    assert Config().coreset.fraction == 0.1, "the share of images that the comparison speaks of"
