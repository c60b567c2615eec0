"""Tests of common.data.image_folder and common.data.image_decoding."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.image_decoding import decode_image
from common.data.image_folder import folder_source, list_images, training_folder
from common.errors import UserError
from tests.unit.image_files import plain, png, write_tree


def read_split(source_root: Path, split: str, image_size: int | None = None) -> np.ndarray:
    stream = folder_source(source_root, image_size=image_size).open().splits[split]
    return np.concatenate(list(stream.chunks()))


class TestDecodeImage:
    def test_pixels(self) -> None:
        pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
        assert np.array_equal(decode_image(BytesIO(png(pixels)), "here"), pixels)

    def test_grey_palette_and_alpha_become_rgb(self, tmp_path: Path) -> None:
        for mode, colour in (("L", 90), ("P", 0), ("RGBA", (90, 90, 90, 255)), ("1", 1)):
            image = Image.new(mode, (3, 2), colour)
            if mode == "P":
                image.putpalette([90, 90, 90])
            image.save(tmp_path / f"{mode}.png")
            pixels = decode_image(tmp_path / f"{mode}.png", "here")
            assert pixels.shape == (2, 3, 3)
            assert (pixels == (255 if mode == "1" else 90)).all()

    def test_sixteen_bits_keep_their_shades(self) -> None:
        """The upper byte of each pixel: 0x0000, 0x01ff, 0x8000, 0xffff are 0, 1, 128, 255."""
        pixels = np.array([[0x0000, 0x01FF], [0x8000, 0xFFFF]], dtype=np.uint16)
        grey = decode_image(BytesIO(png(pixels)), "here")
        assert grey.shape == (2, 2, 3)
        assert grey[..., 0].tolist() == [[0, 1], [128, 255]]
        assert (grey == grey[..., :1]).all()

    def test_turned_upright(self) -> None:
        """EXIF orientation 6: the camera was turned, rows are columns from right to left."""
        image = Image.new("RGB", (2, 1), (0, 0, 0))
        image.putpixel((0, 0), (255, 255, 255))
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = BytesIO()
        image.save(buffer, format="PNG", exif=exif)
        pixels = decode_image(buffer, "here")
        assert pixels[..., 0].tolist() == [[255], [0]]

    @pytest.mark.parametrize(
        ("orientation", "pixels"),
        [
            (1, [[1, 2, 3], [4, 5, 6]]),
            (2, [[3, 2, 1], [6, 5, 4]]),
            (3, [[6, 5, 4], [3, 2, 1]]),
            (4, [[4, 5, 6], [1, 2, 3]]),
            (5, [[1, 4], [2, 5], [3, 6]]),
            (6, [[4, 1], [5, 2], [6, 3]]),
            (7, [[6, 3], [5, 2], [4, 1]]),
            (8, [[3, 6], [2, 5], [1, 4]]),
        ],
    )
    def test_every_orientation(self, orientation: int, pixels: list[list[int]]) -> None:
        """Where row 0 and column 0 of what is stored are to be seen (EXIF 2.3, table 4.6.4): top
        and left, top and right, bottom and right, bottom and left, then left and top, right and
        top, right and bottom, left and bottom."""
        image = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = BytesIO()
        image.save(buffer, format="PNG", exif=exif)
        assert decode_image(buffer, "here")[..., 0].tolist() == pixels

    def test_exif_of_another_type_than_the_standards(self) -> None:
        """Orientation 6, and a unit of resolution that is the fraction 2/1, not a whole number."""
        entries = [
            struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
            struct.pack("<HHII", 0x0128, 5, 1, 38),
        ]
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries)
        exif += struct.pack("<III", 0, 2, 1)
        buffer = BytesIO()
        Image.fromarray(plain(40, 8, 16)).save(buffer, format="JPEG", exif=exif)
        assert decode_image(buffer, "here").shape == (16, 8, 3)

    def test_resized_by_the_shorter_side_and_cropped_in_the_middle(self) -> None:
        """8 high, 24 wide, in thirds of 10, 40, 70: the middle third stays. Halving averages four
        pixels in each direction with weights 1, 3, 3, 1: at the cut one in eight is a
        neighbour's, 40 -+ 30 / 8."""
        thirds = [plain(value, 8, 8) for value in (10, 40, 70)]
        pixels = decode_image(BytesIO(png(np.concatenate(thirds, axis=1))), "here", 4)
        assert pixels.shape == (4, 4, 3)
        assert (pixels[:, 1:3] == plain(40, 4, 2)).all()
        assert pixels[0, [0, 3], 0] == pytest.approx([40 - 30 / 8, 40 + 30 / 8], abs=0.51)

    def test_large_photograph(self) -> None:
        """Decoded at a fraction of its size by libjpeg, it still has the picture's two halves."""
        halves = np.concatenate([plain(40, 800, 500), plain(200, 800, 500)], axis=1)
        buffer = BytesIO()
        Image.fromarray(halves).save(buffer, format="JPEG", quality=95)
        pixels = decode_image(buffer, "here", 16).astype(int)
        assert pixels.shape == (16, 16, 3)
        assert abs(pixels[:, :7, 0] - 40).max() <= 3
        assert abs(pixels[:, 9:, 0] - 200).max() <= 3

    @pytest.mark.parametrize("data", [b"", b"no image", png(plain(1))[:-30], png(plain(1))[:40]])
    def test_damaged(self, data: bytes) -> None:
        with pytest.raises(UserError, match=r"cannot read image number 7"):
            decode_image(BytesIO(data), "number 7")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"gone\.png"):
            decode_image(tmp_path / "gone.png", str(tmp_path / "gone.png"))


class TestListImages:
    def test_classes_files_and_labels(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["dog", "cat"], images=2)
        (tmp_path / "cat" / "notes.txt").write_text("not an image")
        (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
        (tmp_path / ".cache").mkdir()
        (tmp_path / "dog" / "2.JPEG").write_bytes(b"")
        listing = list_images(tmp_path)
        assert listing.class_names == ("cat", "dog")
        assert list(listing.files) == [
            "cat/0.png",
            "cat/1.png",
            "dog/0.png",
            "dog/1.png",
            "dog/2.JPEG",
        ]
        assert listing.labels.tolist() == [0, 0, 1, 1, 1]

    def test_numbered_classes_are_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["10", "9", "0"])
        assert list_images(tmp_path).class_names == ("0", "9", "10")

    def test_agreed_classes(self, tmp_path: Path) -> None:
        """A device without birds still has the label of a dog that all have."""
        write_tree(tmp_path, ["dog", "cat"])
        listing = list_images(tmp_path, ("dog", "bird", "cat"))
        assert listing.class_names == ("dog", "bird", "cat")
        assert dict(zip(listing.files, listing.labels.tolist(), strict=True)) == {
            "cat/0.png": 2,
            "dog/0.png": 0,
        }

    def test_unknown_classes(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["dog", "fox", "owl"])
        with pytest.raises(UserError, match=r"not among the 2 classes.*: fox, owl \(.*cat, dog\)"):
            list_images(tmp_path, ("cat", "dog"))

    def test_empty_class_folder(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["cat", "dog"])
        (tmp_path / "ant").mkdir()
        with pytest.raises(UserError, match=r"class folder .*ant holds no"):
            list_images(tmp_path)
        assert len(list_images(tmp_path, ("ant", "cat", "dog")).files) == 2

        assert len(list_images(tmp_path, may_lack_images=True).files) == 2

    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"holds no images: expected CLASS"):
            list_images(tmp_path)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cannot read image folder .*gone"):
            list_images(tmp_path / "gone")


class TestTrainingFolder:
    def test_beside_a_test_folder(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", ["ant"])
        (tmp_path / "train" / "preview.png").write_bytes(b"")
        assert training_folder(tmp_path) == tmp_path / "train"

    def test_train_is_a_class_as_others(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["train", "tram"])
        assert training_folder(tmp_path) == tmp_path
        assert folder_source(tmp_path, with_test=False).open().class_names == ("train", "tram")

    def test_without_classes(self, tmp_path: Path) -> None:
        assert training_folder(tmp_path) == tmp_path
        (tmp_path / "train").mkdir()
        assert training_folder(tmp_path) == tmp_path / "train"


class TestFolderSource:
    @pytest.mark.parametrize("name", ["test", "val"])
    def test_test_folder(self, name: str, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", ["a", "b"], images=2)
        write_tree(tmp_path / name, ["a", "b"], images=1)
        opened = folder_source(tmp_path).open()
        assert opened.splits["train"].labels.tolist() == [0, 0, 1, 1]
        assert opened.splits["test"].labels.tolist() == [0, 1]
        # image i of class c is plain(10 c + i)
        assert read_split(tmp_path, "train")[:, 0, 0, 0].tolist() == [0, 1, 10, 11]

    def test_a_fifth_is_held_out_of_each_class(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["a", "b"], images=5, side=4)
        opened = folder_source(tmp_path).open()
        assert np.bincount(opened.splits["train"].labels).tolist() == [4, 4]
        assert np.bincount(opened.splits["test"].labels).tolist() == [1, 1]
        values = [read_split(tmp_path, split)[:, 0, 0, 0].tolist() for split in ("train", "test")]
        assert sorted(values[0] + values[1]) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
        assert values[1] == read_split(tmp_path, "test")[:, 0, 0, 0].tolist()

    def test_without_test_part_all_are_for_training(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", ["a", "b"], images=3, side=4)
        write_tree(tmp_path / "test", ["a", "b"], side=4)
        opened = folder_source(tmp_path, with_test=False).open()
        assert list(opened.splits) == ["train"]
        assert len(opened.splits["train"].labels) == 6

    def test_too_few_to_hold_out(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["a", "b"])
        with pytest.raises(UserError, match=r"2 images, too few to hold out"):
            folder_source(tmp_path).open()

    def test_test_class_that_is_not_trained(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", ["a", "b"])
        write_tree(tmp_path / "test", ["a", "c"])
        with pytest.raises(UserError, match=r"test has class folders that are not .*: c "):
            folder_source(tmp_path)

    def test_sizes_differ(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "train", ["a", "b"], images=2, side=8)
        write_tree(tmp_path / "test", ["a", "b"], side=8)
        (tmp_path / "train" / "b" / "1.png").write_bytes(png(plain(3, 6, 9)))
        with pytest.raises(UserError, match=r"b/1\.png has 9x6 pixels.*8x8.*data\.image-size"):
            read_split(tmp_path, "train")
        assert read_split(tmp_path, "train", image_size=4).shape == (4, 4, 4, 3)

    def test_test_images_of_another_size(self, tmp_path: Path) -> None:
        """Sizes are compared with the first training image, which the message names."""
        write_tree(tmp_path / "train", ["a", "b"], side=8)
        write_tree(tmp_path / "test", ["a", "b"], side=6)
        with pytest.raises(
            UserError, match=r"test/a/0\.png has 6x6 pixels, .*train/a/0\.png has 8x8"
        ):
            read_split(tmp_path, "test")

    def test_state_follows_the_files(self, tmp_path: Path) -> None:
        write_tree(tmp_path, ["a", "b"], images=2)
        before = folder_source(tmp_path)
        assert folder_source(tmp_path).state == before.state
        (tmp_path / "a" / "2.png").write_bytes(png(plain(9)))
        after = folder_source(tmp_path)
        assert after.state != before.state
        assert after.location == before.location
        assert folder_source(tmp_path, image_size=8).location != before.location
