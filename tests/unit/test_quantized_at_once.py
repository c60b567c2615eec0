"""Tests of common.quantized_layers.quantized_at_once: nothing but the time may change."""

import copy

import pytest
import torch
from torch import Tensor, nn

from client.losses import cross_entropy
from client.task import training_task
from client.trainer import train
from common import quantized_layers as module
from common.config import Config, QuantizationConfig
from common.models import create_model
from common.precision import forward_in
from common.qat import calibrate, convert, prepare, quantized_layers
from common.quantized_layers import QuantizedLayer, quantized_at_once
from common.seeding import torch_generator
from simulations.bench import noise

CPU = torch.device("cpu")


def images(num_images: int = 4) -> Tensor:
    batch = torch.randn(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return batch.to(memory_format=torch.channels_last)


def prepared(config: QuantizationConfig) -> nn.Module:
    model = prepare(create_model("resnet8", num_classes=5), config)
    calibrate(model, [images()], config)
    return model.train()


def layers_of(model: nn.Module) -> list[QuantizedLayer]:
    return [layer for _, layer in quantized_layers(model)]


@pytest.mark.parametrize(
    "config",
    [
        QuantizationConfig(weight_bits=2, activation_bits=32),
        QuantizationConfig(weight_bits=4, activation_bits=4, granularity="channel"),
        QuantizationConfig(weight_bits=4, activation_bits=4, quantizer="lsq+"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("most", [module.MOST_AT_ONCE, 2000])
def test_outputs_and_gradients_are_those_of_layers_alone(
    config: QuantizationConfig, precision: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; with 2,000 as the most, ResNet-8's first layer and its last are small."""
    monkeypatch.setattr(module, "MOST_AT_ONCE", most)
    together = prepared(config)
    alone = copy.deepcopy(together)
    with forward_in(precision, CPU), quantized_at_once(layers_of(together)):
        logits = together(images())
    with forward_in(precision, CPU):
        expected = alone(images())
    assert torch.equal(logits, expected)
    labels = torch.tensor([0, 1, 2, 3])
    for outputs in (logits, expected):
        cross_entropy(outputs.float(), labels).backward()
    for (name, parameter), twin in zip(
        together.named_parameters(), alone.parameters(), strict=True
    ):
        assert parameter.grad is not None, name
        assert twin.grad is not None, name
        assert torch.equal(parameter.grad, twin.grad), name


def test_weights_larger_than_the_most_are_left_to_their_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ResNet-8's linear layer has 64 x 5 = 320 weights, its last convolution 64 x 64 x 9."""
    monkeypatch.setattr(module, "MOST_AT_ONCE", 320)
    model = prepared(QuantizationConfig(weight_bits=2, activation_bits=32))
    with quantized_at_once(layers_of(model)):
        fc = model.get_submodule("fc")
        assert isinstance(fc, QuantizedLayer)
        assert fc.fake_quantized_weight is not None
        assert fc._weights() is fc.fake_quantized_weight
        assert model.get_submodule("layer3.0.conv2").fake_quantized_weight is None


def test_nothing_is_left_behind() -> None:
    """Whatever comes of the forward pass, a layer then quantizes the weights it has."""
    model = prepared(QuantizationConfig(weight_bits=2, activation_bits=32))
    attributes = {name: set(vars(layer)) for name, layer in model.named_modules()}
    with pytest.raises(RuntimeError), quantized_at_once(layers_of(model)):
        model(torch.zeros(1, 1, 8, 8))
    assert attributes == {name: set(vars(layer)) for name, layer in model.named_modules()}
    with quantized_at_once(layers_of(model)):
        before = model(images())
    with torch.no_grad():
        for layer in layers_of(model):
            layer.weight.neg_()
    assert not torch.equal(model(images()), before)
    assert torch.equal(convert(model)(images()), copy.deepcopy(model).eval()(images()))


def test_a_layer_that_was_not_used_gets_no_gradient() -> None:
    """Zeros would let weight decay change it."""
    model = prepared(QuantizationConfig(weight_bits=2, activation_bits=32))
    stem = model.get_submodule("conv1")
    with quantized_at_once(layers_of(model)):
        stem(images()).sum().backward()
    has_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert has_gradient == {"conv1.weight", "conv1.weight_quantizer.step"}


def test_a_float_model_has_no_such_layers() -> None:
    model = create_model("resnet8", num_classes=5).eval()
    expected = model(images())
    with quantized_at_once(layers_of(model)):
        assert torch.equal(model(images()), expected)


def test_training_quantizes_at_once() -> None:
    """All layers of ResNet-8 are small: in the forward pass each has its weights at hand."""
    dataset = noise.images(8, 8)
    model = noise.quantized_model("resnet8", 2, 32, dataset)
    at_hand = []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(
            lambda layer, _: at_hand.append(layer.fake_quantized_weight is not None)
        )
    task = training_task(
        Config.from_flat({"training.batch-size": 4, "training.loss": "ce"}),
        first_epoch=0,
        num_epochs=1,
        total_epochs=1,
    )
    generator = torch_generator(0, "test")
    train(model, None, dataset, dataset.train, torch.arange(8), task, generator)
    # A stem, three blocks of two convolutions, two of them with a third, one linear layer.
    assert at_hand == [True] * 2 * 10
