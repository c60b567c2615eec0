"""The low-bit model as one file: integer codes and steps, the rest as float32.

The file is a payload of `common.payloads.updates` (format "codes", checksummed) whose metadata say
which architecture and quantization settings it belongs to, and which images it takes:
`load_packed_model` needs nothing else.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from common.atomic_file import replacing
from common.config import QuantizationConfig
from common.data.input_spec import InputSpec
from common.errors import UserError
from common.models import create_model, load_state, model_state
from common.payloads import wire
from common.payloads.updates import encode_codes
from common.qat import prepare, quantized_weights
from common.settings import Scalar, build_section, flatten

SUFFIX = ".fqrc"
_SECTION = "quantization"


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """What a packed file holds."""

    network: nn.Module
    """In eval mode; normalised images [n, channels, height, width] to logits [n, classes]."""
    inputs: InputSpec
    """The images that it takes, and the classes of its logits."""


def save_packed_model(
    path: str | os.PathLike[str],
    prepared: nn.Module,
    *,
    model_name: str,
    inputs: InputSpec,
    quantization: QuantizationConfig,
) -> int:
    """Write a prepared model's codes atomically; returns the file's bytes.

    Args:
        path: ends in ``.fqrc``; its folder exists.
        prepared: what `common.qat.prepare` made with ``quantization``.
        model_name: one of `common.models.MODEL_NAMES`.
        inputs: the images that it was trained on.
        quantization: its settings.

    Raises:
        ValueError: ``path`` has another suffix, or a value is not finite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, not {path.name!r}")
    metadata: dict[str, str | int | float] = {
        "model": model_name,
        "inputs": json.dumps(asdict(inputs)),
        **flatten(quantization, _SECTION),
    }
    payload = encode_codes(model_state(prepared), quantized_weights(prepared), metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(payload)
    return len(payload)


def load_packed_model(path: str | os.PathLike[str]) -> PackedModel:
    """The model of a packed file: bit for bit the logits of the prepared model.

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
        inputs = InputSpec.from_fields(json.loads(str(metadata["inputs"])))
        architecture = create_model(
            str(metadata["model"]),
            num_classes=len(inputs.class_names),
            in_channels=inputs.channels,
        )
        network = prepare(architecture, build_section(QuantizationConfig, _SECTION, settings))
        load_state(network, {name: tensor.dequantize() for name, tensor in tensors.items()})
    except KeyError as error:
        raise UserError(f"{path} is not a packed model: it does not say its {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a packed model: {error}") from error
    return PackedModel(network=network.eval(), inputs=inputs)
