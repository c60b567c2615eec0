"""Tests of common.quantization."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common import quantization
from common.quantization import (
    SMALLEST_STEP,
    Operand,
    code_range,
    dequantize,
    least_squares_step,
    lsq_plus_step,
    lsq_step,
    quantize,
    step_gradient_scale,
)

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fake_quantize(
    values: Tensor,
    step: Tensor,
    q_n: int,
    q_p: int,
    *,
    offset: Tensor | None = None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """A single operand's."""
    operand = Operand(
        values=values, step=step, offset=offset, q_n=q_n, q_p=q_p, gradient_scale=gradient_scale
    )
    return quantization.fake_quantize([operand])[0]


class TestCodeRange:
    @pytest.mark.parametrize(
        ("bits", "signed", "expected"),
        [
            (2, True, (-2, 1)),
            (2, False, (0, 3)),
            (3, True, (-4, 3)),
            (4, False, (0, 15)),
            (8, True, (-128, 127)),
            (8, False, (0, 255)),
        ],
    )
    def test_range(self, bits: int, signed: bool, expected: tuple[int, int]) -> None:
        assert code_range(bits, signed=signed) == expected

    @pytest.mark.parametrize("bits", [-2, 0, 1, 9, 32])
    def test_refuses_other_widths(self, bits: int) -> None:
        with pytest.raises(ValueError, match=f"bits = {bits}: expected 2 to 8"):
            code_range(bits, signed=True)


class TestQuantize:
    def test_rounds_and_clamps(self) -> None:
        """v / 0.5 = -3, -0.6, 0.48, 0.52, 1.8; rounded and clamped to [-2, 1]: -2, -1, 0, 1, 1."""
        values = torch.tensor([-1.5, -0.3, 0.24, 0.26, 0.9])
        codes = quantize(values, torch.tensor(0.5), -2, 1)
        assert codes.tolist() == [-2.0, -1.0, 0.0, 1.0, 1.0]
        assert dequantize(codes, torch.tensor(0.5)).tolist() == [-1.0, -0.5, 0.0, 0.5, 0.5]

    def test_ties_go_to_the_even_code(self) -> None:
        """u = -1.5, -0.5, 0.5, 1.5, 2.5: to -2, 0, 0, 2, 2, as numpy and ONNX do."""
        values = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
        assert quantize(values, torch.tensor(1.0), -8, 7).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]

    def test_offset(self) -> None:
        """(v + 0.5) / 0.5 = 0.2, 1, 2.2, 7: codes 0, 1, 2, 3; 0.5 code - 0.5: -0.5, 0, 0.5, 1."""
        values, step, offset = torch.tensor([-0.4, 0.0, 0.6, 3.0]), torch.tensor(0.5), -0.5
        codes = quantize(values, step, 0, 3, torch.tensor(offset))
        assert codes.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert dequantize(codes, step, torch.tensor(offset)).tolist() == [-0.5, 0.0, 0.5, 1.0]

    def test_per_channel(self) -> None:
        """Row 0 with step 1: 1, -2. Row 1 with step 0.25: v / 0.25 = 4, -8, clamped to 1, -2."""
        values = torch.tensor([[1.0, -2.0], [1.0, -2.0]])
        step = torch.tensor([[1.0], [0.25]])
        codes = quantize(values, step, -2, 1)
        assert codes.tolist() == [[1.0, -2.0], [1.0, -2.0]]
        assert dequantize(codes, step).tolist() == [[1.0, -2.0], [0.25, -0.5]]

    def test_not_a_number_stays_one(self) -> None:
        assert quantize(torch.tensor([math.nan]), torch.tensor(1.0), -2, 1).isnan().all()

    def test_arguments_are_left_alone(self) -> None:
        values, step, offset = normal(5), torch.tensor(0.3), torch.tensor(0.1)
        before = values.clone()
        dequantize(quantize(values, step, -2, 1, offset), step, offset)
        assert torch.equal(values, before)


class TestFakeQuantize:
    @pytest.mark.parametrize("bits", ALL_BITS)
    @pytest.mark.parametrize("step_shape", [(), (4, 1, 1, 1)])
    @pytest.mark.parametrize("with_offset", [False, True])
    def test_equals_the_integer_path(
        self, bits: int, step_shape: tuple[int, ...], with_offset: bool
    ) -> None:
        values = normal(4, 3, 5, 5)
        step = normal(*step_shape, seed=1).abs() / 2**bits + 0.01
        offset = normal(*step_shape, seed=2) if with_offset else None
        q_n, q_p = code_range(bits, signed=True)
        codes = quantize(values, step, q_n, q_p, offset).to(torch.int8)
        expected = dequantize(codes, step, offset)
        assert torch.equal(fake_quantize(values, step, q_n, q_p, offset=offset), expected)

    def test_step_gradient(self) -> None:
        """u = v / 0.5 = 0.6, 1.8, -2.2, 0.2 in the range [-2, 1].

        LSQ (3): inside round(u) - u = 0.4 and -0.2; above Q_P = 1; below Q_N = -2. With
        g = 1, 2, 3, 4: 0.4 + 2 - 6 - 0.8 = -4.4; times the scale 0.5: -2.2. g passes inside only.
        """
        values = torch.tensor([0.3, 0.9, -1.1, 0.1], requires_grad=True)
        step = torch.tensor(0.5, requires_grad=True)
        gradient = torch.tensor([1.0, 2.0, 3.0, 4.0])
        fake_quantize(values, step, -2, 1, gradient_scale=0.5).backward(gradient)
        assert values.grad is not None
        assert step.grad is not None
        assert values.grad.tolist() == [1.0, 0.0, 0.0, 4.0]
        assert step.grad.item() == pytest.approx(-2.2, rel=1e-6)
        assert gradient.tolist() == [1.0, 2.0, 3.0, 4.0]

    @pytest.mark.parametrize("step_shape", [(), (4,)])
    def test_gradients_of_bfloat16_values_are_added_up_in_float32(
        self, step_shape: tuple[int, ...]
    ) -> None:
        """u = 0.5 / 1 rounds to 0: every value adds 0 - 0.5 to the step's gradient.

        257 rows of 4 with g = 1: -128.5 a column, -514 together; bfloat16 has no number between 512
        and 516, and none between 128 and 129.
        """
        values = torch.full((257, 4), 0.5, dtype=torch.bfloat16, requires_grad=True)
        step = torch.ones(step_shape, requires_grad=True)
        offset = torch.zeros(step_shape, requires_grad=True)
        output = fake_quantize(values, step, -2, 1, offset=offset)
        output.backward(torch.ones_like(output))
        assert step.grad is not None
        assert values.grad is not None
        assert step.grad.flatten().tolist() == ([-128.5] * 4 if step_shape else [-514.0])
        assert values.grad.eq(1).all()

    def test_gradients_of_bfloat16_values_cancel_before_they_are_added_up(self) -> None:
        """u = v = 1 + 1/128 rounds to 1: every value adds 1 - v = -1/128 to the step's gradient.

        300 of them are -2.34375, which bfloat16 holds; 300 v = 302.34 it does not (next to 302 is
        304), so that <g, output> - <g, v> from two sums would be -2. Two images: -4.6875.
        """
        values = torch.full((2, 300), 1 + 1 / 128, dtype=torch.bfloat16, requires_grad=True)
        step = torch.ones((), requires_grad=True)
        output = fake_quantize(values, step, 0, 3)
        output.backward(torch.ones_like(output))
        assert step.grad is not None
        assert step.grad.item() == -4.6875

    def test_offset_gradient(self) -> None:
        """The values of test_step_gradient moved by an offset of 0.1: the same u.

        So the same gradients of values and step; the offset's is g where clipped (LSQ+, 5):
        2 + 3 = 5, times the scale 0.5: 2.5.
        """
        values = torch.tensor([0.4, 1.0, -1.0, 0.2], requires_grad=True)
        step = torch.tensor(0.5, requires_grad=True)
        offset = torch.tensor(0.1, requires_grad=True)
        gradient = torch.tensor([1.0, 2.0, 3.0, 4.0])
        output = fake_quantize(values, step, -2, 1, offset=offset, gradient_scale=0.5)
        output.backward(gradient)
        assert values.grad is not None
        assert step.grad is not None
        assert offset.grad is not None
        assert values.grad.tolist() == [1.0, 0.0, 0.0, 4.0]
        assert step.grad.item() == pytest.approx(-2.2, rel=1e-5)
        assert offset.grad.item() == pytest.approx(2.5, rel=1e-6)

    @pytest.mark.parametrize("step_shape", [(), (3, 1, 1, 1)])
    @pytest.mark.parametrize("with_offset", [False, True])
    def test_gradients_are_those_of_the_straight_through_surrogate(
        self, step_shape: tuple[int, ...], with_offset: bool
    ) -> None:
        """With the rounding error e = round(u) - u held fixed, as straight-through estimation does,
        the output is s * (clamp(u) + e) + b with u = (v - b) / s: differentiable but at the bounds.
        Its central differences in float64 are the expected gradients, inside and outside the range.
        """
        q_n, q_p = -4, 3
        values = normal(3, 2, 3, 3, seed=3, dtype=torch.float64)
        step = 0.2 + 0.1 * normal(*step_shape, seed=4, dtype=torch.float64).abs()
        offset = 0.1 * normal(*step_shape, seed=5, dtype=torch.float64)
        if not with_offset:
            offset = torch.zeros_like(offset)
        gradient = normal(3, 2, 3, 3, seed=6, dtype=torch.float64)
        scaled = ((values - offset) / step).clamp(q_n, q_p)
        error = scaled.round() - scaled
        assert 0 < ((scaled == q_n) | (scaled == q_p)).sum() < scaled.numel()

        def surrogate(v: Tensor, s: Tensor, b: Tensor) -> Tensor:
            return ((s * (((v - b) / s).clamp(q_n, q_p) + error) + b) * gradient).sum()

        arguments = [tensor.clone().requires_grad_() for tensor in (values, step, offset)]
        fake_quantize(
            arguments[0],
            arguments[1],
            q_n,
            q_p,
            offset=arguments[2] if with_offset else None,
        ).backward(gradient)
        for index in range(3 if with_offset else 2):
            expected = central_differences(surrogate, [values, step, offset], index)
            actual = arguments[index].grad
            assert actual is not None
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)

    def test_step_derivative_at_fixed_codes(self) -> None:
        """d(s code)/ds = code: true of dequantize, and of fake_quantize where codes are clipped."""
        codes = torch.tensor([-2.0, -1.0, 0.0, 1.0], dtype=torch.float64)
        step, h = torch.tensor(0.3, dtype=torch.float64), 1e-6
        slope = (dequantize(codes, step + h) - dequantize(codes, step - h)) / (2 * h)
        torch.testing.assert_close(slope, codes, rtol=0, atol=1e-9)
        clipped = torch.tensor([-3.0, 5.0], dtype=torch.float64)
        up, down = (fake_quantize(clipped, step + d, -2, 1) for d in (h, -h))
        expected = torch.tensor([-2.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close((up - down) / (2 * h), expected, rtol=0, atol=1e-9)

    def test_each_channel_is_a_tensor_of_its_own(self) -> None:
        values, gradient = normal(3, 2, 3, 3), normal(3, 2, 3, 3, seed=1)
        steps = torch.tensor([0.1, 0.2, 0.4])
        together, step = values.clone().requires_grad_(), steps.reshape(3, 1, 1, 1).requires_grad_()
        output = fake_quantize(together, step, -2, 1)
        output.backward(gradient)
        assert together.grad is not None
        assert step.grad is not None
        for channel in range(3):
            alone = values[channel].clone().requires_grad_()
            own_step = steps[channel].clone().detach().requires_grad_()
            own_output = fake_quantize(alone, own_step, -2, 1)
            own_output.backward(gradient[channel])
            assert alone.grad is not None
            assert own_step.grad is not None
            assert torch.equal(output[channel], own_output)
            assert torch.equal(together.grad[channel], alone.grad)
            torch.testing.assert_close(step.grad[channel].reshape(()), own_step.grad)

    @settings(deadline=None, max_examples=50)
    @given(
        bits=st.sampled_from(ALL_BITS),
        signed=st.booleans(),
        step=st.floats(2.0**-13, 8.0, width=32),
    )
    def test_a_value_on_the_outermost_code_can_move(
        self, bits: int, signed: bool, step: float
    ) -> None:
        """A model that was decoded from codes lies on them: no weight may count as clipped."""
        q_n, q_p = code_range(bits, signed=signed)
        values = (torch.arange(q_n, q_p + 1) * torch.tensor(step)).requires_grad_()
        fake_quantize(values, torch.tensor(step), q_n, q_p).sum().backward()
        assert values.grad is not None
        assert torch.equal(values.grad, torch.ones_like(values))

    def test_memory_layout_is_kept(self) -> None:
        values = normal(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
        output = fake_quantize(values, torch.tensor(0.3), 0, 15)
        output.backward(torch.ones_like(output))
        assert values.grad is not None
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert values.grad.is_contiguous(memory_format=torch.channels_last)

    def test_layouts_may_differ(self) -> None:
        """The step's gradient is the same sum whatever the order of the values in memory."""
        values, gradient = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
        gradients = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            step = torch.tensor(0.3, requires_grad=True)
            inputs = values.to(memory_format=memory_format).requires_grad_()
            fake_quantize(inputs, step, -8, 7).backward(gradient)
            gradients.append(step.grad)
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_many_at_once_are_each_as_alone(self) -> None:
        """Ranges, offsets and layouts differ; the last has no part in the loss."""

        def leaves() -> list[dict[str, Tensor]]:
            channels_last = normal(2, 3, 4, 4, seed=2).to(memory_format=torch.channels_last)
            return [
                {"values": normal(5), "step": torch.tensor(0.3)},
                {"values": channels_last, "step": torch.tensor([0.2, 0.4]).reshape(2, 1, 1, 1)},
                {"values": normal(7, 2), "step": torch.tensor(0.1), "offset": torch.tensor(-0.2)},
                {"values": normal(4), "step": torch.tensor(0.5)},
            ]

        settings = [
            {"q_n": -2, "q_p": 1, "gradient_scale": 0.5},
            {"q_n": -8, "q_p": 7, "gradient_scale": 0.25},
            {"q_n": 0, "q_p": 15, "gradient_scale": 2.0},
            {"q_n": -2, "q_p": 1, "gradient_scale": 1.0},
        ]
        together, alone = leaves(), leaves()
        for tensors in (*together, *alone):
            for tensor in tensors.values():
                tensor.requires_grad_()
        outputs = quantization.fake_quantize(
            [Operand(**t, **s) for t, s in zip(together, settings, strict=True)]  # type: ignore[arg-type]
        )
        gradients = [normal(*output.shape, seed=3) for output in outputs[:-1]]
        torch.autograd.backward(outputs[:-1], gradients)
        for index, gradient in enumerate(gradients):
            output = fake_quantize(**alone[index], **settings[index])  # type: ignore[arg-type]
            output.backward(gradient)
            assert torch.equal(outputs[index], output)
            for name, tensor in alone[index].items():
                assert torch.equal(together[index][name].grad, tensor.grad)  # type: ignore[arg-type]
        assert together[-1]["values"].grad is None
        assert together[-1]["step"].grad is None


def central_differences(function, arguments: list[Tensor], index: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Gradient of a scalar ``function`` by its ``index``-th argument."""
    gradient, h = torch.empty_like(arguments[index]), 1e-6
    for position in np.ndindex(*arguments[index].shape):
        ends = []
        for sign in (1, -1):
            moved = [argument.clone() for argument in arguments]
            moved[index][position] += sign * h
            ends.append(function(*moved))
        gradient[position] = (ends[0] - ends[1]) / (2 * h)
    return gradient


def test_step_gradient_scale() -> None:
    """1 / sqrt(4 * 1) and 1 / sqrt(9 * 4)."""
    assert step_gradient_scale(4, 1) == 0.5
    assert step_gradient_scale(9, 4) == pytest.approx(1 / 6)


class TestInitialSteps:
    def test_lsq(self) -> None:
        """mean|v| = (1 + 0.5 + 2 + 0.5) / 4 = 1: 2 * 1 / sqrt(4) = 1; by rows 0.75 and 1.25."""
        values = torch.tensor([[-1.0, 0.5], [2.0, -0.5]])
        assert lsq_step(values, 4).tolist() == 1.0
        assert lsq_step(values, 4, per_channel=True).tolist() == [[0.75], [1.25]]

    def test_lsq_plus(self) -> None:
        """Row 0: mean 2, deviation 1: |2 + 3| / 2 = 2.5. Row 1: mean -4, deviation 2: 10 / 2 = 5.

        Together 1, 3, -6, -2: mean -1, deviation sqrt((4 + 16 + 25 + 1) / 4) = sqrt(11.5).
        """
        values = torch.tensor([[1.0, 3.0], [-6.0, -2.0]])
        assert lsq_plus_step(values, -2, per_channel=True).tolist() == [[2.5], [5.0]]
        expected = (1 + 3 * math.sqrt(11.5)) / 2
        assert lsq_plus_step(values, -2).item() == pytest.approx(expected, rel=1e-6)

    def test_least_squares_finds_a_step_without_error(self) -> None:
        """Signed two-bit codes of 0.5: max|v| = 1 = 2 * 0.5, so candidate 32 of 64 has no error.

        Unsigned: 0, 0.5, 1, 1.5: max|v| / 3 = 0.5 is the last candidate.
        """
        signed = torch.tensor([-1.0, -0.5, 0.0, 0.5])
        assert least_squares_step(signed, -2, 1).item() == 0.5
        assert least_squares_step(signed + 1, 0, 3).item() == 0.5
        rows = torch.stack([signed, 4 * signed])
        assert least_squares_step(rows, -2, 1, per_channel=True).tolist() == [[0.5], [2.0]]

    @settings(deadline=None, max_examples=30)
    @given(
        values=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=20),
        bits=st.sampled_from((2, 3, 8)),
        signed=st.booleans(),
    )
    def test_least_squares_is_the_best_candidate(
        self, values: list[float], bits: int, signed: bool
    ) -> None:
        """No candidate has a smaller error, each computed in float64 by nearest code."""
        array = np.asarray(values if signed else np.abs(values), np.float64)
        q_n, q_p = code_range(bits, signed=signed)
        codes = np.arange(q_n, q_p + 1)

        def error(step: float) -> float:
            return float((np.abs(array[:, None] - step * codes).min(1) ** 2).sum())

        widest = max(float(np.abs(array).max()), SMALLEST_STEP) / (
            2 ** (bits - 1) - 1 if signed else q_p
        )
        best = min(error(widest * k / 64) for k in range(1, 65))
        chosen = least_squares_step(torch.tensor(array, dtype=torch.float32), q_n, q_p)
        assert error(chosen.item()) <= best * (1 + 1e-4) + 1e-9

    @pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        values, per_channel = normal(*shape), (4, *[1] * (len(shape) - 1))
        for make in (lsq_step, lambda v, q, **k: least_squares_step(v, -2, q, **k)):
            assert make(values, 1).shape == ()
            assert make(values, 1, per_channel=True).shape == per_channel
        assert lsq_plus_step(values, -2).shape == ()
        assert lsq_plus_step(values, -2, per_channel=True).shape == per_channel

    def test_zeros_give_a_positive_step(self) -> None:
        zeros, smallest = torch.zeros(2, 3), torch.tensor(SMALLEST_STEP)
        for step in (
            lsq_step(zeros, 1),
            lsq_plus_step(zeros, -2),
            least_squares_step(zeros, -2, 1),
        ):
            assert step == smallest
