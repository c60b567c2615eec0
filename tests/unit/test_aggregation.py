"""Means over devices: numerators and denominators, states, what stays within its range."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from common.messages import Reply
from server.model.aggregation import (
    Ratio,
    average_states,
    evaluation_metrics,
    is_finite,
    is_learned,
    keep_valid,
    lift_codes,
    training_metrics,
)


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def reply(**metrics: float) -> Reply:
    named = {name.replace("_", "-"): value for name, value in metrics.items()}
    return Reply(partition_id=0, metrics=named)


def test_a_ratio_is_divided_once_at_the_end() -> None:
    """1 of 2 and 1 of 8 images: 2 of 10, not the mean of 1/2 and 1/8."""
    assert (Ratio(1, 2) + Ratio(1, 8)).value == 0.2


@pytest.mark.parametrize("ratio", [Ratio(), Ratio(math.nan, 3.0), Ratio(math.inf, 3.0)])
def test_a_ratio_without_a_meaning_has_no_value(ratio: Ratio) -> None:
    assert ratio.value is None


def test_states_are_averaged_by_weight() -> None:
    """Weights 1 and 3: a quarter of 4 and three quarters of 8 is 7; shape () stays an array."""
    first = {"w": floats(4, 0), "step": np.array(4, np.float32)}
    second = {"w": floats(8, 4), "step": np.array(8, np.float32)}
    mean = average_states([first, second], [1, 3])
    assert mean["w"].tolist() == [7, 3]
    assert mean["step"].shape == ()
    assert mean["step"] == 7
    assert mean["w"].dtype == mean["step"].dtype == np.float32


def test_averaging_leaves_its_input_alone() -> None:
    states = [{"w": floats(1)}, {"w": floats(3)}]
    average_states(states, [1, 1])
    assert [state["w"].item() for state in states] == [1, 3]


@pytest.mark.parametrize(
    ("num_states", "weights"), [(0, []), (2, [1.0]), (2, [0.0, 0.0]), (1, [-1.0])]
)
def test_an_average_needs_states_and_a_positive_weight(
    num_states: int, weights: list[float]
) -> None:
    with pytest.raises(ValueError, match="positive sum"):
        average_states([{"w": np.ones(1, np.float32)}] * num_states, weights)


def test_codes_move_latent_weights_by_whole_steps() -> None:
    """Step 0.5: latents 0.2, 0.3 deploy as 0.0, 0.5. A device answers 0.5, 0.5: the first code
    rose by one, the second did not change, so the latents become 0.2 + 0.5 and 0.3."""
    base = {"conv.weight": floats(0.2, 0.3), "bn.bias": floats(1.0)}
    answered = {"conv.weight": floats(0.5, 0.5), "bn.bias": floats(2.0)}

    lifted = lift_codes(answered, base, {"conv.weight": floats(0.0, 0.5)})

    assert list(lifted) == ["conv.weight"]
    np.testing.assert_allclose(lifted["conv.weight"], floats(0.7, 0.3), rtol=1e-6)


def test_steps_and_variances_are_kept_in_their_range() -> None:
    """A step of -1 becomes the smallest one, 1e-8; a variance of -1 becomes 0; weights are free."""
    valid = keep_valid(
        {
            "conv1.weight_quantizer.step": np.array(-1, np.float32),
            "bn1.running_var": floats(-1, 2),
            "bn1.running_mean": floats(-1, 2),
            "conv1.weight": np.array([-1.0, 2.0]),
        }
    )
    assert valid["conv1.weight_quantizer.step"] == np.float32(1e-8)
    assert valid["conv1.weight_quantizer.step"].shape == ()
    assert valid["bn1.running_var"].tolist() == [0, 2]
    assert valid["bn1.running_mean"].tolist() == [-1, 2]
    assert valid["conv1.weight"].tolist() == [-1, 2]
    assert {array.dtype for array in valid.values()} == {np.dtype(np.float32)}


def test_statistics_and_quantizers_are_not_learned_on_the_weights_scale() -> None:
    names = [
        "conv1.weight",
        "bn1.weight",
        "fc.bias",
        "bn1.running_mean",
        "layer1.0.bn1.running_var",
        "conv1.weight_quantizer.step",
        "conv1.input_quantizer.offset",
    ]
    assert [is_learned(name) for name in names] == [True, True, True, False, False, False, False]


def test_a_state_with_one_nan_is_not_finite() -> None:
    good = {"a": np.zeros(3, np.float32), "b": np.array(1, np.float32)}
    assert is_finite(good)
    assert not is_finite({**good, "c": floats(0, np.nan)})
    assert not is_finite({**good, "c": np.array(np.inf, np.float32)})


def test_training_figures_of_two_devices() -> None:
    """Losses 1 on 10 images and 2 on 30: (10 + 60) / 40 = 1.75; counts and seconds add up."""
    figures = training_metrics(
        [
            reply(num_examples=10, train_loss=1.0, coreset_size=5, num_steps=2, train_seconds=0.5),
            reply(num_examples=30, train_loss=2.0, coreset_size=7, num_steps=3, train_seconds=0.25),
        ]
    )
    assert figures == {
        "train_loss": 1.75,
        "num_examples": 40,
        "coreset_size": 12,
        "num_steps": 5,
        "select_seconds": 0,
        "train_seconds": 0.75,
    }


@pytest.mark.parametrize("num_examples", [[], [10, 30]])
def test_training_figures_where_no_device_trained(num_examples: list[int]) -> None:
    """Nobody answered, or all only looked at their images (a calibration round)."""
    figures = training_metrics([reply(num_examples=number) for number in num_examples])
    assert figures["train_loss"] is None
    assert figures["num_examples"] == sum(num_examples)


def test_evaluation_figures_of_two_devices() -> None:
    """1 of 2 and 5 of 8 right: 6 of 10; within the first five 10 of 10; loss (2 + 3) / 10."""
    figures = evaluation_metrics(
        [
            reply(num_examples=2, correct=1, correct_top5=2, loss_sum=2.0),
            reply(num_examples=8, correct=5, correct_top5=8, loss_sum=3.0),
            reply(num_examples=0, correct=0, correct_top5=0, loss_sum=0.0),
        ]
    )
    assert figures == {
        "device_accuracy": 60.0,
        "device_top5_accuracy": 100.0,
        "device_loss": 0.5,
        "device_num_examples": 10,
    }


def test_evaluation_without_held_out_images_has_no_figures() -> None:
    figures = evaluation_metrics([reply(num_examples=0, correct=0)])
    assert figures["device_accuracy"] is None
    assert figures["device_num_examples"] == 0
