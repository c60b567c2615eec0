"""The low-bit model in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.config import QuantizationConfig
from common.data.input_spec import InputSpec
from common.errors import UserError
from common.models import create_model
from common.payloads.packed_model import load_packed_model, save_packed_model
from common.qat import calibrate, prepare

INPUTS = InputSpec(
    dataset_name="digits",
    class_names=("nought", "one", "two", "drei"),
    channels=1,
    height=8,
    width=8,
    mean=(0.1,),
    std=(1 / 3,),
    crop_padding=1,
    flip=False,
)


def prepared_model(quantization: QuantizationConfig) -> nn.Module:
    """A resnet8 with statistics and steps that are not the initial ones."""
    generator = torch.Generator().manual_seed(3)
    model = create_model("resnet8", num_classes=4, in_channels=1, generator=generator)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    with torch.no_grad():
        model.train()(images)
    prepared = prepare(model, quantization)
    calibrate(prepared, [images], quantization)
    with torch.no_grad():
        for name, parameter in prepared.named_parameters():
            if name.endswith("step"):
                parameter.mul_(1.37)
    return prepared.eval()


def save(path: Path, prepared: nn.Module, quantization: QuantizationConfig) -> int:
    return save_packed_model(
        path,
        prepared,
        model_name="resnet8",
        inputs=INPUTS,
        quantization=quantization,
    )


@pytest.mark.parametrize(
    "quantization",
    [
        QuantizationConfig(),
        QuantizationConfig(weight_bits=3, granularity="channel"),
        QuantizationConfig(weight_bits=4, activation_bits=4, quantizer="lsq+"),
        QuantizationConfig(weight_bits=32),
    ],
    ids=["2w32a", "3w32a-channel", "4w4a-lsq+", "float"],
)
def test_logits_are_those_of_the_prepared_model(
    tmp_path: Path, quantization: QuantizationConfig
) -> None:
    """Bit for bit: codes are lossless for the deployed model."""
    prepared = prepared_model(quantization)
    save(tmp_path / "model.fqrc", prepared, quantization)
    loaded = load_packed_model(tmp_path / "model.fqrc")
    assert loaded.inputs == INPUTS
    assert not loaded.network.training
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert torch.equal(loaded.network(images), prepared(images))


def test_two_bits_are_small(tmp_path: Path) -> None:
    """About 1/16 of float32 for the inner weights; edges, BN and header make it less than 1/10."""
    sizes = {
        bits: save(tmp_path / f"{bits}.fqrc", prepared_model(quantization), quantization)
        for bits in (2, 32)
        for quantization in [QuantizationConfig(weight_bits=bits)]
    }
    assert sizes[2] == (tmp_path / "2.fqrc").stat().st_size
    assert sizes[2] < sizes[32] / 10


@pytest.mark.parametrize("position", [0, 20, -20])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, position: int) -> None:
    path = tmp_path / "model.fqrc"
    save(path, prepared_model(QuantizationConfig()), QuantizationConfig())
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.fqrc is damaged"):
        load_packed_model(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.fqrc cannot be read"):
        load_packed_model(tmp_path / "none.fqrc")


def test_another_payload_is_no_packed_model(tmp_path: Path) -> None:
    from common.payloads.updates import encode_float

    (tmp_path / "update.fqrc").write_bytes(encode_float({}, "float32", {}))
    with pytest.raises(UserError, match="is not a packed model: it does not say its 'inputs'"):
        load_packed_model(tmp_path / "update.fqrc")


def test_another_suffix_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.fqrc"):
        save(tmp_path / "model.bin", prepared_model(QuantizationConfig()), QuantizationConfig())
