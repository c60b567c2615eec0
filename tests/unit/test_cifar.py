"""Tests of common.data.cifar and .parquet_images, on tiny data in the published layouts."""

import hashlib
import pickle
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets

from common.data.cifar import cifar_source
from common.data.image_cache import OpenedSource
from common.errors import UserError
from tests.unit.image_files import plain, png, write_parquet, write_tree

CIFAR10 = [*"abcdefghij"]


def open_source(root: Path, name: str = "cifar10") -> OpenedSource:
    return cifar_source(name, root, root / "unused-cache").open()


def pixels(opened: OpenedSource, split: str) -> np.ndarray:
    return np.concatenate(list(opened.splits[split].chunks()))


def write_cifar10_parquet(folder: Path, class_names: list[str] | None = CIFAR10) -> None:
    """Images plain(0), plain(1) of classes 9 and 0 to train, plain(2) of class 4 to test."""
    train = [png(plain(0)), png(plain(1))]
    write_parquet(folder / "train-00000-of-00001.parquet", train, [9, 0], class_names=class_names)
    write_parquet(
        folder / "test-00000-of-00001.parquet", [png(plain(2))], [4], class_names=class_names
    )


def write_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images plain(0), plain(1) of classes 9 and 0 to train, plain(2) of class 4 to test.

    The published checksums are replaced by those of the files written.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(values: list[int], labels: list[int]) -> dict[str, object]:
        images = np.stack([plain(value) for value in values])
        rows = images.transpose(0, 3, 1, 2).reshape(len(values), -1)
        return {"data": rows, "labels": labels}

    reader = torchvision.datasets.CIFAR10
    train = [write("data_batch_1", batch([0], [9])), write("data_batch_2", batch([1], [0]))]
    monkeypatch.setattr(reader, "train_list", train)
    monkeypatch.setattr(reader, "test_list", [write("test_batch", batch([2], [4]))])
    meta = write("batches.meta", {"label_names": CIFAR10})
    monkeypatch.setattr(reader, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return folder


def assert_is_written(opened: OpenedSource) -> None:
    assert opened.class_names == tuple(CIFAR10)
    assert opened.splits["train"].labels.tolist() == [9, 0]
    assert opened.splits["test"].labels.tolist() == [4]
    assert opened.splits["train"].labels.dtype == np.int64
    assert np.array_equal(pixels(opened, "train"), np.stack([plain(0), plain(1)]))
    assert np.array_equal(pixels(opened, "test"), plain(2)[None])


class TestParquet:
    @pytest.mark.parametrize("folder", [".", "data", "cifar10", "plain_text"])
    def test_told_apart_and_read(self, folder: str, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path / folder)
        assert_is_written(open_source(tmp_path))

    def test_without_class_names(self, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path, class_names=None)
        assert open_source(tmp_path).class_names == tuple("0123456789")

    def test_fine_labels_of_cifar100_in_several_files(self, tmp_path: Path) -> None:
        for index, label in enumerate([70, 5]):
            write_parquet(
                tmp_path / f"train-{index:05}-of-00002.parquet",
                [png(plain(index))],
                [label],
                image_column="image",
                label_column="fine_label",
            )
        write_parquet(
            tmp_path / "test-00000-of-00001.parquet",
            [png(plain(2))],
            [99],
            label_column="fine_label",
        )
        opened = open_source(tmp_path, "cifar100")
        assert opened.splits["train"].labels.tolist() == [70, 5]
        assert np.array_equal(pixels(opened, "train"), np.stack([plain(0), plain(1)]))
        assert np.array_equal(pixels(opened, "test"), plain(2)[None])

    def test_more_rows_than_one_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("common.data.parquet_images.CHUNK", 2)
        write_cifar10_parquet(tmp_path)
        values = list(range(5))
        train = tmp_path / "train-00000-of-00001.parquet"
        write_parquet(train, [png(plain(value)) for value in values], values)
        assert pixels(open_source(tmp_path), "train")[:, 0, 0, 0].tolist() == values

    def test_no_test_file(self, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path)
        (tmp_path / "test-00000-of-00001.parquet").unlink()
        with pytest.raises(UserError, match=r"holds no test-\*\.parquet"):
            open_source(tmp_path)

    @pytest.mark.parametrize("kept", [0, 100, -40])
    def test_damaged_file(self, kept: int, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path)
        file = tmp_path / "train-00000-of-00001.parquet"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(UserError, match=r"cannot read .*train-00000-of-00001\.parquet"):
            open_source(tmp_path)

    @pytest.mark.parametrize(
        ("encoded", "message"),
        [
            (b"no image", r"cannot read image in row 1 of .*train-00000.*parquet"),
            (png(plain(1))[:60], r"cannot read image in row 1 of .*train-00000.*parquet"),
            (None, r"no image bytes in row 1 of .*train-00000.*parquet"),
            (png(plain(1, 16, 32)), r"in row 1 of .*train-00000.*has 32x16 pixels, not 32x32"),
        ],
    )
    def test_damaged_image(self, encoded: bytes | None, message: str, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path)
        train = tmp_path / "train-00000-of-00001.parquet"
        write_parquet(train, [png(plain(0)), encoded], [9, 0])
        with pytest.raises(UserError, match=message):
            pixels(open_source(tmp_path), "train")

    def test_other_columns(self, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path)
        train = tmp_path / "train-00000-of-00001.parquet"
        write_parquet(train, [png(plain(0))], [1], label_column="kind")
        with pytest.raises(UserError, match=r"train-.* has no column label: it has img, kind"):
            open_source(tmp_path)

    def test_the_other_cifar(self, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path)
        with pytest.raises(UserError, match=r"train-.* has 10 classes instead of 100"):
            open_source(tmp_path, "cifar100")

    @pytest.mark.parametrize("label", [-1, 10])
    def test_label_out_of_range(self, label: int, tmp_path: Path) -> None:
        write_cifar10_parquet(tmp_path)
        train = tmp_path / "train-00000-of-00001.parquet"
        write_parquet(train, [png(plain(0))], [label])
        with pytest.raises(UserError, match=r"train-.* labels that are not integers from 0 to 9"):
            open_source(tmp_path)


class TestTorchvision:
    @pytest.mark.parametrize("given", ["parent", "itself"])
    def test_told_apart_and_read(
        self, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_torchvision(tmp_path, monkeypatch)
        assert_is_written(open_source(tmp_path if given == "parent" else folder))

    def test_missing_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_torchvision(tmp_path, monkeypatch)
        (folder / "data_batch_2").unlink()
        with pytest.raises(UserError, match=r"data_batch_2 is missing"):
            open_source(tmp_path)

    def test_file_of_another_checksum_is_not_unpickled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_torchvision(tmp_path, monkeypatch)
        written = tmp_path / "written"

        class Harmful:
            def __reduce__(self) -> tuple[object, tuple[object, ...]]:
                return Path.touch, (written,)

        (folder / "test_batch").write_bytes(pickle.dumps(Harmful()))
        with pytest.raises(UserError, match=r"test_batch is damaged: its checksum"):
            open_source(tmp_path)
        assert not written.exists()


class TestTree:
    def test_told_apart_and_read(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", CIFAR10, images=2)
        write_tree(tmp_path / "test", CIFAR10)
        opened = open_source(tmp_path)
        assert opened.class_names == tuple(CIFAR10)
        assert opened.splits["train"].labels.tolist() == [c for c in range(10) for _ in range(2)]
        # image i of class c is plain(10 c + i)
        expected = [10 * c + i for c in range(10) for i in range(2)]
        assert pixels(opened, "train")[:, 0, 0, 0].tolist() == expected
        assert len(opened.splits["test"].labels) == 10

    def test_other_number_of_classes(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", CIFAR10[:9])
        write_tree(tmp_path / "test", CIFAR10[:9])
        with pytest.raises(UserError, match=r"has 9 class folders, CIFAR-10 has 10"):
            open_source(tmp_path)

    def test_no_test_folder(self, tmp_path: Path) -> None:
        """A fifth of ten images a class could be held out: of those that teachers trained on."""
        write_tree(tmp_path / "train", CIFAR10, images=10)
        with pytest.raises(UserError, match=r"holds no test/CLASS/\*\.png: .* of CIFAR-10 beside"):
            open_source(tmp_path)
        write_tree(tmp_path / "val", CIFAR10)
        assert len(open_source(tmp_path).splits["test"].labels) == 10

    def test_other_size(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", CIFAR10, side=28)
        write_tree(tmp_path / "test", CIFAR10, side=28)
        with pytest.raises(UserError, match=r"28x28 pixels.*32x32"):
            open_source(tmp_path)


class TestNothingFound:
    def test_folder_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"gone does not exist.*set FEDQUARC_DATA"):
            open_source(tmp_path / "gone")

    def test_folder_holds_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no images")
        with pytest.raises(UserError, match=r"does not hold CIFAR-10.*cifar-10-batches-py.*CLASS"):
            open_source(tmp_path)

    @pytest.mark.parametrize(
        "error", [URLError("no route to host"), OSError("disk full"), RuntimeError("broken")]
    )
    def test_failed_download(
        self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
        reason = r"\((no route to host|disk full|broken)\)"
        with pytest.raises(
            UserError, match=rf"CIFAR-100 could not be downloaded {reason}: set FEDQUARC_DATA"
        ):
            cifar_source("cifar100", None, tmp_path)

    def test_download_is_read_from_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        downloads = []

        def download(url: str, root: str, **_: object) -> None:
            downloads.append(url)
            write_torchvision(Path(root), monkeypatch)

        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
        for _ in range(2):
            assert_is_written(cifar_source("cifar10", None, tmp_path).open())
        assert len(downloads) == 1

    def test_download_that_was_cut_off_is_done_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut_off(url: str, root: str, **_: object) -> None:
            (write_torchvision(Path(root), monkeypatch) / "test_batch").write_bytes(b"half")
            raise KeyboardInterrupt

        def finish(url: str, root: str, **_: object) -> None:
            shutil.rmtree(Path(root) / "cifar-10-batches-py")
            write_torchvision(Path(root), monkeypatch)

        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", cut_off)
        with pytest.raises(KeyboardInterrupt):
            cifar_source("cifar10", None, tmp_path)
        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", finish)
        assert_is_written(cifar_source("cifar10", None, tmp_path).open())
