"""Tests of client.state."""

import errno
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from safetensors import SafetensorError
from torch import Tensor

from client.coreset import Coreset
from client.state import (
    KEPT_OUTPUTS_SECONDS,
    KEPT_TEACHERS,
    State,
    TeacherStore,
    load_coreset,
    load_residual,
    load_teacher_views,
    save_coreset,
    save_residual,
    save_teacher_views,
)
from common.checkpoints import content_hash

IMAGES = "1d"
OTHER_IMAGES = "2d"
"""Digests of two devices' images, or of one's before and after they changed."""


def teacher(value: float = 1.0) -> State:
    return {
        "conv.weight": np.full((2, 1, 3, 3), value, np.float32),
        "fc.bias": np.arange(3, dtype=np.float32),
    }


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def teacher_file(store: TeacherStore, teacher_hash: str) -> Path:
    return store.root / teacher_hash / "teacher.safetensors"


class TestTeacher:
    def test_kept_by_its_content(self, tmp_path: Path) -> None:
        teacher_hash = TeacherStore(tmp_path).keep(teacher())
        assert teacher_hash == content_hash(teacher())
        loaded = TeacherStore(tmp_path).load(teacher_hash)
        assert loaded is not None
        assert loaded.keys() == teacher().keys()
        assert all(np.array_equal(loaded[name], values) for name, values in teacher().items())

    def test_one_that_was_never_kept(self, tmp_path: Path) -> None:
        assert TeacherStore(tmp_path).load("ab" * 32) is None
        assert files(tmp_path) == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: content[:-1],
            lambda content: content[:20],
            lambda content: content[:-1] + bytes([content[-1] ^ 1]),
            lambda content: b"\xff" * 8 + content[8:],
        ],
        ids=["empty", "cut", "cut in the header", "a bit", "header length"],
    )
    def test_a_damaged_one_is_as_good_as_none(
        self, tmp_path: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        store = TeacherStore(tmp_path)
        teacher_hash = store.keep(teacher())
        path = teacher_file(store, teacher_hash)
        path.write_bytes(damage(path.read_bytes()))
        assert store.load(teacher_hash) is None
        store.keep(teacher())
        assert store.load(teacher_hash) is not None

    def test_another_one_in_its_place_is_not_taken(self, tmp_path: Path) -> None:
        store = TeacherStore(tmp_path)
        first, second = store.keep(teacher(1.0)), store.keep(teacher(2.0))
        os.replace(teacher_file(store, second), teacher_file(store, first))
        assert store.load(first) is None

    @pytest.mark.parametrize("teacher_hash", ["", "../../etc", "a/b", "a.b"])
    def test_a_hash_is_no_path(self, tmp_path: Path, teacher_hash: str) -> None:
        with pytest.raises(ValueError, match="expected hexadecimal digits"):
            TeacherStore(tmp_path).load(teacher_hash)

    def test_the_cache_folder_is_the_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path))
        teacher_hash = TeacherStore().keep(teacher())
        assert files(tmp_path) == [f"teachers/{teacher_hash}/teacher.safetensors"]


class TestPruning:
    def keep(self, store: TeacherStore, number: int) -> str:
        """Keep a teacher, used at second ``number``."""
        teacher_hash = store.keep(teacher(float(number)))
        os.utime(store.root / teacher_hash, (number, number))
        return teacher_hash

    def test_the_latest_are_kept(self, tmp_path: Path) -> None:
        store = TeacherStore(tmp_path)
        hashes = [self.keep(store, number) for number in range(1, KEPT_TEACHERS + 3)]
        assert [store.load(teacher_hash) is None for teacher_hash in hashes] == (
            [True] * 2 + [False] * KEPT_TEACHERS
        )

    @pytest.mark.parametrize("use", [TeacherStore.load, TeacherStore.version])
    def test_use_counts_and_not_age(
        self, tmp_path: Path, use: Callable[[TeacherStore, str], object]
    ) -> None:
        store = TeacherStore(tmp_path)
        hashes = [self.keep(store, number) for number in range(1, KEPT_TEACHERS + 1)]
        assert use(store, hashes[0]) is not None
        self.keep(store, KEPT_TEACHERS + 1)
        assert store.load(hashes[0]) is not None
        assert store.load(hashes[1]) is None

    def test_outputs_go_with_their_teacher(self, tmp_path: Path) -> None:
        store = TeacherStore(tmp_path)
        first = self.keep(store, 1)
        store.outputs(first, IMAGES, lambda: torch.zeros(1, 1))
        os.utime(store.root / first, (1, 1))
        for number in range(2, KEPT_TEACHERS + 2):
            self.keep(store, number)
        assert not (store.root / first).exists()

    def test_a_folder_that_another_process_removes_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is listed, and gone when it is looked at."""
        store = TeacherStore(tmp_path)
        listed = Path.iterdir
        monkeypatch.setattr(Path, "iterdir", lambda path: [*listed(path), path / "gone"])
        teacher_hash = store.keep(teacher())
        assert store.load(teacher_hash) is not None


@pytest.fixture(params=["full", "read-only"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TeacherStore:
    """A store that can't be written to: each of its writers fails as it does on such a disk."""
    error = {
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "read-only": OSError(errno.EROFS, "Read-only file system"),
    }[request.param]

    def fail(*_: object, **__: object) -> None:
        raise error

    def fail_to_save(*_: object) -> None:
        raise SafetensorError(str(error))

    if request.param == "read-only":
        monkeypatch.setattr(os, "utime", fail)
        monkeypatch.setattr(Path, "mkdir", fail)
    monkeypatch.setattr("client.state.save_file", fail_to_save)
    monkeypatch.setattr(np, "save", fail)
    return TeacherStore(tmp_path)


class TestDiskThatCannotBeWrittenTo:
    def test_a_teacher_is_not_kept(
        self, disk: TeacherStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nor is a damaged one in its place taken for it."""
        path = teacher_file(disk, content_hash(teacher()))
        os.makedirs(path.parent)
        path.write_bytes(b"damaged")
        teacher_hash = disk.keep(teacher())
        assert teacher_hash == content_hash(teacher())
        assert disk.version(teacher_hash) is None
        assert disk.load(teacher_hash) is None
        assert files(disk.root) == []
        (message,) = caplog.messages
        assert "cannot write" in message
        assert "set FEDQUARC_CACHE" in message

    def test_outputs_are_used_from_memory(
        self, disk: TeacherStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        outputs = Outputs()
        for _ in range(2):
            assert disk.outputs("ab12", IMAGES, outputs).tolist() == [[0.25] * 3] * 4
        assert outputs.num_calls == 2
        assert len(caplog.messages) == 2

    def test_what_is_there_already_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = TeacherStore(tmp_path)
        teacher_hash = store.keep(teacher())
        monkeypatch.setattr(os, "utime", Mock(side_effect=OSError(errno.EROFS, "Read-only")))
        assert store.version(teacher_hash) is not None
        assert store.load(teacher_hash) is not None


class Outputs:
    """Counts how often they are computed."""

    def __init__(self, value: float = 0.25) -> None:
        self.value = value
        self.num_calls = 0

    def __call__(self) -> Tensor:
        self.num_calls += 1
        return torch.full((4, 3), self.value)


class TestOutputs:
    HASH = "ab12"

    def test_are_computed_once(self, tmp_path: Path) -> None:
        """Also for another process, which has a store of its own."""
        outputs = Outputs()
        for _ in range(3):
            kept = TeacherStore(tmp_path).outputs(self.HASH, IMAGES, outputs)
            assert torch.equal(kept, torch.full((4, 3), 0.25))
        assert outputs.num_calls == 1

    def test_belong_to_their_images_teacher_and_conditions(self, tmp_path: Path) -> None:
        store = TeacherStore(tmp_path)
        first, second, third, fourth, fifth = map(Outputs, (0.1, 0.2, 0.3, 0.4, 0.5))
        store.outputs(self.HASH, IMAGES, first)
        assert store.outputs(self.HASH, OTHER_IMAGES, second)[0, 0].item() == pytest.approx(0.2)
        assert store.outputs("cd34", IMAGES, third)[0, 0].item() == pytest.approx(0.3)
        rounded = store.outputs(self.HASH, IMAGES, fourth, (0.5,), "bfloat16")
        assert rounded[0, 0].item() == pytest.approx(0.4)
        other = store.outputs(self.HASH, IMAGES, fifth, (0.4,), "bfloat16")
        assert other[0, 0].item() == pytest.approx(0.5)
        assert [each.num_calls for each in (first, second, third, fourth, fifth)] == [1] * 5

    def test_those_that_nobody_used_for_a_week_are_removed(self, tmp_path: Path) -> None:
        """Of three sets of images, all last used long ago, one is used again: it stays when the
        fourth is new. Those of another teacher, which nobody asks for, are left alone."""
        store, outputs = TeacherStore(tmp_path), Outputs()
        for images in ("1a", "2a", "3a"):
            store.outputs(self.HASH, images, outputs)
        store.outputs("cd34", "1a", outputs)
        for path in tmp_path.rglob("outputs-*.npy"):
            long_ago = time.time() - KEPT_OUTPUTS_SECONDS - 60
            os.utime(path, (long_ago, long_ago))
        store.outputs(self.HASH, "2a", outputs)
        store.outputs(self.HASH, "4a", outputs)
        assert len(files(store.root / self.HASH)) == 2
        assert len(files(store.root / "cd34")) == 1
        outputs.num_calls = 0
        for images in ("2a", "4a"):
            store.outputs(self.HASH, images, outputs)
        assert outputs.num_calls == 0

    @pytest.mark.parametrize("length", [0, 5, 100, -1])
    def test_damaged_ones_are_computed_again(self, tmp_path: Path, length: int) -> None:
        store, outputs = TeacherStore(tmp_path), Outputs()
        store.outputs(self.HASH, IMAGES, outputs)
        (path,) = (store.root / self.HASH).iterdir()
        path.write_bytes(path.read_bytes()[:length])
        for _ in range(2):
            store.outputs(self.HASH, IMAGES, outputs)
        assert outputs.num_calls == 2

    def test_a_failure_leaves_nothing_behind(self, tmp_path: Path) -> None:
        def fail() -> Tensor:
            raise RuntimeError("out of memory")

        def not_an_array() -> Tensor:
            return torch.zeros(1, requires_grad=True)

        for compute in (fail, not_an_array):
            with pytest.raises(RuntimeError):
                TeacherStore(tmp_path).outputs(self.HASH, IMAGES, compute)
        assert files(tmp_path) == []


class TestRecords:
    def test_a_coreset_is_remembered(self) -> None:
        records = RecordDict()
        assert load_coreset(records, IMAGES) is None
        save_coreset(records, Coreset(indices=torch.tensor([1, 4, 9]), epoch=7), IMAGES)
        loaded = load_coreset(records, IMAGES)
        assert loaded is not None
        assert loaded.indices.tolist() == [1, 4, 9]
        assert loaded.indices.dtype == torch.int64
        assert loaded.epoch == 7

    def test_weights_and_scores_are_remembered(self) -> None:
        records = RecordDict()
        weights, scores = torch.tensor([0.5, 1.5]), torch.tensor([0.1, math.nan, 3.0])
        kept = Coreset(indices=torch.tensor([0, 2]), epoch=0, weights=weights, scores=scores)
        save_coreset(records, kept, IMAGES)
        loaded = load_coreset(records, IMAGES)
        assert loaded is not None
        assert loaded.weights is not None
        assert loaded.scores is not None
        assert torch.equal(loaded.weights, weights)
        assert torch.equal(loaded.scores.nan_to_num(-1), scores.nan_to_num(-1))

    def test_a_new_coreset_takes_the_place_of_the_old(self) -> None:
        records = RecordDict()
        save_coreset(records, Coreset(indices=torch.tensor([1, 4]), epoch=0), IMAGES)
        save_coreset(records, Coreset(indices=torch.tensor([2]), epoch=5), IMAGES)
        loaded = load_coreset(records, IMAGES)
        assert loaded is not None
        assert (loaded.indices.tolist(), loaded.epoch) == ([2], 5)

    def test_teacher_outputs_belong_to_their_coreset(self) -> None:
        """Also if the next one is of the same epoch: the device was asked again."""
        records = RecordDict()
        assert load_teacher_views(records, IMAGES) == {}
        coreset = Coreset(indices=torch.tensor([1, 4]), epoch=2)
        save_coreset(records, coreset, IMAGES)
        save_teacher_views(records, {0: torch.ones(2, 3), 3: torch.zeros(2, 3)})
        loaded = load_teacher_views(records, IMAGES)
        assert sorted(loaded) == [0, 3]
        assert torch.equal(loaded[0], torch.ones(2, 3))
        loaded[0][0] = 7.0  # what is not known yet is filled in
        save_coreset(records, Coreset(indices=torch.tensor([1, 3]), epoch=2), IMAGES)
        assert load_teacher_views(records, IMAGES) == {}

    def test_what_was_kept_of_other_images_is_forgotten(self) -> None:
        records = RecordDict()
        save_coreset(records, Coreset(indices=torch.tensor([1, 9]), epoch=0), IMAGES)
        save_teacher_views(records, {0: torch.ones(2, 3)})
        assert load_coreset(records, IMAGES) is not None
        assert load_coreset(records, OTHER_IMAGES) is None
        assert load_teacher_views(records, OTHER_IMAGES) == {}

    def test_the_residual_is_remembered(self) -> None:
        records = RecordDict()
        assert load_residual(records) == {}
        lost = {
            "fc.weight": np.array([[0.5, -0.25]], np.float32),
            "fc.bias": np.zeros(1, np.float32),
        }
        save_residual(records, lost)
        loaded = load_residual(records)
        assert list(loaded) == list(lost)
        assert all(np.array_equal(loaded[name], values) for name, values in lost.items())
        save_residual(records, {})
        assert load_residual(records) == {}
