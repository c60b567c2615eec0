"""Tests of common.data.image_cache."""

import json
import logging
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from common.data import image_cache
from common.data.image_cache import (
    CachedImages,
    ImageSource,
    ImageStream,
    OpenedSource,
    load_cached,
)
from common.errors import UserError

TRAIN = np.arange(3 * 2 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 3)
TEST = TRAIN[:1] + 100
TRAIN_LABELS = np.array([1, 0, 1])


class Source:
    """A source in memory that counts how often it is decoded."""

    def __init__(self, state: str = "one", fails_after: int | None = None) -> None:
        self.times_opened = 0
        self.fails_after = fails_after
        self.source = ImageSource(name="toy", location="here", state=state, open=self.open)

    def open(self) -> OpenedSource:
        self.times_opened += 1
        return OpenedSource(
            splits={
                "train": ImageStream(shape=TRAIN.shape, labels=TRAIN_LABELS, chunks=self.chunks),
                "test": ImageStream.of(TEST, np.array([0])),
            },
            class_names=("a", "b"),
        )

    def chunks(self) -> Iterator[np.ndarray]:
        for index in range(len(TRAIN)):
            if index == self.fails_after:
                raise UserError("image 1 is damaged")
            yield TRAIN[index : index + 1]


def assert_complete(cached: CachedImages) -> None:
    assert np.array_equal(cached.images["train"], TRAIN)
    assert np.array_equal(cached.images["test"], TEST)
    assert cached.labels["train"].tolist() == [1, 0, 1]
    assert cached.labels["test"].tolist() == [0]
    assert cached.class_names == ("a", "b")


def entry_of(folder: Path) -> Path:
    (entry,) = (path for path in folder.iterdir() if path.is_dir())
    return entry


def test_decoded_once_and_mapped_afterwards(tmp_path: Path) -> None:
    source = Source()
    for _ in range(3):
        cached = load_cached(source.source, tmp_path / "cache")
        assert_complete(cached)
        assert isinstance(cached.images["train"].base, mmap.mmap)
    assert source.times_opened == 1


def test_statistics_by_hand(tmp_path: Path) -> None:
    """One channel, pixels 0, 0, 255, 255 in two images: mean 1/2, deviation 1/2."""
    images = np.array([[[[0], [0]]], [[[255], [255]]]], dtype=np.uint8)
    source = ImageSource(
        name="toy",
        location="here",
        state="one",
        open=lambda: OpenedSource(
            splits={"train": ImageStream.of(images, np.array([0, 0]))}, class_names=("a",)
        ),
    )
    cached = load_cached(source, tmp_path)
    assert cached.mean == pytest.approx((0.5,))
    assert cached.std == pytest.approx((0.5,))


def test_statistics_are_of_each_channel(tmp_path: Path) -> None:
    cached = load_cached(Source().source, tmp_path)
    pixels = TRAIN.reshape(-1, 3) / 255
    assert cached.mean == pytest.approx(pixels.mean(0).tolist())
    assert cached.std == pytest.approx(pixels.std(0).tolist())


def test_mapped_arrays_never_change_the_file(tmp_path: Path) -> None:
    load_cached(Source().source, tmp_path).images["train"][:] = 7
    assert_complete(load_cached(Source().source, tmp_path))


def test_changed_source_is_decoded_again_and_replaces_the_old_one(tmp_path: Path) -> None:
    load_cached(Source("one").source, tmp_path)
    old = entry_of(tmp_path)
    changed = Source("two")
    assert_complete(load_cached(changed.source, tmp_path))
    assert changed.times_opened == 1
    assert entry_of(tmp_path) != old


@pytest.mark.parametrize(
    "name", ["train-images.npy", "train-labels.npy", "test-images.npy", "meta.json"]
)
@pytest.mark.parametrize("damage", ["removed", "cut", "emptied", "garbage"])
def test_damaged_entry_is_decoded_again(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_cached(Source().source, tmp_path)
    file = entry_of(tmp_path) / name
    if damage == "removed":
        file.unlink()
    else:
        data = file.read_bytes()
        cut = {"cut": data[:-3], "emptied": b"", "garbage": b"\x93garbage" * 20}[damage]
        file.write_bytes(cut)
    source = Source()
    with caplog.at_level(logging.WARNING):
        assert_complete(load_cached(source.source, tmp_path))
    assert source.times_opened == 1
    assert "is damaged" in caplog.text
    again = Source()
    assert_complete(load_cached(again.source, tmp_path))
    assert again.times_opened == 0


def test_labels_without_a_class_are_damage(tmp_path: Path) -> None:
    load_cached(Source().source, tmp_path)
    np.save(entry_of(tmp_path) / "train-labels.npy", np.array([1, 2, 1]))
    source = Source()
    assert_complete(load_cached(source.source, tmp_path))
    assert source.times_opened == 1


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image 1 is damaged"):
        load_cached(Source(fails_after=1).source, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    load_cached(Source("one").source, tmp_path)
    entry = entry_of(tmp_path)
    partial = tmp_path / (entry.name.rsplit("-", 1)[0] + ".partial")
    partial.mkdir()
    (partial / "train-images.npy").write_bytes(b"half")
    assert_complete(load_cached(Source("two").source, tmp_path))
    assert not partial.exists()


def test_what_a_killed_process_left_of_another_source_is_removed_too(tmp_path: Path) -> None:
    """But not what a process is decoding: it holds the lock of that name."""
    for name in ("toy-0.5-killed", "toy-0.5-decoding"):
        (tmp_path / f"{name}.partial").mkdir()
        (tmp_path / f"{name}.partial" / "train-images.npy").write_bytes(b"half")
    with FileLock(tmp_path / "toy-0.5-decoding.lock"):
        assert_complete(load_cached(Source().source, tmp_path))
    assert [path.name for path in tmp_path.glob("*.partial")] == ["toy-0.5-decoding.partial"]


def test_one_of_many_decodes(tmp_path: Path) -> None:
    source = Source()
    with ThreadPoolExecutor(8) as pool:
        for cached in pool.map(lambda _: load_cached(source.source, tmp_path), range(8)):
            assert_complete(cached)
    assert source.times_opened == 1


def test_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cached = load_cached(Source().source, tmp_path / "file" / "cache")
    assert_complete(cached)
    assert "FEDQUARC_CACHE" in caplog.text
    assert cached.mean == pytest.approx((TRAIN.reshape(-1, 3) / 255).mean(0).tolist())


def test_images_that_fit_neither_disk_nor_memory_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 + 1 images of 2 x 4 x 3 bytes are 96; there is room for 95 on the disk and in memory."""
    source = Source(fails_after=0)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=95))
    monkeypatch.setattr(image_cache, "_machine_memory", lambda: 95)
    with pytest.raises(UserError, match=r"No space left.* the images of toy take 96 B, more than"):
        load_cached(source.source, tmp_path)
    monkeypatch.setattr(image_cache, "_machine_memory", lambda: 96)
    assert_complete(load_cached(Source().source, tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock"]


def test_entry_is_plain_files(tmp_path: Path) -> None:
    load_cached(Source().source, tmp_path)
    entry = entry_of(tmp_path)
    assert np.array_equal(np.load(entry / "train-images.npy"), TRAIN)
    assert json.loads((entry / "meta.json").read_text())["class_names"] == ["a", "b"]
