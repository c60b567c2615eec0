"""A packed model as ONNX, run by ONNX Runtime."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from client.cli import main
from client.onnx_export import export_onnx
from common.config import QuantizationConfig
from common.errors import UserError
from common.models import create_model
from common.payloads.packed_model import PackedModel, save_packed_model
from common.qat import activation_quantizers, calibrate, convert, prepare
from tests.unit.folder_inputs import FOLDER_INPUTS

PIXELS = np.random.default_rng(3).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)


def normalised(pixels: np.ndarray) -> torch.Tensor:
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (FOLDER_INPUTS.mean, FOLDER_INPUTS.std)
    )
    return (torch.from_numpy(pixels) / 255 - mean) / std


def model_of(config: QuantizationConfig) -> PackedModel:
    """A ResNet-8 with statistics unlike a fresh model's; half its factors are negative."""
    generator = torch.Generator().manual_seed(5)
    network = create_model("resnet8", num_classes=2, in_channels=3, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, -1.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                assert values is not None
                values.uniform_(low, high, generator=generator)
    prepared = prepare(network, config).eval()
    calibrate(prepared, [normalised(PIXELS)], config)
    return PackedModel(network=prepared, inputs=FOLDER_INPUTS)


def logits_of(path: Path, pixels: np.ndarray, *, exact: bool = False) -> np.ndarray:
    """``exact``: without what ONNX Runtime rounds for its 8-bit kernels."""
    disabled = ["WeightBiasQuantization"] if exact else None
    session = onnxruntime.InferenceSession(path, disabled_optimizers=disabled)
    return np.asarray(session.run(["logits"], {"images": pixels})[0])


@pytest.mark.parametrize(
    "config",
    [
        QuantizationConfig(weight_bits=2, activation_bits=32),
        QuantizationConfig(weight_bits=2, activation_bits=4, granularity="channel"),
        QuantizationConfig(weight_bits=4, activation_bits=3, quantizer="lsq+"),
        QuantizationConfig(weight_bits=32, activation_bits=8),
    ],
    ids=["2w32a", "2w4a by channel", "4w3a lsq+", "32w8a"],
)
def test_logits_and_codes_are_those_of_the_packed_model(
    tmp_path: Path, config: QuantizationConfig
) -> None:
    """But for an image of which a value between two activation codes was rounded the other way."""
    model = model_of(config)
    num_bytes = export_onnx(model, tmp_path / "a.onnx")
    assert num_bytes == (tmp_path / "a.onnx").stat().st_size
    with torch.no_grad():
        expected = model.network(normalised(PIXELS)).numpy()
    logits = logits_of(tmp_path / "a.onnx", PIXELS, exact=config.activation_bits == 8)
    differences = np.abs(logits - expected).max(axis=1)
    assert np.sort(differences)[-2] < 1e-3 * expected.std()

    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer
        if tensor.name.endswith("weight_codes")
    }
    codes = {
        f"network.{name}": buffer.numpy()
        for name, buffer in convert(model.network).named_buffers()
        if name.endswith("weight_codes")
    }
    assert stored.keys() == codes.keys()
    assert len(codes) == (0 if config.weight_bits == 32 else 10)
    for name, values in codes.items():
        assert values.dtype == stored[name].dtype == np.int8
        np.testing.assert_array_equal(stored[name], values)


def test_a_value_by_hand(tmp_path: Path) -> None:
    """A white pixel, 1, is clipped to the code 7, 0.7; 0.7 x 1.5 + 1.46 = 2.51 has the code 13 of
    0.2, 2.6 + 0.04 = 2.64 the code 11 of 0.25, 2.75 x -2 + 1 = -4.5.

    A black one, -1, is clipped to the code -8, -0.8; -0.8 x 1.5 + 1.46 = 0.26 has the code 1,
    0.2 + 0.04 = 0.24 the code 1, 0.25 x -2 + 1 = 0.5. With the bias 0.04 rounded to a multiple of
    0.2 x 0.5 white would have the code 10 in place of 11.
    """
    config = QuantizationConfig(weight_bits=4, activation_bits=4, edge_bits=4)
    network = nn.Sequential(
        *(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)),
    )
    prepared = prepare(network, config).eval()
    with torch.no_grad():
        for index, step, weight, weight_step, bias in (
            (0, 0.1, 1.5, 0.5, 1.46),
            (4, 0.2, 1.0, 0.5, 0.04),
            (6, 0.25, -2.0, 0.25, 1.0),
        ):
            layer = prepared[index]  # type: ignore[index]
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
            layer.weight_quantizer.step.fill_(weight_step)
            layer.input_quantizer.step.fill_(step)
    inputs = replace(
        FOLDER_INPUTS, class_names=("a",), channels=1, height=1, width=1, mean=(0.5,), std=(0.5,)
    )
    export_onnx(PackedModel(network=prepared, inputs=inputs), tmp_path / "a.onnx")
    pixels = np.array([255, 0], np.uint8).reshape(2, 1, 1, 1)
    assert logits_of(tmp_path / "a.onnx", pixels).ravel() == pytest.approx([-4.5, 0.5])


def test_any_number_of_images_and_names_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = QuantizationConfig()
    save_packed_model(
        tmp_path / "a.fqrc",
        model_of(config).network,
        model_name="resnet8",
        inputs=FOLDER_INPUTS,
        quantization=config,
    )
    path = tmp_path / "new" / "a.onnx"
    assert main(["export", str(tmp_path / "a.fqrc"), str(path)]) == 0
    assert capsys.readouterr().out == (
        f"{path}: {path.stat().st_size:,} bytes; 'images': uint8 [n, 3, 8, 8], "
        f"'logits': float32 [n, 2]\n"
    )
    assert [len(logits_of(path, PIXELS[:n])) for n in (1, 5)] == [1, 5]
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["class-names"]) == ["ant", "bee"]
    # Torch notes for each node where in which file it was written, by its whole path.
    assert b".py" not in path.read_bytes()
    onnx.checker.check_model(path, full_check=True)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = model_of(QuantizationConfig(activation_bits=8))
    before = model.network(normalised(PIXELS))
    export_onnx(model, tmp_path / "a.onnx")
    torch.testing.assert_close(model.network(normalised(PIXELS)), before, rtol=0, atol=0)
    assert {type(quantizer).__name__ for _, quantizer in activation_quantizers(model.network)} == {
        "ActivationQuantizer"
    }


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(QuantizationConfig())
    with pytest.raises(UserError, match=r"a\.tflite: expected a name that ends in \.onnx"):
        export_onnx(model, tmp_path / "a.tflite")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.onnx cannot be written: "):
        export_onnx(model, tmp_path / "file" / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs the package 'onnxscript'.*fedquarc\[onnx\]"):
        export_onnx(model, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
