"""Tests of common.data.datasets."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.augmentation import normalize
from common.data.datasets import ImageSet, load_dataset, load_image_folder
from common.errors import UserError
from tests.unit.image_files import plain, png, write_parquet, write_tree

CIFAR100_PARQUET = Path(__file__).parents[3] / "shared" / "data" / "cifar100"


def image_set(num_images: int = 4) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 2, 3, 3), dtype=np.uint8)
    return ImageSet(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.arange(num_images) % 3,
        class_names=("a", "b", "c"),
    )


class TestImageSet:
    def test_length_and_classes(self) -> None:
        images = image_set(2)
        assert len(images) == 2
        assert images.num_classes == 3

    def test_subset(self) -> None:
        images = image_set()
        chosen = images.subset(torch.tensor([3, 1]))
        assert torch.equal(chosen.images[0], images.images[3])
        assert torch.equal(chosen.images[1], images.images[1])
        assert chosen.labels.tolist() == [0, 1]
        assert chosen.class_names == images.class_names

    def test_subset_is_a_copy_with_channels_innermost(self) -> None:
        images = image_set()
        contiguous = ImageSet(
            images=images.images.contiguous(), labels=images.labels, class_names=("a", "b", "c")
        )
        chosen = contiguous.subset(torch.arange(4))
        assert torch.equal(chosen.images, images.images)
        assert chosen.images.permute(0, 2, 3, 1).is_contiguous()
        chosen.images.fill_(0)
        assert contiguous.images.any()

    def test_empty_subset(self) -> None:
        assert len(image_set().subset(torch.empty(0, dtype=torch.int64))) == 0

    def test_subset_in_several_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("common.data.datasets.SUBSET_BLOCK", 3)
        images = image_set(10)
        order = torch.tensor([9, 0, 3, 3, 7, 1, 2])
        assert torch.equal(images.subset(order).images, images.images[order])

    def test_its_digest_is_that_of_no_other_set_whatever_the_layout(self) -> None:
        images = image_set()
        contiguous = replace(images, images=images.images.contiguous())
        assert images.digest == contiguous.digest
        assert images.digest == images.subset(torch.arange(4)).digest
        assert images.digest != images.subset(torch.tensor([1, 0, 2, 3])).digest
        assert images.digest != images.subset(torch.arange(3)).digest
        assert images.digest != replace(images, labels=images.labels.flip(0)).digest

    @pytest.mark.parametrize(("place", "is_seen"), [(24, True), (16, True), (17, False)])
    def test_its_digest_looks_at_four_times_four_pixels(self, place: int, is_seen: bool) -> None:
        """Of 32 x 32: those in rows and columns 0, 8, 16 and 24."""
        pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        images = ImageSet(
            images=pixels, labels=torch.zeros(2, dtype=torch.int64), class_names=("a",)
        )
        changed = pixels.clone()
        changed[1, 2, 8, place] = 1
        assert (replace(images, images=changed).digest != images.digest) is is_seen

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"images": torch.zeros(2, 3, 4, 4)}, r"float32 .* not uint8 \[n, c, h, w\]"),
            ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"not uint8 \[n, c, h, w\]"),
            ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels .* not int64 \[2\]"),
            ({"labels": torch.zeros(2)}, r"labels are torch.float32"),
            ({"labels": torch.tensor([0, 1])}, r"labels are not all from 0 to 0"),
            ({"labels": torch.tensor([0, -1])}, r"labels are not all from 0 to 0"),
        ],
    )
    def test_refuses(self, changed: dict[str, torch.Tensor], message: str) -> None:
        arguments = {
            "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            "labels": torch.zeros(2, dtype=torch.int64),
        } | changed
        with pytest.raises(ValueError, match=message):
            ImageSet(images=arguments["images"], labels=arguments["labels"], class_names=("one",))


class TestDigits:
    def test_split(self) -> None:
        """1,797 digits, a fifth is floor(359.4 + 1/2) = 359; of the 174 to 183 of each class
        34.8 to 36.6, rounded either way."""
        digits = load_dataset("digits")
        assert (len(digits.train), len(digits.test)) == (1438, 359)
        assert digits.train.class_names == tuple("0123456789")
        counts = digits.test.labels.bincount()
        assert 34 <= int(counts.min()) <= int(counts.max()) <= 37

    def test_pixels(self) -> None:
        """scikit-learn's 0 ... 16 are scaled by 255 / 16: 8 is 127.5, rounded up to 128."""
        from sklearn.datasets import load_digits

        digits = load_dataset("digits")
        assert digits.train.images.shape[1:] == (1, 8, 8)
        scaled = [round(value * 255 / 16 + 1e-9) for value in range(17)]
        assert digits.train.images.unique().tolist() == scaled
        together = torch.cat([digits.train.images, digits.test.images]).flatten(1)
        original = torch.tensor(scaled)[torch.from_numpy(load_digits().data).long()]
        assert sorted(together.tolist()) == sorted(original.tolist())

    def test_statistics_are_those_of_the_training_pixels(self) -> None:
        digits = load_dataset("digits")
        pixels = digits.train.images.double() / 255
        assert digits.mean == pytest.approx((pixels.mean().item(),))
        assert digits.std == pytest.approx((pixels.std(correction=0).item(),))

    def test_a_digit_is_not_mirrored(self) -> None:
        digits = load_dataset("digits")
        assert not digits.flip
        assert digits.crop_padding == 1

    def test_the_same_without_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = load_dataset("digits")
        monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path))
        second = load_dataset("digits")
        assert torch.equal(first.train.images, second.train.images)
        assert torch.equal(first.test.labels, second.test.labels)


class TestFolder:
    def test_loaded(self, tmp_path: Path) -> None:
        """Image i of class c is plain(10 c + i), channel k adds k. Training pixels of channel 0
        are 0, 1, 10, 11: mean 5.5, deviation sqrt((5.5^2 + 4.5^2) / 2) = 5.0249..."""
        write_tree(tmp_path / "data" / "train", ["a", "b"], images=2, side=16)
        write_tree(tmp_path / "data" / "test", ["a", "b"], side=16)
        folder = load_dataset("folder", str(tmp_path / "data"))
        assert folder.train.images[:, 0, 0, 0].tolist() == [0, 1, 10, 11]
        assert folder.train.images[3, :, 5, 7].tolist() == [11, 12, 13]
        assert folder.train.labels.tolist() == [0, 0, 1, 1]
        assert folder.test.images.shape == (2, 3, 16, 16)
        assert folder.mean == pytest.approx([5.5 / 255, 6.5 / 255, 7.5 / 255])
        assert folder.std == pytest.approx([(50.5 / 2) ** 0.5 / 255] * 3)
        assert folder.flip
        assert folder.crop_padding == 2

    def test_root_from_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_tree(tmp_path, ["a", "b"], images=5, side=8)
        monkeypatch.setenv("FEDQUARC_DATA", str(tmp_path))
        assert len(load_dataset("folder").train) == 8

    def test_devices_agree_on_classes(self, tmp_path: Path) -> None:
        """What both call "b" has one label, though one of them has no "a"."""
        write_tree(tmp_path / "first", ["a", "b"], side=8)
        write_tree(tmp_path / "second", ["b", "c"], side=8)
        classes = ("a", "b", "c")
        first = load_image_folder(str(tmp_path / "first"), class_names=classes)
        second = load_image_folder(str(tmp_path / "second"), class_names=classes)
        assert first.class_names == second.class_names == classes
        assert first.labels.tolist() == [0, 1]
        assert second.labels.tolist() == [1, 2]
        with pytest.raises(UserError, match=r"second has class folders that are not .*: c "):
            load_image_folder(str(tmp_path / "second"), class_names=("a", "b"))

    def test_image_size(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["a", "b"], images=2, side=8)
        assert load_image_folder(str(tmp_path), 4).images.shape == (4, 3, 4, 4)
        assert load_image_folder(str(tmp_path), 6).images.shape == (4, 3, 6, 6)

    def test_new_image_is_seen(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["a", "b"], images=2, side=8)
        assert len(load_image_folder(str(tmp_path))) == 4
        (tmp_path / "a" / "new.png").write_bytes(png(plain(50, 8, 8)))
        assert load_image_folder(str(tmp_path)).images[:, 0, 0, 0].tolist() == [0, 1, 50, 10, 11]

    def test_damaged_image_is_named_and_nothing_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path / "cache"))
        write_tree(tmp_path / "data", ["a", "b"], images=2, side=8)
        (tmp_path / "data" / "b" / "1.png").write_bytes(png(plain(1, 8, 8))[:50])
        with pytest.raises(UserError, match=r"cannot read image .*b/1\.png"):
            load_image_folder(str(tmp_path / "data"))
        assert not list((tmp_path / "cache").glob("*.npy"))

    def test_one_colour(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for image in range(5):
                (tmp_path / name / f"{image}.png").write_bytes(png(plain(3, 8, 8)))
        with pytest.raises(UserError, match="all of one colour"):
            load_dataset("folder", str(tmp_path))

    def test_a_channel_without_contrast_becomes_zero(self, tmp_path: Path) -> None:
        """Red is 0 and 100, half of each: mean 50 and deviation 50 of 255; green is 51, blue 0."""
        for name in ("a", "b"):
            for split, count in (("train", 2), ("test", 1)):
                (tmp_path / split / name).mkdir(parents=True)
                for image in range(count):
                    pixels = np.full((8, 8, 3), (100 * image, 51, 0), dtype=np.uint8)
                    (tmp_path / split / name / f"{image}.png").write_bytes(png(pixels))
        dataset = load_dataset("folder", str(tmp_path))
        assert dataset.mean == pytest.approx((50 / 255, 51 / 255, 0.0))
        assert dataset.std == pytest.approx((50 / 255, 1.0, 1.0))
        inputs = normalize(dataset.train.images, dataset.mean, dataset.std)
        assert inputs[:, 0, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])
        assert inputs[:, 1:].abs().max() < 1e-6


class TestNames:
    def test_unknown(self) -> None:
        with pytest.raises(UserError, match=r"'mnist' is unknown.*digits, cifar10, cifar100, fol"):
            load_dataset("mnist")

    def test_folder_without_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FEDQUARC_DATA", raising=False)
        with pytest.raises(UserError, match=r"needs data\.root or FEDQUARC_DATA"):
            load_dataset("folder")

    def test_settings_of_a_folder_only(self) -> None:
        with pytest.raises(UserError, match="image_size applies to dataset 'folder' only"):
            load_dataset("digits", image_size=16)


def test_cifar_has_its_published_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", [png(plain(0)), png(plain(9))], [3, 7])
    monkeypatch.setenv("FEDQUARC_DATA", str(tmp_path))
    cifar10 = load_dataset("cifar10")
    assert cifar10.mean == (0.4914, 0.4822, 0.4465)
    assert cifar10.std == (0.2470, 0.2435, 0.2616)
    assert cifar10.train.labels.tolist() == [3, 7]
    assert cifar10.train.images[1, :, 4, 5].tolist() == [9, 10, 11]
    assert cifar10.flip
    assert cifar10.crop_padding == 4


@pytest.mark.skipif(not CIFAR100_PARQUET.is_dir(), reason="CIFAR-100 is not beside the checkout")
def test_real_cifar100(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 training and 100 test images of each class; the published means; decoded once."""
    load_dataset("cifar100", str(CIFAR100_PARQUET))

    def decode(*_: object, **__: object) -> None:
        pytest.fail("images that were decoded before are decoded again")

    monkeypatch.setattr("common.data.cifar.open_parquet", decode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar100 = load_dataset("cifar100", str(CIFAR100_PARQUET))
    assert cifar100.train.images.shape == (50_000, 3, 32, 32)
    assert cifar100.train.labels.bincount().tolist() == [500] * 100
    assert cifar100.test.labels.bincount().tolist() == [100] * 100
    assert cifar100.train.class_names[:2] == ("apple", "aquarium_fish")
    sums = cifar100.train.images.sum((0, 2, 3), dtype=torch.int64)
    means = sums / (50_000 * 32 * 32 * 255)
    assert means.tolist() == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)
    assert cifar100.mean == (0.5071, 0.4865, 0.4409)
    chosen = torch.tensor([0, 25_000, 49_999])
    assert torch.equal(cifar100.train.subset(chosen).images, cifar100.train.images[chosen])
