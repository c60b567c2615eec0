"""Scenarios with lists of values -> one run for every combination and every seed.

A list stands for its values, wherever a setting has one: ``coreset: {selection: [quarc, random]}``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from simulations.comparison.groups import (
    NOT_COMPARED,
    SEED,
    describe_settings,
    format_value,
    short_names,
)
from simulations.emulation.fleet import NUM_DEVICES
from simulations.emulation.fleet_file import fit_settings
from simulations.settings.scenario import PLACES, parse_overrides, read_scenario
from simulations.settings.shipped import SCENARIOS

RUN_OUT, RUN_RESUME = "run.out", "run.resume"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One scenario, in which some settings have several values."""

    name: str
    """The scenario's."""
    settings: Mapping[str, Scalar]
    """Those with one value."""
    axes: Mapping[str, Sequence[Scalar]]
    """Those with several; the last one varies fastest."""
    seeds: Sequence[int]

    @property
    def compared(self) -> dict[str, Scalar]:
        """All settings with one value, defaults included, but for seed and places."""
        # Some values together may be refused without the others: take a whole combination.
        settings = {**self.settings, **next(self.combinations())}
        flat = Config.from_flat(fit_settings(settings)).to_flat()
        # As it was set: other combinations may have other fleets, of other sizes.
        flat[NUM_DEVICES] = settings.get(NUM_DEVICES, Config().data.num_devices)
        left_out = {*NOT_COMPARED, *self.axes}
        return {key: value for key, value in flat.items() if key not in left_out}

    def combinations(self) -> Iterator[dict[str, Scalar]]:
        """The axes' values of every combination."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison."""

    name: str
    """Of its folder: scenario, swept values, seed."""
    label: str
    """What its group is called in the report; empty: after the settings that vary."""
    settings: Mapping[str, Scalar]
    """What scenario, sweep and command line set, flat; run.out and run.resume aside."""
    config: Config

    @property
    def compared(self) -> dict[str, Scalar]:
        """All settings, defaults and seed included, but for places."""
        return {key: value for key, value in self.config.to_flat().items() if key not in PLACES}

    @property
    def work(self) -> float:
        """How long it takes, roughly, in a unit of its own."""
        training, coreset, warmup = self.config.training, self.config.coreset, self.config.warmup
        share = 1.0 if coreset.selection == "full" else coreset.fraction
        work = self.config.federation.num_rounds * training.local_epochs * share
        if not self.config.model.teacher:
            work += warmup.num_rounds * warmup.local_epochs
        return work


def load_sweep(
    name_or_path: str, overrides: Iterable[str] = (), seeds: Sequence[int] | None = None
) -> Sweep:
    """A scenario of which settings may be lists, with ``key=value`` overrides.

    Args:
        name_or_path: the name of a shipped scenario, or the path of a YAML file.
        overrides: settings that replace those of the file; values may be YAML lists.
        seeds: None: those of the scenario.

    Raises:
        UserError: if there is no such scenario, or for anything wrong in it or in ``overrides``.
    """
    path = SCENARIOS.find(name_or_path)
    given = parse_overrides(overrides)
    if RUN_RESUME in given:
        raise UserError(
            f"--set {RUN_RESUME}: expected none: what was interrupted goes on by itself"
        )
    for key, reason in ((RUN_OUT, "expected --out"), (SEED, "expected no --seeds beside it")):
        if key in given and (key == RUN_OUT or seeds is not None):
            raise UserError(f"--set {key}: {reason}")
    settings: dict[str, Any] = {**read_scenario(path), **given}
    own_seeds = settings.pop(SEED, Config().run.seed)
    for place in (RUN_OUT, RUN_RESUME):
        settings.pop(place, None)
    if seeds is None:
        seeds = own_seeds if isinstance(own_seeds, list) else [own_seeds]
    axes = {key: values for key, values in settings.items() if isinstance(values, list)}
    for key, values in [*axes.items(), (SEED, seeds)]:
        _check_values(path.stem, key, values)
    fixed = {key: value for key, value in settings.items() if key not in axes}
    return Sweep(name=path.stem, settings=fixed, axes=axes, seeds=seeds)


def plan_runs(sweeps: Sequence[Sweep]) -> list[PlannedRun]:
    """All runs, the first seed's of all sweeps first.

    Raises:
        UserError: a setting is out of range, or two runs would be the same.
    """
    names = [sweep.name for sweep in sweeps]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two scenarios are called {name!r}: expected different names")
    runs = [
        _planned(sweep, chosen, seed, is_alone=len(sweeps) == 1)
        for seed in dict.fromkeys(seed for sweep in sweeps for seed in sweep.seeds)
        for sweep in sweeps
        if seed in sweep.seeds
        for chosen in sweep.combinations()
    ]
    _refuse_equal(runs)
    return runs


def _planned(
    sweep: Sweep, chosen: Mapping[str, Scalar], seed: int, *, is_alone: bool
) -> PlannedRun:
    # As a run does, so that what it records is what was planned.
    settings = fit_settings({**sweep.settings, **chosen, SEED: seed})
    keys = list(sweep.axes)
    shown = describe_settings(chosen, keys) if keys else ""
    return PlannedRun(
        name=_folder_name(sweep, chosen, seed),
        label="" if is_alone else ", ".join(part for part in (sweep.name, shown) if part),
        settings=settings,
        config=Config.from_flat(settings),
    )


def _folder_name(sweep: Sweep, chosen: Mapping[str, Scalar], seed: int) -> str:
    short = short_names(sweep.axes)
    parts = [f"{short[key]}-{format_value(value)}" for key, value in chosen.items()]
    name = "--".join([sweep.name, *parts, f"seed-{seed}"])
    return re.sub(r"[^\w.+-]+", "-", name)


def _check_values(scenario: str, key: str, values: Sequence[Any]) -> None:
    if not values or any(isinstance(value, list | dict) or value is None for value in values):
        raise UserError(f"scenario {scenario}: {key} = {values!r}: expected at least one value")
    for index, value in enumerate(values):
        if any(value == other and type(value) is type(other) for other in values[:index]):
            raise UserError(f"scenario {scenario}: {key} = {values!r}: {value!r} comes twice")


def _refuse_equal(runs: Sequence[PlannedRun]) -> None:
    by_settings: dict[tuple[tuple[str, Scalar], ...], PlannedRun] = {}
    by_name: dict[str, PlannedRun] = {}
    for run in runs:
        other = by_settings.setdefault(tuple(run.compared.items()), run)
        if other is not run:
            raise UserError(f"{other.name} and {run.name} have the same settings: leave one out")
        other = by_name.setdefault(run.name, run)
        if other is not run:
            raise UserError(f"two runs would both be called {run.name}: use other values or files")
