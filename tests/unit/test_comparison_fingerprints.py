"""Tests of simulations.comparison.fingerprints: one name, another content."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.checkpoints import content_hash, save_checkpoint
from common.config import Config
from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import load_dataset
from common.errors import UserError
from common.models import create_model, model_state
from common.settings import Scalar
from simulations.comparison.fingerprints import refuse_mixture
from simulations.comparison.groups import compare_runs
from simulations.comparison.records import RunRecord
from simulations.emulation.fleet_file import load_fleet

TEACHER: dict[str, Scalar] = {"model.name": "resnet20", "model.teacher": "mine.safetensors"}


def record(
    seed: int, settings: dict[str, Scalar] | None = None, **digests: str | None
) -> RunRecord:
    return RunRecord(
        folder=Path(f"run-{seed}"),
        settings={**Config().to_flat(), **(settings or {}), "run.seed": seed},
        summary={"final_accuracy": 60.0, **digests},
        rounds=[],
    )


@pytest.mark.parametrize(
    ("settings", "digest", "column"),
    [
        ({"data.dataset": "folder"}, "data_fingerprint", "data.fingerprint"),
        (TEACHER, "teacher_hash", "model.teacher-hash"),
        ({"fleet.name": "mine.yaml"}, "fleet_fingerprint", "fleet.fingerprint"),
    ],
)
def test_other_contents_are_other_groups(
    settings: dict[str, Scalar], digest: str, column: str
) -> None:
    """Seed 3 is of an older version, which kept no digest: it goes with the first."""
    digests = ["a" * 32, "b" * 32, "a" * 32, None]
    runs = [record(seed, settings, **{digest: each}) for seed, each in enumerate(digests)]
    comparison = compare_runs(runs)
    assert comparison.varying == [column]
    assert [group.label for group in comparison.groups] == ["a" * 12, "b" * 12]
    assert [[run.seed for run in group.runs] for group in comparison.groups] == [[0, 2, 3], [1]]
    with pytest.raises(
        UserError, match=r"run-0 was made with another .*: a{12} there and b{12} el"
    ):
        refuse_mixture(runs)
    refuse_mixture(runs[2:])


def test_digests_of_other_settings_say_nothing_new() -> None:
    """Two data sets have two fingerprints, and with two models two teachers; a teacher that a run
    made itself is another one with every seed."""
    runs = [
        record(0, {"data.dataset": "cifar10"}, data_fingerprint="a", teacher_hash="c"),
        record(1, {"data.dataset": "cifar10"}, data_fingerprint="a", teacher_hash="d"),
        record(0, {"data.dataset": "cifar100"}, data_fingerprint="b", teacher_hash="e"),
        record(0, {**TEACHER, "data.dataset": "cifar100"}, data_fingerprint="b", teacher_hash="f"),
    ]
    comparison = compare_runs(runs)
    assert list(comparison.varying) == ["data.dataset", "model.name", "model.teacher"]
    assert [len(group.runs) for group in comparison.groups] == [2, 1, 1]
    refuse_mixture(runs)


def test_what_is_to_be_run_must_be_what_was_run(tmp_path: Path) -> None:
    """Digits, a new teacher for them, and a fleet of two devices."""
    pytest.importorskip("sklearn")
    fleet, teacher = tmp_path / "fleet.yaml", tmp_path / "teacher.safetensors"
    fleet.write_text("classes: {pi: {like: raspberry-pi-4, count: 2}}\n")
    state = model_state(create_model("resnet8", num_classes=10, in_channels=1))
    save_checkpoint(teacher, state, {})
    settings: dict[str, Scalar] = {
        "fleet.name": str(fleet),
        "model.teacher": str(teacher),
        "data.num-devices": 2,
        "federation.min-devices": 1,
    }
    config = Config.from_flat(settings)
    now: dict[str, str] = {
        "data_fingerprint": data_fingerprint(load_dataset("digits")),
        "teacher_hash": content_hash(state),
        "fleet_fingerprint": load_fleet(str(fleet)).fingerprint,
    }
    refuse_mixture([record(0, settings, **now)], [config])
    refuse_mixture([record(0, settings)], [config])
    for digest, message in (
        ("data_fingerprint", r"another data set under the same name \(data\.dataset = 'digits', d"),
        ("teacher_hash", r"another teacher under the same name .*teacher\.safetensors'\)"),
        ("fleet_fingerprint", r"another fleet under the same name .*fleet\.yaml'\)"),
    ):
        with pytest.raises(UserError, match=message):
            refuse_mixture([record(0, settings, **{**now, digest: "f" * 32})], [config])
