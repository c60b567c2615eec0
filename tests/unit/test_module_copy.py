"""Tests of common.module_copy: what copy.deepcopy gives, and nothing shared with the original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config import QuantizationConfig
from common.models import create_model
from common.module_copy import copy_module
from common.qat import prepare


def make(quantized: bool) -> nn.Module:
    model = create_model("resnet8", num_classes=4, in_channels=1)
    config = QuantizationConfig(weight_bits=2, activation_bits=4, quantizer="lsq+")
    return prepare(model, config) if quantized else model


def train_once(model: nn.Module) -> Tensor:
    output = model(torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8))
    output.square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    return output.detach()


@pytest.mark.parametrize("quantized", [False, True])
class TestNetworks:
    def test_a_copy_is_as_deepcopy_makes_it(self, quantized: bool) -> None:
        model = make(quantized).eval().requires_grad_(False)
        ours, theirs = copy_module(model), copy.deepcopy(model)
        assert str(ours) == str(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for (name, mine), other in zip(
            ours.state_dict(keep_vars=True).items(),
            theirs.state_dict(keep_vars=True).values(),
            strict=True,
        ):
            assert torch.equal(mine, other), name
            assert (type(mine), mine.stride(), mine.requires_grad) == (
                type(other),
                other.stride(),
                other.requires_grad,
            )
        for mine, other in zip(ours.modules(), theirs.modules(), strict=True):
            assert type(mine) is type(other)
            assert vars(mine).keys() == vars(other).keys()
            assert mine.training == other.training

    def test_it_trains_alike_and_leaves_the_original(self, quantized: bool) -> None:
        model = make(quantized)
        before = {name: values.clone() for name, values in model.state_dict().items()}
        ours, theirs = copy_module(model), copy.deepcopy(model)
        for _ in range(2):
            assert torch.equal(train_once(ours), train_once(theirs))
        for name, values in model.state_dict().items():
            assert torch.equal(values, before[name]), name
        assert not torch.equal(ours.state_dict()["conv1.weight"], before["conv1.weight"])

    def test_hooks_of_a_copy_are_its_own(self, quantized: bool) -> None:
        model = make(quantized).eval()
        seen: list[str] = []
        ours = copy_module(model)
        ours.get_submodule("layer1").register_forward_hook(lambda *_: seen.append("copy"))
        model(torch.zeros(1, 1, 8, 8))
        assert not seen
        ours(torch.zeros(1, 1, 8, 8))
        assert seen == ["copy"]


def test_what_is_shared_stays_shared() -> None:
    """One layer in two places, one parameter of two layers, a list of tensors."""
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = layer.weight
    model: Any = nn.Sequential(layer, layer, other)
    model.kept = [torch.ones(1)]
    ours: Any = copy_module(model)
    assert ours[0] is ours[1]
    assert ours[0].weight is ours[2].weight
    assert ours[0] is not layer
    assert ours[0].weight is not layer.weight
    assert ours.kept[0] is not model.kept[0]
    assert torch.equal(ours.kept[0], model.kept[0])


def test_gradients_stay_behind() -> None:
    """As with deepcopy."""
    model = nn.Linear(1, 1)
    model(torch.ones(1, 1)).sum().backward()
    assert model.weight.grad is not None
    for copied in (copy_module(model), copy.deepcopy(model)):
        assert copied.get_parameter("weight").grad is None
