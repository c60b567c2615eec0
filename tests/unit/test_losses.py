"""Tests of client.losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.losses import (
    CORRECTION_LOSSES,
    clc_channel,
    clc_flat,
    clc_normalized,
    clc_pooled,
    clc_spatial,
    correction_loss,
    cross_entropy,
    distillation,
    normalized_squared_error,
    relative_entropy,
)

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)

# Softmax of STUDENT: (1/2, 1/4, 1/4); of TEACHER: (1/4, 1/4, 1/2).
# KL(student || teacher) = 1/2 ln 2 + 0 - 1/4 ln 2 = 1/4 ln 2.
STUDENT, TEACHER = torch.tensor([LN2, 0.0, 0.0]), torch.tensor([0.0, 0.0, LN2])
DIVERGENCE = LN2 / 4


def close(expected: float) -> object:
    return pytest.approx(expected, rel=1e-5, abs=1e-7)


class TestDistillation:
    def test_value(self) -> None:
        """Sample 1: -(1/4 ln 1/2 + 1/4 ln 1/4 + 1/2 ln 1/4) = (1/4 + 1/2 + 1) ln 2 = 7/4 ln 2.
        Sample 2, both uniform: ln 3. The mean of the two.
        """
        zeros = torch.zeros(3)
        loss = distillation(torch.stack([STUDENT, zeros]), torch.stack([TEACHER, zeros]))
        assert loss.item() == close((7 / 4 * LN2 + LN3) / 2)

    def test_gradient(self) -> None:
        """p_Q - p_T = (1/2 - 1/4, 0, 1/4 - 1/2), by the student's logits."""
        logits = STUDENT.clone()[None].requires_grad_()
        distillation(logits, TEACHER[None]).backward()
        assert logits.grad is not None
        assert logits.grad[0].tolist() == close([0.25, 0.0, -0.25])  # type: ignore[arg-type]


class TestWeights:
    def test_of_distillation(self) -> None:
        """Losses 7/4 ln 2 and ln 3 (above), weights 1/2 and 3/2: (7/8 ln 2 + 3/2 ln 3) / 2."""
        logits = torch.stack([STUDENT, torch.zeros(3)])
        targets = torch.stack([TEACHER, torch.zeros(3)])
        loss = distillation(logits, targets, torch.tensor([0.5, 1.5]))
        assert loss.item() == close((7 / 8 * LN2 + 3 / 2 * LN3) / 2)

    def test_of_labels(self) -> None:
        """-ln 1/4 = 2 ln 2 and ln 3, weights 2 and 0: 2 ln 2."""
        logits = torch.stack([STUDENT, torch.zeros(3)])
        loss = cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([2.0, 0.0]))
        assert loss.item() == close(2 * LN2)

    @pytest.mark.parametrize("name", CORRECTION_LOSSES)
    def test_of_corrections(self, name: str) -> None:
        """The weight of one sample alone doubles its share of the batch's loss: half of what two
        samples of it would have. Even weights change nothing."""
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 2, 3, 2, 2, generator=generator)
        teacher[1] = teacher[0]  # so that both weigh the same in |f_F|^2
        loss = CORRECTION_LOSSES[name]
        twice = loss(student[[0, 0]], teacher[[0, 0]])
        assert loss(student, teacher, torch.tensor([2.0, 0.0])).item() == close(twice.item())
        even = loss(student, teacher, torch.ones(2))
        assert even.item() == close(loss(student, teacher).item())


class TestRelativeEntropy:
    def test_value(self) -> None:
        assert relative_entropy(STUDENT, TEACHER, dim=0).item() == close(DIVERGENCE)

    def test_gradient(self) -> None:
        """p (ln(p / q) - KL), p = (1/2, 1/4, 1/4), ln(p / q) = (1, 0, -1) ln 2, KL = 1/4 ln 2:
        (1/2 * 3/4, 1/4 * -1/4, 1/4 * -5/4) ln 2.
        """
        logits = STUDENT.clone().requires_grad_()
        relative_entropy(logits, TEACHER, dim=0).backward()
        assert logits.grad is not None
        expected = [3 / 8 * LN2, -1 / 16 * LN2, -5 / 16 * LN2]
        assert logits.grad.tolist() == close(expected)  # type: ignore[arg-type]

    def test_any_dimension(self) -> None:
        student, teacher = STUDENT.reshape(1, 3, 1, 1), TEACHER.reshape(1, 3, 1, 1)
        value = relative_entropy(student, teacher, dim=1)
        assert value.shape == (1, 1, 1)
        assert value.item() == close(DIVERGENCE)

    def test_certain_and_wrong_is_finite(self) -> None:
        """p = (1, 0), log q_0 = -10000 to float precision: 10000."""
        value = relative_entropy(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4]), dim=0)
        assert value.item() == 1e4


# exp of the four values of the map: 4, 2 in channel 0, 1, 1 in channel 1; the teacher's are equal.
MAP = torch.tensor([[2 * LN2, LN2], [0.0, 0.0]]).reshape(1, 2, 1, 2)
FLAT_MAP = torch.zeros(1, 2, 1, 2)


class TestCorrections:
    def test_channel(self) -> None:
        """Three channels, two positions: KL 1/4 ln 2 at one, 0 at the other."""
        zeros = torch.zeros(3)
        student = torch.stack([STUDENT, zeros], dim=1).reshape(1, 3, 1, 2)
        teacher = torch.stack([TEACHER, zeros], dim=1).reshape(1, 3, 1, 2)
        assert clc_channel(student, teacher).item() == close(DIVERGENCE / 2)

    def test_channel_of_the_map(self) -> None:
        """Position 0: (4/5, 1/5) against halves, 4/5 ln 8/5 + 1/5 ln 2/5 = 13/5 ln 2 - ln 5.
        Position 1: (2/3, 1/3) against halves, 2/3 ln 4/3 + 1/3 ln 2/3 = 5/3 ln 2 - ln 3.
        """
        expected = (13 / 5 * LN2 - LN5 + 5 / 3 * LN2 - LN3) / 2
        assert clc_channel(MAP, FLAT_MAP).item() == close(expected)

    def test_normalized(self) -> None:
        """Two channels, one position, teacher (0, 2 a): its deviation, of a sample of two, is
        a sqrt 2, so it becomes (0, sqrt 2) for every a. The student's (2 a, 2 a) is even, so
        KL = ln 1/2 - (the mean of the log-softmax of (0, r)) = ln((1 + e^r) / 2) - r / 2.
        """
        r = math.sqrt(2)
        expected = math.log((1 + math.exp(r)) / 2) - r / 2
        for a in (1.0, 70.0):
            teacher = torch.tensor([0.0, 2 * a]).reshape(1, 2, 1, 1)
            student = torch.full((1, 2, 1, 1), 2 * a)
            assert clc_normalized(student, teacher).item() == close(expected)

    def test_a_constant_map_is_no_unit(self) -> None:
        """A standard deviation of 0 must not divide."""
        assert math.isfinite(clc_normalized(MAP, FLAT_MAP).item())

    def test_pooled(self) -> None:
        """Means over the two positions are STUDENT and TEACHER; a second sample has none: half."""
        student, teacher = torch.zeros(2, 2, 3, 1, 2)
        student[0, :, 0] = torch.stack([2 * STUDENT, torch.zeros(3)], dim=1)
        teacher[0, :, 0] = torch.stack([TEACHER - 1, TEACHER + 1], dim=1)
        assert clc_pooled(student, teacher).item() == close(DIVERGENCE / 2)

    def test_flat(self) -> None:
        """(4, 2, 1, 1) / 8 against quarters: 1/2 ln 2 + 0 - 2/8 ln 2 = 1/4 ln 2."""
        assert clc_flat(MAP, FLAT_MAP).item() == close(LN2 / 4)

    def test_spatial(self) -> None:
        """Channel 0: (2/3, 1/3) against halves, 5/3 ln 2 - ln 3. Channel 1: 0."""
        assert clc_spatial(MAP, FLAT_MAP).item() == close((5 / 3 * LN2 - LN3) / 2)

    def test_squared_error(self) -> None:
        """|(1, 2, 3) - (1, 1, 1)|^2 / 3 = 5 / 3, whatever the scale."""
        student, teacher = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)
        assert normalized_squared_error(student, teacher).item() == close(5 / 3)
        assert normalized_squared_error(7 * student, 7 * teacher).item() == close(5 / 3)
        assert normalized_squared_error(torch.zeros(3), torch.zeros(3)).item() == 0

    @pytest.mark.parametrize("name", CORRECTION_LOSSES)
    def test_layout_does_not_matter(self, name: str) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 2, 4, 3, 3, generator=generator)
        expected = CORRECTION_LOSSES[name](student, teacher)
        actual = CORRECTION_LOSSES[name](
            *(t.to(memory_format=torch.channels_last) for t in (student, teacher))
        )
        torch.testing.assert_close(actual, expected)

    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(CORRECTION_LOSSES)))
    def test_positive_but_for_equals(self, seed: int, name: str) -> None:
        generator = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, 2, 4, 3, 3, generator=generator)
        assert CORRECTION_LOSSES[name](student, teacher) > 0
        assert CORRECTION_LOSSES[name](student, student).abs() < 1e-6


class TestCorrectionLoss:
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        student, teacher = STUDENT.reshape(1, 3, 1, 1), TEACHER.reshape(1, 3, 1, 1)
        return [student, student, teacher], [teacher, student, teacher]

    @pytest.mark.parametrize("name", ["clc-channel", "clc-pooled", "clc-flat"])
    def test_mean_over_the_layers(self, name: str) -> None:
        """One of three layers differs by 1/4 ln 2, the same for the three forms at one position."""
        assert correction_loss(name, *self.layers()).item() == close(DIVERGENCE / 3)

    def test_layers_may_differ_in_shape(self) -> None:
        student = [torch.ones(2, 3, 4, 4), torch.ones(2, 6, 2, 2)]
        assert correction_loss("clc-channel", student, student).item() == close(0)

    def test_refuses_lists_of_different_length(self) -> None:
        student, teacher = self.layers()
        with pytest.raises(ValueError, match="shorter"):
            correction_loss("clc-channel", student, teacher[:-1])
