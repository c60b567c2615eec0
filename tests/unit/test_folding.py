"""A folded model gives the outputs of the frozen one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client.features import FeatureTap
from common.config import QuantizationConfig
from common.folding import fold_batch_norm
from common.models import MODEL_NAMES, create_model, feature_layers
from common.qat import prepare
from common.quantized_layers import ActivationQuantizer, IntConv2d


def test_weights_and_bias() -> None:
    """y = 3 (2 x + 5 - 1) / sqrt(4) + 7 = 3 x + 13: epsilon is part of the 4."""
    convolution, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.5)
    with torch.no_grad():
        for parameter, value in (
            (convolution.weight, 2.0),
            (convolution.bias, 5.0),
            (norm.weight, 3.0),
            (norm.bias, 7.0),
        ):
            assert parameter is not None
            parameter.fill_(value)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(3.5)
    folded = fold_batch_norm(nn.Sequential(convolution, norm))
    inputs = torch.tensor([-1.0, 0.0, 2.0]).reshape(3, 1, 1, 1)
    assert folded(inputs).flatten().tolist() == pytest.approx([10.0, 13.0, 19.0])
    assert convolution.weight.item() == 2.0


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_and_features_of_every_model(name: str) -> None:
    """In float64, where rounding is out of sight, with statistics unlike a fresh model's."""
    generator = torch.Generator().manual_seed(0)
    model = create_model(name, num_classes=10, generator=generator).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                assert values is not None
                values.uniform_(low, high, generator=generator)
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    expected, actual = outputs(model, images), outputs(folded, images)
    assert len(expected) == len(feature_layers(model)) + 1
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with FeatureTap(model, feature_layers(model)) as tap:
        logits = model(images)
        return [*tap.take(), logits]


def test_integer_weights_keep_their_codes() -> None:
    """Codes 2 and -1 of step 0.5 times 3 / 2, or times -1 / 2: as above, with steps by channel.

    Inputs are codes of step 1.
    """
    convolution, norm = IntConv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.5)
    del convolution.weight
    convolution.register_buffer(
        "weight_codes", torch.tensor([2, -1], dtype=torch.int8).reshape(2, 1, 1, 1)
    )
    convolution.register_buffer("weight_step", torch.tensor(0.5))
    convolution.input_quantizer = ActivationQuantizer(8, signed=True)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([3.0, -1.0]))
        norm.bias.copy_(torch.tensor([7.0, 1.0]))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.fill_(3.5)
    folded = fold_batch_norm(nn.Sequential(convolution, norm))
    inputs = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1)
    assert folded(inputs).flatten().tolist() == pytest.approx([4.0, 0.75, 8.5, 1.5])
    layer = folded[0]  # type: ignore[index]
    assert layer.weight_codes.flatten().tolist() == [2, -1]
    assert layer.weight_step.flatten().tolist() == pytest.approx([0.75, -0.25])
    assert convolution.weight_step.item() == 0.5


def test_weights_that_are_still_trained_are_refused() -> None:
    """Times a factor they would have other codes."""
    prepared = prepare(create_model("resnet8", num_classes=10), QuantizationConfig())
    with pytest.raises(ValueError, match="bn1: there is no convolution right before it"):
        fold_batch_norm(prepared)


def test_memory_layout_is_kept() -> None:
    folded = fold_batch_norm(create_model("resnet8", num_classes=10))
    weights = [module.weight for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)),
        # Of other channels: where the modules are not in the order of the pass.
        (nn.Identity(), nn.Conv2d(2, 1, 1), nn.BatchNorm2d(2)),
    ],
)
def test_a_normalisation_without_a_convolution_is_refused(layers: tuple[nn.Module, ...]) -> None:
    with pytest.raises(ValueError, match="2: there is no convolution right before it"):
        fold_batch_norm(nn.Sequential(*layers))
