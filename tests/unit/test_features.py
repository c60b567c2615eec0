"""Tests of client.features."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from client.features import FeatureTap


def chain() -> nn.Sequential:
    """x -> 2 x -> 6 x -> 30 x."""
    layers = []
    for factor in (2.0, 3.0, 5.0):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, factor)
        layers.append(layer)
    return nn.Sequential(*layers)


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


ONE = torch.ones(1, 1)


def test_outputs_come_in_the_order_of_the_names() -> None:
    model = chain()
    with FeatureTap(model, ["1", "0"]) as tap:
        assert model(ONE).item() == 30
        assert [output.item() for output in tap.take()] == [6.0, 2.0]


def test_outputs_are_those_of_the_latest_pass() -> None:
    model = chain()
    with FeatureTap(model, ["0"]) as tap:
        model(ONE)
        model(2 * ONE)
        assert tap.take()[0].item() == 4.0


def test_taken_outputs_are_forgotten() -> None:
    model = chain()
    with FeatureTap(model, ["0"]) as tap:
        model(ONE)
        tap.take()
        with pytest.raises(KeyError):
            tap.take()


def test_nothing_is_held_after_taking_or_leaving() -> None:
    """A feature map kept past its step would add to the peak of the next."""
    model, held = chain(), []

    def watch(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        held.append(weakref.ref(output))

    model[0].register_forward_hook(watch)
    with FeatureTap(model, ["0"]) as tap:
        with torch.no_grad():
            model(ONE)
        tap.take()
        with torch.no_grad():
            model(ONE)
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_gradients_flow_through() -> None:
    """d(6 x)/dw_0 = 3 x = 3: what the tap gives is what the pass computed, not a copy."""
    model = chain()
    with FeatureTap(model, ["1"]) as tap:
        model(ONE)
        tap.take()[0].sum().backward()
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert gradient.item() == 3.0


def test_hooks_are_removed() -> None:
    model = chain()
    with FeatureTap(model, ["0", "1"]):
        assert num_hooks(model) == 2
    assert num_hooks(model) == 0


def test_hooks_are_removed_on_an_error() -> None:
    model = chain()
    with pytest.raises(RuntimeError), FeatureTap(model, ["0"]):
        model(torch.ones(1, 7))
    assert num_hooks(model) == 0


def test_no_names_do_nothing() -> None:
    model = chain()
    with FeatureTap(model, ()) as tap:
        assert num_hooks(model) == 0
        model(ONE)
        assert tap.take() == []


def test_two_taps_on_one_model() -> None:
    model = chain()
    with FeatureTap(model, ["0"]) as first, FeatureTap(model, ["1"]) as second:
        model(ONE)
        assert first.take()[0].item() == 2.0
        assert second.take()[0].item() == 6.0


def test_unknown_layer() -> None:
    with pytest.raises(AttributeError, match="nope"):
        FeatureTap(chain(), ["nope"])
