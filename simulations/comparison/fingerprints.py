"""What settings only name: a data set, a teacher, a fleet; digests in summary.json tell them apart.

Behind one name there may be other images, or a file with another content, from one run to the next.
A run from before a digest was recorded counts as equal to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import Config
from common.errors import UserError
from common.settings import Scalar
from simulations.comparison.records import RunRecord
from simulations.emulation.fleet_file import load_fleet

SHOWN_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Named:
    """One of these things."""

    what: str
    """In words."""
    digest: str
    """Its digest in summary.json."""
    setting: str
    """What a report calls the digest, beside the settings."""
    keys: Sequence[str]
    """The settings that name it."""
    now: Callable[[Config], str]
    """The digest that a run would have now."""
    needs: str = ""
    """The setting without which a run has none, or one of its own making; empty: always there."""

    def of(self, settings: Mapping[str, Scalar], summary: Mapping[str, Any]) -> str | None:
        """The digest of a finished run; None where none is to be compared."""
        if self.needs and not settings[self.needs]:
            return None
        return summary.get(self.digest)

    def name(self, settings: Mapping[str, Scalar]) -> str:
        """``data.dataset = 'folder', data.image-size = 32``."""
        return ", ".join(f"{key} = {settings[key]!r}" for key in self.keys)


def _data_now(config: Config) -> str:
    # Imported late, here and below: they need torch, which reports do not.
    from common.data.data_fingerprint import data_fingerprint
    from common.data.datasets import configured_dataset

    return data_fingerprint(configured_dataset(config.data))


def _teacher_now(config: Config) -> str:
    from common.checkpoints import content_hash, load_checkpoint, resolve_teacher
    from common.data.datasets import configured_dataset

    model, train = config.model, configured_dataset(config.data).train
    path = resolve_teacher(model.teacher, model.name, config.data.dataset)
    assert path is not None
    return content_hash(load_checkpoint(path, model.name, train.num_classes, train.images.shape[1]))


NAMED = (
    Named(
        what="data set",
        digest="data_fingerprint",
        setting="data.fingerprint",
        keys=("data.dataset", "data.image-size"),
        now=_data_now,
    ),
    Named(
        what="teacher",
        digest="teacher_hash",
        setting="model.teacher-hash",
        keys=("data.dataset", "model.name", "model.teacher"),
        now=_teacher_now,
        needs="model.teacher",
    ),
    Named(
        what="fleet",
        digest="fleet_fingerprint",
        setting="fleet.fingerprint",
        keys=("fleet.name",),
        now=lambda config: load_fleet(config.fleet.name).fingerprint,
        needs="fleet.name",
    ),
)


def add_fingerprints(
    records: Sequence[RunRecord], compared: Sequence[Mapping[str, Scalar]]
) -> list[dict[str, Scalar]]:
    """The compared settings of every run; with digests where runs of the same settings have others.

    Args:
        records: the runs.
        compared: the settings of each that are compared.
    """
    result = [dict(settings) for settings in compared]
    same = [tuple(sorted(settings.items())) for settings in compared]
    for named in NAMED:
        digests = [named.of(record.settings, record.summary) for record in records]
        known: dict[Any, list[str]] = {}
        for key, digest in zip(same, digests, strict=True):
            if digest is not None:
                known.setdefault(key, []).append(digest)
        if all(len(set(found)) == 1 for found in known.values()):
            continue
        for settings, key, digest in zip(result, same, digests, strict=True):
            if key in known:
                settings[named.setting] = (digest or known[key][0])[:SHOWN_DIGITS]
    return result


def refuse_mixture(finished: Iterable[RunRecord], waiting: Iterable[Config] = ()) -> None:
    """Refuse runs of one folder that have other data, teachers or fleets under one name.

    Args:
        finished: runs that are there.
        waiting: of runs that are to be made; looked at only where finished ones tell a digest.

    Raises:
        UserError: naming the thing, or the data or the teacher that a run waits for are missing.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for record in finished:
        for named in NAMED:
            digest = named.of(record.settings, record.summary)
            if digest is not None:
                key = named.what, named.name(record.settings)
                _refuse_other(key, first.setdefault(key, (digest, str(record.folder))), digest)
    looked_at = set()
    for config in waiting:
        settings = config.to_flat()
        for named in NAMED:
            key = named.what, named.name(settings)
            is_there = not named.needs or settings[named.needs]
            if is_there and key in first and key not in looked_at:
                looked_at.add(key)
                _refuse_other(key, first[key], named.now(config))


def _refuse_other(key: tuple[str, str], first: tuple[str, str], digest: str) -> None:
    (what, name), (other, folder) = key, first
    if digest != other:
        raise UserError(
            f"{folder} was made with another {what} under the same name ({name}): "
            f"{other[:SHOWN_DIGITS]} there and {digest[:SHOWN_DIGITS]} elsewhere; give another "
            f"folder with --out"
        )
