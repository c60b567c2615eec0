"""Images classified by a packed model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client import predict as predict_module
from client.cli import main
from client.predict import find_images, predict
from common.config import QuantizationConfig
from common.data.input_spec import InputSpec
from common.errors import UserError
from common.models import create_model
from common.payloads.packed_model import PackedModel, save_packed_model
from common.qat import prepare
from tests.unit.folder_inputs import FOLDER_INPUTS
from tests.unit.image_files import plain, png, write_tree


def model_of(inputs: InputSpec = FOLDER_INPUTS) -> PackedModel:
    network = create_model(
        "resnet8",
        num_classes=2,
        in_channels=inputs.channels,
        generator=torch.Generator().manual_seed(5),
    )
    return PackedModel(network=prepare(network, QuantizationConfig()).eval(), inputs=inputs)


def sure_model() -> PackedModel:
    """Logits 0 and ln 3, whatever the image: chances of 1/4 and 3/4."""
    model = model_of()
    with torch.no_grad():
        model.network.fc.weight.zero_()  # type: ignore[union-attr, operator]
        model.network.fc.bias.copy_(torch.tensor([0.0, math.log(3)]))  # type: ignore[union-attr, operator]
    return model


def test_every_image_has_its_likeliest_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images in batches of two."""
    monkeypatch.setattr(predict_module, "BATCH_SIZE", 2)
    write_tree(tmp_path, ["x"], images=5, side=8)
    images = find_images([tmp_path])
    predictions = list(predict(sure_model(), images))
    assert [prediction.image for prediction in predictions] == images
    assert {prediction.class_name for prediction in predictions} == {"bee"}
    assert [prediction.probability for prediction in predictions] == pytest.approx([0.75] * 5)


@pytest.mark.parametrize("channels", [3, 1])
def test_images_are_resized_and_normalised_as_in_training(tmp_path: Path, channels: int) -> None:
    """A plain image of 32 x 32 is one of 8 x 8; (200, 201, 202) is 201 in grey."""
    inputs = replace(
        FOLDER_INPUTS,
        channels=channels,
        mean=FOLDER_INPUTS.mean[:channels],
        std=FOLDER_INPUTS.std[:channels],
    )
    model = model_of(inputs)
    (tmp_path / "a.png").write_bytes(png(plain(200)))
    values = np.array([200, 201, 202] if channels == 3 else [201]) / 255
    pixels = (values - inputs.mean) / inputs.std
    batch = torch.tensor(pixels, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, 8, 8)
    with torch.no_grad():
        expected = model.network(batch).softmax(dim=1)[0]
    [prediction] = predict(model, [tmp_path / "a.png"])
    assert prediction.class_name == FOLDER_INPUTS.class_names[int(expected.argmax())]
    assert prediction.probability == pytest.approx(float(expected.max()), rel=1e-4)


def test_another_shape_is_not_distorted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(plain(0, height=8, width=8)))
    with pytest.raises(UserError, match=r"a\.png has 8x8 pixels, the model's images 6x8"):
        list(predict(model_of(replace(FOLDER_INPUTS, width=6)), [tmp_path / "a.png"]))


def test_folders_are_searched_and_files_are_taken_as_named(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/c/1.jpg", "a/.hidden/0.png", "a/._0.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "notes.txt", tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in found] == [
        "notes.txt",
        "a/c/1.jpg",
        "b/2.PNG",
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist"):
        find_images([tmp_path / "none"])
    with pytest.raises(UserError, match="holds no images"):
        find_images([tmp_path])


def save_sure_model(folder: Path) -> Path:
    path = folder / "best.fqrc"
    save_packed_model(
        path,
        sure_model().network,
        model_name="resnet8",
        inputs=FOLDER_INPUTS,
        quantization=QuantizationConfig(),
    )
    return path


def test_the_command_prints_a_table_and_how_many_are_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image of each of three folders, two of which are classes: all are "bee"."""
    model, images = save_sure_model(tmp_path), tmp_path / "images"
    write_tree(images, ["ant", "bee", "new"], side=8)
    assert main(["predict", str(model), str(images)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "image,class,probability",
        f"{images}/ant/0.png,bee,0.7500",
        f"{images}/bee/0.png,bee,0.7500",
        f"{images}/new/0.png,bee,0.7500",
    ]
    assert printed.err == "Top-1 50.00 % of the 2 images whose folders are named as classes\n"


def test_the_command_refuses_before_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tmp_path / "none.fqrc"), str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert "none.fqrc cannot be read" in printed.err


@pytest.mark.parametrize(("num_good", "num_lines"), [(0, 0), (1, 0), (2, 3), (3, 3)])
def test_a_table_has_its_head_with_its_first_lines(
    num_good: int,
    num_lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Batches of two, of which one with a damaged image ends the table: 2 lines and a head."""
    monkeypatch.setattr(predict_module, "BATCH_SIZE", 2)
    model, images = save_sure_model(tmp_path), tmp_path / "images"
    write_tree(images, ["ant"], images=num_good, side=8)
    (images / "z.png").write_bytes(b"no image")
    assert main(["predict", str(model), str(images)]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == num_lines
    assert "z.png" in printed.err


@pytest.mark.parametrize("arguments", [["", "a.png"], ["best.fqrc", "a.png", ""]])
def test_an_empty_path_is_not_the_current_folder(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *arguments])
    assert "expected a path, not ''" in capsys.readouterr().err
