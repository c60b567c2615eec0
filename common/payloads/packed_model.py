"""The low-bit model as one file: integer codes and steps, the rest as float32.

The file is a payload of `common.payloads.updates` (format "codes", checksummed) whose metadata say
which architecture and quantization settings it belongs to: `load_packed_model` needs nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from common.atomic_file import replacing
from common.config import QuantizationConfig
from common.errors import UserError
from common.models import create_model, load_state, model_state
from common.payloads import wire
from common.payloads.updates import encode_codes
from common.qat import prepare, quantized_weights
from common.settings import Scalar, build_section, flatten

SUFFIX = ".fqrc"
_SECTION = "quantization"


def save_packed_model(
    path: str | os.PathLike[str],
    prepared: nn.Module,
    *,
    model_name: str,
    dataset_name: str,
    num_classes: int,
    in_channels: int,
    quantization: QuantizationConfig,
) -> int:
    """Write a prepared model's codes atomically; returns the file's bytes.

    Args:
        path: ends in ``.fqrc``; its folder exists.
        prepared: what `common.qat.prepare` made with ``quantization``.
        model_name: one of `common.models.MODEL_NAMES`.
        dataset_name: what it was trained on, for information.
        num_classes: width of its logits.
        in_channels: channels of its images.
        quantization: its settings.

    Raises:
        ValueError: ``path`` has another suffix, or a value is not finite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, not {path.name!r}")
    metadata: dict[str, str | int | float] = {
        "model": model_name,
        "dataset": dataset_name,
        "num-classes": num_classes,
        "in-channels": in_channels,
        **flatten(quantization, _SECTION),
    }
    payload = encode_codes(model_state(prepared), quantized_weights(prepared), metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(payload)
    return len(payload)


def load_packed_model(path: str | os.PathLike[str]) -> nn.Module:
    """The model of a packed file, in eval mode: bit for bit the logits of the prepared model.

    Weights are codes times steps; quantizing them again gives the same codes, so the prepared
    architecture serves as it is.

    Raises:
        UserError: the file is missing, damaged or not a packed model.
    """
    path = Path(path)
    try:
        tensors, metadata = wire.decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"packed model {path} cannot be read: {error.strerror}") from error
    except wire.WireError as error:
        raise UserError(f"packed model {path} is damaged: {error}") from error
    settings: dict[str, Scalar] = dict(metadata)
    try:
        architecture = create_model(
            str(metadata["model"]),
            num_classes=int(metadata["num-classes"]),
            in_channels=int(metadata["in-channels"]),
        )
        model = prepare(architecture, build_section(QuantizationConfig, _SECTION, settings))
        load_state(model, {name: tensor.dequantize() for name, tensor in tensors.items()})
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a packed model: {error}") from error
    return model.eval()
