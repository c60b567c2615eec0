"""Runs that differ in their seed only make a group; what else differs tells groups apart.

Standard deviations are the sample's (n - 1 below the line); one seed has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from simulations.comparison.fingerprints import add_fingerprints
from simulations.comparison.records import RunRecord
from simulations.results.spread import Spread
from simulations.settings.scenario import PLACES

SEED = "run.seed"
NOT_COMPARED = frozenset({*PLACES, SEED})


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one setting."""

    label: str
    """What tells it from the other groups, in words."""
    settings: Mapping[str, Scalar]
    """Those that are not the same in all groups."""
    runs: Sequence[RunRecord]
    """One for each seed, by seed."""

    def spread(self, measure: Measure) -> Spread | None:
        """Mean and standard deviation over seeds; None when no run has a value."""
        values = [measure.value(run) for run in self.runs]
        return Spread.of([value for value in values if value is not None])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All groups, and what they have in common."""

    groups: Sequence[Group]
    """In the order in which their first runs were given."""
    varying: Sequence[str]
    """Settings that are not the same in all groups, in the order of the configuration."""
    shared: Mapping[str, Scalar]
    """Settings that are, except for the seed and for where things are."""
    is_named: bool
    """Whether the labels are names that were given, not made from the settings."""

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, by group."""
        return [run for group in self.groups for run in group.runs]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of a run."""

    name: str
    """In CSV, with its unit."""
    header: str
    """In tables that people read."""
    value: Callable[[RunRecord], float | None]
    show: Callable[[Spread], str]


def compare_runs(records: Sequence[RunRecord]) -> Comparison:
    """Group runs that differ in their seed only.

    Where runs of the same settings had other images, teachers or fleets under one name, these tell
    groups apart as settings do.

    Raises:
        UserError: two runs have the same settings and the same seed.
    """
    by_settings: dict[tuple[tuple[str, Scalar], ...], list[RunRecord]] = {}
    settings: list[dict[str, Scalar]] = []
    compared = add_fingerprints(records, [_compared(record) for record in records])
    for record, own in zip(records, compared, strict=True):
        key = tuple(sorted(own.items()))
        if key not in by_settings:
            settings.append(own)
        by_settings.setdefault(key, []).append(record)
    for runs in by_settings.values():
        _refuse_equal_seeds(runs)
    keys = dict.fromkeys(key for compared in settings for key in compared)
    varying = [key for key in keys if len({_identity(each.get(key)) for each in settings}) > 1]
    is_named = all(record.name for record in records)
    labels = label_groups(settings, varying)
    groups = [
        Group(
            label=runs[0].name if is_named else label,
            settings={key: compared[key] for key in varying if key in compared},
            runs=sorted(runs, key=lambda run: int(run.seed)),
        )
        for compared, runs, label in zip(settings, by_settings.values(), labels, strict=True)
    ]
    shared = {key: settings[0][key] for key in keys if key not in varying}
    return Comparison(groups=groups, varying=varying, shared=shared, is_named=is_named)


def label_groups(settings: Sequence[Mapping[str, Scalar]], keys: Sequence[str]) -> list[str]:
    """``quarc``, ``random``, ``quarc, weight-bits 4``: short, and different from each other.

    A value that more than half of the groups have goes without saying, but for the setting that
    has the most values: that one is always named.

    Args:
        settings: of each group.
        keys: of the settings that vary.
    """
    values = {key: Counter(_identity(each.get(key)) for each in settings) for key in keys}
    main = max(keys, key=lambda key: len(values[key]), default=None)
    usual = {
        key: value
        for key, counts in values.items()
        for value, count in counts.most_common(1)
        if key != main and 2 * count > len(settings)
    }
    named = [key for key in keys if key not in usual]
    labels = []
    for each in settings:
        others = [key for key in usual if _identity(each.get(key)) != usual[key]]
        parts = [describe_settings(each, named)]
        parts += [f"{name} {_shown(each, key)}" for key, name in short_names(others).items()]
        labels.append(", ".join(parts))
    return labels


def describe_settings(settings: Mapping[str, Scalar], keys: Sequence[str]) -> str:
    """``selection quarc, fraction 0.1``; of one key only its value, of none "all runs"."""
    if not keys:
        return "all runs"
    if len(keys) == 1:
        return _shown(settings, keys[0])
    return ", ".join(f"{name} {_shown(settings, key)}" for key, name in short_names(keys).items())


def _shown(settings: Mapping[str, Scalar], key: str) -> str:
    return format_value(settings[key]) if key in settings else "not set"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """``coreset.fraction`` -> ``fraction``, unless another key would be called the same."""
    all_keys = list(keys)
    last_parts = Counter(key.rsplit(".", 1)[-1] for key in all_keys)
    return {
        key: last if last_parts[last := key.rsplit(".", 1)[-1]] == 1 else key for key in all_keys
    }


def format_value(value: Scalar) -> str:
    """A setting's value as YAML has it, an empty string as "none given"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value) or "none given"


def not_default(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings that are not the defaults."""
    defaults = Config().to_flat()
    return {key: value for key, value in settings.items() if defaults.get(key) != value}


def _compared(record: RunRecord) -> dict[str, Scalar]:
    return {key: value for key, value in record.settings.items() if key not in NOT_COMPARED}


def _identity(value: Scalar | None) -> tuple[bool, Scalar | None]:
    """Python takes True for 1."""
    return isinstance(value, bool), value


def _refuse_equal_seeds(runs: Sequence[RunRecord]) -> None:
    by_seed: dict[Scalar, RunRecord] = {}
    for run in runs:
        other = by_seed.setdefault(run.seed, run)
        if other is not run:
            raise UserError(
                f"{other.folder} and {run.folder} have the same settings and seed {run.seed}: "
                f"expected different runs (leave one of them out)"
            )
