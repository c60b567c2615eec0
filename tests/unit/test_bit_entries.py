"""Latent weights that all share, steps for every bit-width: averages and errors made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config import QuantizationConfig
from common.models import create_model, model_state
from common.qat import prepare
from server.model.aggregation import State
from server.model.bit_entries import SMALLEST_ERROR, BitEntries, relative_error

WEIGHT, STEP = "conv.weight", "conv.weight_quantizer.step"
STEP_2, STEP_4 = "conv.weight_quantizer.2bit.step", "conv.weight_quantizer.4bit.step"

STEPS = BitEntries(bits=(2, 4), names=(WEIGHT, STEP), own=frozenset({STEP}))


def array(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def device_state(weight: float, step: float) -> State:
    return {WEIGHT: array(weight), STEP: array(step)}


def test_a_device_sees_the_steps_of_its_bit_width() -> None:
    merged = STEPS.merge({2: device_state(1.0, 0.5), 4: device_state(1.0, 0.125)})
    assert merged == {WEIGHT: array(1.0), STEP_2: array(0.5), STEP_4: array(0.125)}
    assert STEPS.view(merged, 2) == device_state(1.0, 0.5)
    assert list(STEPS.view(merged, 4).items()) == [(WEIGHT, array(1.0)), (STEP, array(0.125))]


def test_with_one_bit_width_a_state_is_what_it_is() -> None:
    state = device_state(1.0, 0.5)
    steps = BitEntries()
    assert not steps.is_mixed
    assert steps.view(state, 0) is state
    assert steps.merge({0: state}) == state


def test_steps_are_averaged_over_their_bit_widths_devices() -> None:
    """Weights 1, 1 and 2.

    Latents: (1*1 + 1*2 + 2*6) / 4 = 3.75. 2-bit step: the first device's, 0.5. 4-bit step:
    (1*0.25 + 2*1) / 3 = 0.75.
    """
    states = [device_state(1, 0.5), device_state(2, 0.25), device_state(6, 1.0)]
    average = STEPS.average(states, [1.0, 1.0, 2.0], [2, 4, 4])
    assert average.keys() == {WEIGHT, STEP_2, STEP_4}
    np.testing.assert_allclose(average[WEIGHT], [3.75])
    np.testing.assert_allclose(average[STEP_2], [0.5])
    np.testing.assert_allclose(average[STEP_4], [0.75])


def test_steps_of_a_bit_width_without_devices_are_left_alone() -> None:
    average = STEPS.average([device_state(1, 0.5)], [3.0], [4])
    assert average == {WEIGHT: array(1.0), STEP_4: array(0.5)}


def test_the_relative_error() -> None:
    """||(4, 4) - (3, 4)|| / ||(3, 4)|| = 1 / 5; entries that are not quantized do not count."""
    latent = {WEIGHT: array(3, 4), "fc.bias": array(100)}
    assert relative_error(latent, {WEIGHT: array(4, 4)}) == pytest.approx(0.2)
    assert relative_error(latent, {WEIGHT: array(3, 4)}) == SMALLEST_ERROR
    assert relative_error({WEIGHT: array(0)}, {WEIGHT: array(0)}) == 1.0


def test_first_and_last_layer_share_their_steps() -> None:
    """They have 8 bits at every bit-width; all other layers' steps are kept twice.

    So are the statistics of batch normalisation.
    """
    model = create_model("resnet8", num_classes=10)
    prepared = {bits: prepare(model, QuantizationConfig(weight_bits=bits)) for bits in (4, 2)}
    steps = BitEntries.of(prepared)
    state = model_state(prepared[2])
    all_steps = {name for name in state if name.endswith(".step")}
    assert steps.bits == (2, 4)
    assert steps.names == tuple(state)
    assert all_steps - steps.own == {"conv1.weight_quantizer.step", "fc.weight_quantizer.step"}
    merged = steps.merge({bits: model_state(module) for bits, module in prepared.items()})
    statistics = {name for name in state if ".running_" in name}
    assert statistics
    assert steps.own == (all_steps & steps.own) | statistics
    assert steps.key("bn1.running_var", 4) == "bn1.4bit.running_var"
    assert len(merged) == len(state) + len(steps.own)
