"""A trained low-bit model as an ONNX file, for runtimes other than PyTorch.

The form is ONNX's own of quantized networks: weights are integer codes behind a DequantizeLinear,
quantized activations pass through a QuantizeLinear and a DequantizeLinear, which runtimes with
integer kernels fuse with the layer between. Batch normalisation is folded into the steps, one of
which there is for each output channel then; the codes are those of the packed model. Codes of 2 to
7 bits take a byte each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.atomic_file import replacing
from common.data.input_spec import InputSpec
from common.errors import UserError
from common.extras import import_extra
from common.folding import fold_batch_norm
from common.payloads.packed_model import PackedModel
from common.qat import convert
from common.quantized_layers import ActivationQuantizer, IntConv2d, IntLinear

SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "logits"
CLASS_NAMES_KEY = "class-names"
OPSET = 21
INTEGER_BITS = 8
"""Of the integers that QuantizeLinear makes."""


def export_onnx(model: PackedModel, path: Path) -> int:
    """Write the model as ONNX, atomically; returns the file's bytes.

    Input "images": uint8 [n, channels, height, width], normalised within. Output "logits": float32
    [n, classes]. The classes' names are a JSON list in the file's metadata ("class-names").

    Raises:
        UserError: the packages that write ONNX are not installed, ``path`` has another suffix, or
            it cannot be written.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: expected a name that ends in {SUFFIX}")
    for package in ("onnx", "onnxscript"):
        import_extra(package, needed_for="writing ONNX", extra="onnx")
    content = _to_onnx(model)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return len(content)


def _to_onnx(model: PackedModel) -> bytes:
    network = _Deployed(fold_batch_norm(convert(model.network)), model.inputs).eval()
    for layer in network.modules():
        if type(layer) in _EXPORTED:
            layer.__class__ = _EXPORTED[type(layer)]
    inputs = model.inputs
    images = torch.zeros(2, inputs.channels, inputs.height, inputs.width, dtype=torch.uint8)
    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        # Where in the source, with whole paths, it came from.
        del node.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = CLASS_NAMES_KEY, json.dumps(inputs.class_names)
    content: bytes = proto.SerializeToString()
    return content


class _Deployed(nn.Module):
    """Pixels to logits.

    Normalised as by `common.data.augmentation.normalize`, whose way by rows of pixels would put
    transpositions into the file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, inputs: InputSpec) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(inputs, name)).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images.float() / 255 - self.mean) / self.std)
        return logits


class _Input(ActivationQuantizer):
    def forward(self, values: Tensor) -> Tensor:
        step, offset = self.step.detach(), self.offset
        if offset is not None:
            values = values - offset.detach()
        if self.bits < INTEGER_BITS:  # or else the type's own range is that of the codes
            values = _node("Clip", (values, self.q_n * step, self.q_p * step), torch.float32)
        dtype = torch.int8 if self.q_n < 0 else torch.uint8
        scale = (step, torch.zeros((), dtype=dtype))
        codes = _node("QuantizeLinear", (values, *scale), dtype)
        values = _node("DequantizeLinear", (codes, *scale), torch.float32)
        return values if offset is None else values + offset.detach()


class _Conv2d(IntConv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs, weights = self._inputs(inputs), _weights(self.weight_codes, self.weight_step)
        if self.bias is None or not _has_coarse_inputs(self):
            return self._conv_forward(inputs, weights, self.bias)
        return self._conv_forward(inputs, weights, None) + self.bias.view(-1, 1, 1)


class _Linear(IntLinear):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs, weights = self._inputs(inputs), _weights(self.weight_codes, self.weight_step)
        if self.bias is None or not _has_coarse_inputs(self):
            return functional.linear(inputs, weights, self.bias)
        return functional.linear(inputs, weights) + self.bias


def _has_coarse_inputs(layer: IntConv2d | IntLinear) -> bool:
    """Whether its bias must not be part of it.

    Runtimes round a bias to multiples of input step times weight step, for their integer kernels.
    With the large steps of 4 bits that changed 7 % of all predictions (ResNet-20), for kernels that
    are there for 8 bits only.
    """
    return layer.input_quantizer is not None and layer.input_quantizer.bits < INTEGER_BITS


_EXPORTED: dict[type[nn.Module], Any] = {
    ActivationQuantizer: _Input,
    IntConv2d: _Conv2d,
    IntLinear: _Linear,
}
"""Layers of an integer model -> those that are traced in their place."""


def _weights(codes: Tensor, step: Tensor) -> Tensor:
    if step.numel() == 1:
        return _node("DequantizeLinear", (codes, step.reshape(())), torch.float32)
    return _node("DequantizeLinear", (codes, step.reshape(-1)), torch.float32, axis=0)


def _node(operation: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, **attrs: Any) -> Tensor:
    """An ONNX operation by name, elementwise on its first input."""
    return torch.onnx.ops.symbolic(
        operation, inputs, attrs=attrs, dtype=dtype, shape=inputs[0].shape, version=OPSET
    )
