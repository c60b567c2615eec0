"""Tests of common.qat and common.quantized_layers."""

import copy
import math
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from common.config import QuantizationConfig
from common.models import create_model, first_and_last, model_state
from common.qat import (
    activation_quantizers,
    activation_step_names,
    calibrate,
    clamp_steps,
    convert,
    prepare,
    quantized_layers,
    quantized_weights,
)
from common.quantization import SMALLEST_STEP, least_squares_step, lsq_plus_step, lsq_step
from common.quantized_layers import (
    CALIBRATION_VALUES,
    ActivationQuantizer,
    FakeQuantizer,
    IntConv2d,
    IntLinear,
    QuantConv2d,
    QuantLinear,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num_images: int = 4, seed: int = 0, size: int = 8) -> Tensor:
    batch = torch.randn(num_images, 3, size, size, generator=seeded(seed))
    return batch.to(memory_format=torch.channels_last)


@lru_cache
def float_model(name: str = "resnet8") -> nn.Module:
    """A model whose batch normalisation has seen data, as a trained one's has."""
    model = create_model(name, num_classes=5, generator=seeded(1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=seeded(2))
            module.running_var.uniform_(0.5, 2.0, generator=seeded(3))
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=seeded(4))
                module.bias.normal_(0, 0.1, generator=seeded(5))
    return model.eval()


def prepared_model(config: QuantizationConfig, name: str = "resnet8") -> nn.Module:
    model = prepare(float_model(name), config)
    calibrate(model, [images(2, seed=9)], config)
    return model.eval()


class TestPrepare:
    def test_layers_and_their_bits(self) -> None:
        """resnet8: stem, three blocks of two convolutions, two shortcuts, one linear layer: 10."""
        model = prepare(float_model(), QuantizationConfig(weight_bits=3, edge_bits=8))
        bits = {name: layer.weight_quantizer.bits for name, layer in quantized_layers(model)}  # type: ignore[union-attr]
        first, last = first_and_last(model)
        assert len(bits) == 10
        assert bits.pop(first) == bits.pop(last) == 8
        assert set(bits.values()) == {3}
        assert not list(activation_quantizers(model))

    @pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 32), (32, 4), (2, 4)])
    def test_float_edges(self, weight_bits: int, activation_bits: int) -> None:
        config = QuantizationConfig(
            weight_bits=weight_bits, activation_bits=activation_bits, edge_bits=32
        )
        model = prepare(float_model(), config)
        for name in first_and_last(model):
            assert type(model.get_submodule(name)) in (nn.Conv2d, nn.Linear)
        inner = model.get_submodule("layer1.0.conv1")
        assert isinstance(inner, QuantConv2d)
        assert (inner.weight_quantizer is None) == (weight_bits == 32)
        assert (inner.input_quantizer is None) == (activation_bits == 32)
        calibrate(model, [images()], config)
        assert torch.equal(convert(model)(images()), model.eval()(images()))

    def test_edge_activations_have_edge_bits(self) -> None:
        model = prepare(
            float_model(), QuantizationConfig(weight_bits=2, activation_bits=4, edge_bits=6)
        )
        bits = {name: quantizer.bits for name, quantizer in activation_quantizers(model)}
        assert len(bits) == 10
        assert bits["conv1.input_quantizer"] == bits["fc.input_quantizer"] == 6
        assert bits["layer1.0.conv1.input_quantizer"] == 4

    def test_32_bits_are_the_float_model(self) -> None:
        model = float_model()
        control = prepare(model, QuantizationConfig(weight_bits=32, activation_bits=32))
        assert not list(quantized_layers(control))
        assert torch.equal(control(images()), model(images()))
        assert control is not model

    def test_the_float_model_is_left_alone(self) -> None:
        model = float_model()
        before = copy.deepcopy(model.state_dict())
        prepare(model, QuantizationConfig(weight_bits=2, activation_bits=4))
        assert not model.training
        assert all(type(m) not in (QuantConv2d, QuantLinear) for m in model.modules())
        assert before.keys() == model.state_dict().keys()
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())

    @pytest.mark.parametrize(
        ("quantizer", "step_init", "expected"),
        [
            ("lsq", "lsq", lambda w: lsq_step(w, 1)),
            ("lsq", "mse", lambda w: least_squares_step(w, -2, 1)),
            ("lsq+", "lsq", lambda w: lsq_plus_step(w, -2)),
            ("lsq+", "mse", lambda w: least_squares_step(w, -2, 1)),
        ],
    )
    def test_initial_steps(
        self, quantizer: str, step_init: str, expected: Callable[[Tensor], Tensor]
    ) -> None:
        model = float_model()
        prepared = prepare(
            model, QuantizationConfig(weight_bits=2, quantizer=quantizer, step_init=step_init)
        )
        step = prepared.get_parameter("layer2.0.conv1.weight_quantizer.step")
        assert torch.equal(step.detach(), expected(model.get_parameter("layer2.0.conv1.weight")))

    @pytest.mark.parametrize(
        ("quantizer", "step_init"), [("lsq", "mse"), ("lsq", "lsq"), ("lsq+", "lsq")]
    )
    def test_per_channel_steps(self, quantizer: str, step_init: str) -> None:
        config = QuantizationConfig(
            weight_bits=2, granularity="channel", quantizer=quantizer, step_init=step_init
        )
        model = prepare(float_model(), config)
        conv, linear = model.get_submodule("layer2.0.conv1"), model.get_submodule("fc")
        assert isinstance(conv, QuantConv2d)
        assert isinstance(linear, QuantLinear)
        assert conv.weight_quantizer is not None
        assert linear.weight_quantizer is not None
        assert conv.weight_quantizer.step.shape == (32, 1, 1, 1)
        assert linear.weight_quantizer.step.shape == (5, 1)


class TestSignedInputs:
    def signed(self, name: str, quantizer: str = "lsq") -> set[str]:
        config = QuantizationConfig(weight_bits=4, activation_bits=4, quantizer=quantizer)
        model = prepare(create_model(name, num_classes=5, generator=seeded(1)), config)
        return {
            name.removesuffix(".input_quantizer")
            for name, quantizer in activation_quantizers(model)
            if quantizer.q_n < 0 or quantizer.offset is not None
        }

    def test_resnet_is_signed_at_the_images_only(self) -> None:
        assert self.signed("resnet8") == {"conv1"}

    @pytest.mark.parametrize("quantizer", ["lsq", "lsq+"])
    def test_mobilenetv2_is_signed_behind_its_linear_bottlenecks(self, quantizer: str) -> None:
        """The images, and the first convolution behind each of the 17 blocks' linear outputs: the
        expansion of blocks 2 to 17 (features 2 to 17; block 1 follows a ReLU and has no expansion)
        and the head (features 18).
        """
        behind_bottlenecks = {f"features.{block}.conv.0.0" for block in range(2, 18)}
        expected = {"features.0.0", "features.18.0"} | behind_bottlenecks
        assert self.signed("mobilenetv2-cifar", quantizer) == expected

    @pytest.mark.parametrize(
        ("quantizer", "code_range"), [("lsq", (-128, 127)), ("lsq+", (0, 255))]
    )
    def test_lsq_plus_has_offsets_instead_of_signed_codes(
        self, quantizer: str, code_range: tuple[int, int]
    ) -> None:
        config = QuantizationConfig(weight_bits=4, activation_bits=4, quantizer=quantizer)
        quantizers = dict(activation_quantizers(prepare(float_model(), config)))
        stem = quantizers["conv1.input_quantizer"]
        assert (stem.q_n, stem.q_p) == code_range
        assert (stem.offset is not None) == (quantizer == "lsq+")
        assert quantizers["layer1.0.conv1.input_quantizer"].offset is None

    @pytest.mark.parametrize("training", [False, True])
    def test_looking_at_inputs_leaves_no_trace(self, training: bool) -> None:
        model = copy.deepcopy(float_model()).train(training)
        prepared = prepare(model, QuantizationConfig(weight_bits=4, activation_bits=4))
        assert prepared.training == training
        assert not any(module._forward_pre_hooks for module in prepared.modules())

    def test_it_does_not_depend_on_the_weights(self) -> None:
        """Devices build the architecture from fresh weights, the server from the teacher's."""
        config = QuantizationConfig(weight_bits=4, activation_bits=4, quantizer="lsq+")
        fresh = create_model("mobilenetv2-cifar", num_classes=5, generator=seeded(7))
        trained = float_model("mobilenetv2-cifar")
        states = [model_state(prepare(model, config)) for model in (fresh, trained)]
        assert list(states[0]) == list(states[1])


class TestCalibrate:
    def quantizer(self, *, signed: bool = False, with_offset: bool = False) -> ActivationQuantizer:
        return ActivationQuantizer(2, signed=signed, with_offset=with_offset)

    def test_lsq_rule(self) -> None:
        """mean|v| = 1.5 over 0, 1, 2, 3: 2 * 1.5 / sqrt(Q_P = 3) = sqrt(3)."""
        quantizer = self.quantizer()
        quantizer.initialise(torch.arange(4.0), "lsq")
        assert quantizer.step.item() == pytest.approx(math.sqrt(3), rel=1e-6)

    def test_least_squares(self) -> None:
        """0, 1, 2, 3 are two-bit codes themselves: step 1 has no error."""
        quantizer = self.quantizer()
        quantizer.initialise(torch.arange(4.0), "mse")
        assert quantizer.step.item() == 1.0

    def test_lsq_plus_covers_the_range(self) -> None:
        """-1, -0.998, ..., 1 (1,001 values): the quantiles 0.001 and 0.999 are the second value and
        the last but one, -0.998 and 0.998: step 1.996 / 3, offset -0.998.
        """
        quantizer = self.quantizer(with_offset=True)
        quantizer.initialise(torch.linspace(-1, 1, 1001), "mse")
        assert quantizer.offset is not None
        assert quantizer.step.item() == pytest.approx(1.996 / 3, rel=1e-5)
        assert quantizer.offset.item() == pytest.approx(-0.998, rel=1e-5)

    @pytest.mark.parametrize("quantizer", ["lsq", "lsq+"])
    def test_sets_every_step(self, quantizer: str) -> None:
        config = QuantizationConfig(weight_bits=4, activation_bits=4, quantizer=quantizer)
        model = prepare(float_model("mobilenetv2-cifar"), config).train()
        before = {n: b.clone() for n, b in model.named_buffers()}
        calibrate(model, [images(2), images(2, seed=1)], config)
        assert model.training
        assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
        for _, module in activation_quantizers(model):
            assert module.observed is None
            assert module.step.item() != 1.0
            assert module.step.item() > 0
            assert module.offset is None or module.offset.item() < 0

    def test_quantization_error_is_small(self) -> None:
        """8-bit steps fitted to these activations: the logits stay within 5 % of their size."""
        model, config = float_model(), QuantizationConfig(weight_bits=8, activation_bits=8)
        prepared = prepare(model, config)
        calibrate(prepared, [images()], config)
        logits, expected = prepared(images()), model(images())
        assert (logits - expected).norm() < 0.05 * expected.norm()

    def test_observes_columns_evenly(self) -> None:
        """A map of 32 columns holding 0 ... 31: the sample's mean is near 15.5, not 0.

        Its size stays below the bound, also where the number of values is no multiple of it.
        """
        quantizer = self.quantizer()
        quantizer.observed = []
        columns = torch.arange(32.0).expand(33, 16, 32, 32)
        assert quantizer(columns) is columns
        (observed,) = quantizer.observed
        assert observed.numel() <= CALIBRATION_VALUES
        assert observed.mean().item() == pytest.approx(15.5, abs=0.1)

    def test_step_names_are_state_entries(self) -> None:
        config = QuantizationConfig(weight_bits=4, activation_bits=4, quantizer="lsq+")
        model = prepare(float_model(), config)
        names = activation_step_names(model)
        assert len(names) == 11  # ten inputs, and an offset for the images
        assert "conv1.input_quantizer.offset" in names
        assert set(names) <= model_state(model).keys()
        assert activation_step_names(prepare(float_model(), QuantizationConfig())) == ()


@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("activation_bits", [4, 32])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2-cifar"])
def test_the_integer_model_is_exact(
    name: str, granularity: str, activation_bits: int, weight_bits: int
) -> None:
    config = QuantizationConfig(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        granularity=granularity,
        quantizer="lsq+" if weight_bits == 3 else "lsq",
    )
    prepared = prepared_model(config, name)
    converted = convert(prepared)
    codes = quantized_weights(prepared)
    for layer_name, layer in quantized_layers(prepared):
        twin = converted.get_submodule(layer_name)
        assert isinstance(twin, IntConv2d | IntLinear)
        assert twin.weight_codes.dtype == torch.int8
        assert torch.equal(twin._weights(), layer._weights())
        decoded = torch.from_numpy(codes[f"{layer_name}.weight"].dequantize())
        assert torch.equal(decoded, layer._weights())
    with torch.no_grad():
        assert torch.equal(converted(images(2)), prepared(images(2)))


class TestConvert:
    @pytest.mark.parametrize("edge_bits", [8, 32])
    def test_holds_no_float_weights_of_quantized_layers(self, edge_bits: int) -> None:
        prepared = prepared_model(QuantizationConfig(weight_bits=2, edge_bits=edge_bits))
        converted = convert(prepared)
        names = {name for name, _ in quantized_layers(prepared)}
        state = converted.state_dict()
        assert not any(f"{name}.weight" in state for name in names)
        assert {f"{name}.weight_codes" for name in names} <= state.keys()
        assert ("conv1.weight" in state) == (edge_bits == 32)
        assert not converted.training

    def test_the_prepared_model_can_be_trained_on(self) -> None:
        prepared = prepared_model(QuantizationConfig(weight_bits=2, activation_bits=4)).train()
        convert(prepared)
        prepared(images()).sum().backward()
        parameters = dict(prepared.named_parameters())
        assert all(parameter.grad is not None for parameter in parameters.values())
        assert prepared.training

    def test_the_float_control_converts_to_itself(self) -> None:
        control = prepare(float_model(), QuantizationConfig(weight_bits=32)).eval()
        assert torch.equal(convert(control)(images()), control(images()))


class TestQuantizedWeights:
    def test_codes_of_edges_and_inner_layers(self) -> None:
        model = prepared_model(QuantizationConfig(weight_bits=3, granularity="channel"))
        codes = quantized_weights(model)
        assert len(codes) == 10
        assert codes["fc.weight"].bits == 8
        assert codes["layer1.0.conv1.weight"].bits == 3
        assert codes["layer1.0.conv1.weight"].codes.shape == (16, 16, 3, 3)
        assert codes["layer1.0.conv1.weight"].scale.shape == (16,)

    def test_decoded_weights_have_the_same_codes(self) -> None:
        """A model of codes times steps, quantized again, gives its codes: nothing drifts."""
        model = prepared_model(QuantizationConfig(weight_bits=3))
        codes = quantized_weights(model)
        with torch.no_grad():
            for name, values in codes.items():
                model.get_parameter(name).copy_(torch.from_numpy(values.dequantize()))
        again = quantized_weights(model)
        assert all((again[name].codes == codes[name].codes).all() for name in codes)


class TestGradients:
    def test_scale_of_a_weight_step_counts_the_values_that_share_it(self) -> None:
        """Four weights 0.6 of step 1 (two bits): round(u) - u = 0.4 each, so sums 1.6 and, in rows
        of two, 0.8. LSQ's scale: 1 / sqrt(4 * 1) = 0.5 and 1 / sqrt(2 * 1): 0.8 and 0.8 / sqrt(2).
        """
        for granularity, expected in (("tensor", 0.8), ("channel", 0.8 / math.sqrt(2))):
            linear = nn.Linear(2, 2, bias=False)
            nn.init.constant_(linear.weight, 0.6)
            model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), linear)
            config = QuantizationConfig(weight_bits=2, edge_bits=2, granularity=granularity)
            layer = prepare(model, config).get_submodule("2")
            step = layer.get_parameter("weight_quantizer.step")
            nn.init.ones_(step)
            layer(torch.ones(1, 2)).sum().backward()
            assert step.grad is not None
            torch.testing.assert_close(step.grad, torch.full_like(step, expected).detach())

    def test_scale_of_an_activation_step_counts_one_sample(self) -> None:
        """Two samples of four features 0.6: eight times 0.4, scaled by 1 / sqrt(4 * Q_P = 1)."""
        quantizer = ActivationQuantizer(2, signed=True)
        quantizer(torch.full((2, 4), 0.6)).sum().backward()
        assert quantizer.step.grad is not None
        assert quantizer.step.grad.item() == pytest.approx(8 * 0.4 / 2, rel=1e-5)

    def test_latent_weights_learn(self) -> None:
        """A step against the gradient lowers the loss that it is the gradient of."""
        model = prepared_model(QuantizationConfig(weight_bits=4, activation_bits=8)).train()
        inputs, labels = images(16), torch.arange(16) % 5
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for _ in range(15):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]


def test_clamp_steps() -> None:
    """Zero and negative steps go to the smallest one, others stay; parameters change in place."""
    steps = [nn.Parameter(torch.tensor([0.5, -1.0])), nn.Parameter(torch.tensor(0.0))]
    clamp_steps([step.data for step in steps])
    smallest = torch.tensor(SMALLEST_STEP).item()
    assert steps[0].tolist() == [0.5, smallest]
    assert steps[1].item() == smallest
    clamp_steps([])


def test_codes_do_not_follow_autograd() -> None:
    quantizer = FakeQuantizer(2, signed=True)
    codes = quantizer.codes(nn.Parameter(torch.tensor([0.6, -5.0])))
    assert codes.tolist() == [1, -2]
    assert codes.dtype == torch.int8
