"""Tests of client.coreset."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.coreset import (
    MODEL_FREE,
    STUDENT_FREE,
    TEACHER_FREE,
    acs_weight,
    adaptive_score,
    balance_groups,
    disagreement_score,
    entropy_score,
    error_vector_score,
    group_quotas,
    relative_entropy_score,
    sample_scores,
    top_of_groups,
)

LN2 = math.log(2)

# One sample of three classes, label 0.
P_QUANTIZED = torch.tensor([[0.5, 0.25, 0.25]])
P_TEACHER = torch.tensor([[0.25, 0.25, 0.5]])
LABEL = torch.tensor([0])

# sum p_Q ln(p_Q / p_F) = 1/2 ln 2 + 0 + 1/4 ln 1/2
RES = LN2 / 4
# |(1/2 - 1, 1/4, 1/4)| = sqrt(1/4 + 1/16 + 1/16)
EVS = math.sqrt(3 / 8)
# |(1/4, 0, -1/4)| = sqrt(1/16 + 1/16)
DS = math.sqrt(1 / 8)
# a(t) = cos(pi t / 2T) with t = 4, T = 6: cos(pi / 3) = 1/2
ACS = (EVS + DS) / 2
QUARC = ACS + RES
# |(1/4 - 1, 1/4, 1/2)| = sqrt(9/16 + 1/16 + 4/16)
EL2N = math.sqrt(14) / 4
# 1/2 ln 2 + 2 * 1/4 ln 4
ENTROPY = 3 / 2 * LN2

EXPECTED = {
    "res": RES,
    "evs": EVS,
    "ds": DS,
    "acs": ACS,
    "quarc": QUARC,
    "el2n": EL2N,
    "entropy": ENTROPY,
}


def close(expected: float) -> object:
    return pytest.approx(expected, rel=1e-6, abs=1e-7)


class TestScores:
    """Expected numbers are derived beside the constants above."""

    def test_relative_entropy(self) -> None:
        assert relative_entropy_score(P_QUANTIZED, P_TEACHER).tolist() == [close(RES)]

    def test_relative_entropy_is_not_symmetric(self) -> None:
        """(1/2, 1/2, 0) against (1/4, 1/2, 1/4): 1/2 ln 2, and 0 ln 0 = 0. The other way round
        1/4 ln 1/2 + 1/4 ln(1/4 / 0), the zero floored at 1e-12: finite and large.
        """
        p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])
        assert relative_entropy_score(p, q).item() == close(LN2 / 2)
        expected = -LN2 / 4 + (math.log(0.25) - math.log(1e-12)) / 4
        assert relative_entropy_score(q, p).item() == pytest.approx(expected, rel=1e-5)

    def test_error_vector(self) -> None:
        """Label 1 as well: |(1/2, -3/4, 1/4)| = sqrt(4/16 + 9/16 + 1/16)."""
        scores = error_vector_score(P_QUANTIZED.expand(2, 3), torch.tensor([0, 1]))
        assert scores.tolist() == [close(EVS), close(math.sqrt(14 / 16))]

    def test_disagreement(self) -> None:
        assert disagreement_score(P_QUANTIZED, P_TEACHER).tolist() == [close(DS)]

    def test_entropy(self) -> None:
        """Certainty has none; thirds have ln 3."""
        p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
        assert entropy_score(p).tolist() == [close(ENTROPY), close(0), close(math.log(3))]

    @pytest.mark.parametrize(
        ("epoch", "expected"), [(0, 1.0), (2, math.sqrt(3) / 2), (4, 0.5), (6, 0.0)]
    )
    def test_weight_of_acs(self, epoch: int, expected: float) -> None:
        """cos(pi t / 12): cos 0, cos(pi / 6), cos(pi / 3), cos(pi / 2)."""
        assert acs_weight(epoch, 6) == close(expected)

    @pytest.mark.parametrize(("epoch", "expected"), [(0, EVS), (4, ACS), (6, DS)])
    def test_acs_goes_from_error_to_disagreement(self, epoch: int, expected: float) -> None:
        score = adaptive_score(P_QUANTIZED, P_TEACHER, LABEL, epoch=epoch, num_epochs=6)
        assert score.tolist() == [close(expected)]

    @pytest.mark.parametrize("selection", EXPECTED)
    def test_by_name(self, selection: str) -> None:
        score = sample_scores(
            selection,
            p_quantized=P_QUANTIZED,
            p_teacher=P_TEACHER,
            labels=LABEL,
            epoch=4,
            num_epochs=6,
        )
        assert score.tolist() == [close(EXPECTED[selection])]

    @pytest.mark.parametrize("selection", sorted(EXPECTED))
    def test_what_a_selection_needs(self, selection: str) -> None:
        """A selection that is said to need no teacher (student) gives the same with another one."""
        uniform = torch.full((1, 3), 1 / 3)
        place = {"labels": LABEL, "epoch": 4, "num_epochs": 6}
        other_teacher = sample_scores(
            selection,
            p_quantized=P_QUANTIZED,
            p_teacher=uniform,
            **place,  # type: ignore[arg-type]
        )
        other_student = sample_scores(
            selection,
            p_quantized=uniform,
            p_teacher=P_TEACHER,
            **place,  # type: ignore[arg-type]
        )
        unchanged = close(EXPECTED[selection])
        assert (other_teacher.item() == unchanged) == (selection in TEACHER_FREE)
        assert (other_student.item() == unchanged) == (selection in STUDENT_FREE)

    @pytest.mark.parametrize("selection", [*MODEL_FREE, "quark"])
    def test_no_score(self, selection: str) -> None:
        with pytest.raises(ValueError, match=f"selection = '{selection}': has no score"):
            sample_scores(
                selection,
                p_quantized=P_QUANTIZED,
                p_teacher=P_TEACHER,
                labels=LABEL,
                epoch=0,
                num_epochs=1,
            )

    def test_probabilities_are_left_alone(self) -> None:
        p_quantized, p_teacher = P_QUANTIZED.clone(), P_TEACHER.clone()
        for selection in EXPECTED:
            sample_scores(
                selection,
                p_quantized=p_quantized,
                p_teacher=p_teacher,
                labels=LABEL,
                epoch=1,
                num_epochs=2,
            )
        assert torch.equal(p_quantized, P_QUANTIZED)
        assert torch.equal(p_teacher, P_TEACHER)


def select_top(scores: Tensor, labels: Tensor, fraction: float, *, balanced: bool) -> Tensor:
    groups = balance_groups(labels, balanced=balanced)
    return top_of_groups(scores, groups, group_quotas(groups, fraction))


class TestSelectTop:
    # Classes 0: 4 samples, 1: 5, 2: 1; scores are highest at the end but for the last.
    LABELS = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 1, 2])
    SCORES = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, -1.0])

    def test_balanced(self) -> None:
        """Half of each class: 2 of 4 (samples 4, 6), round(2.5) = 2 of 5 (7, 8), and
        round(0.5) = 0, but at least 1, of 1 (9), the lowest of all.
        """
        chosen = select_top(self.SCORES, self.LABELS, 0.5, balanced=True)
        assert chosen.tolist() == [4, 6, 7, 8, 9]

    def test_unbalanced(self) -> None:
        """round(0.5 * 10) = 5 best of all, whatever their class."""
        chosen = select_top(self.SCORES, self.LABELS, 0.5, balanced=False)
        assert chosen.tolist() == [4, 5, 6, 7, 8]

    @pytest.mark.parametrize("balanced", [True, False])
    def test_everything(self, balanced: bool) -> None:
        chosen = select_top(self.SCORES, self.LABELS, 1.0, balanced=balanced)
        assert chosen.tolist() == list(range(10))

    def test_at_least_one_of_each_class(self) -> None:
        assert select_top(self.SCORES, self.LABELS, 0.01, balanced=True).tolist() == [6, 8, 9]

    def test_at_least_two_in_all(self) -> None:
        """1 % of ten: the best two of all; of the five of class 1, which some device may hold
        alone: its best two; of one image: that one."""
        assert select_top(self.SCORES, self.LABELS, 0.01, balanced=False).tolist() == [7, 8]
        alone = self.LABELS == 1
        chosen = select_top(self.SCORES[alone], self.LABELS[alone], 0.01, balanced=True)
        assert chosen.tolist() == [3, 4]
        assert select_top(self.SCORES[:1], self.LABELS[:1], 0.01, balanced=True).tolist() == [0]

    def test_ties_go_to_the_first(self) -> None:
        chosen = select_top(torch.zeros(10), self.LABELS, 0.5, balanced=True)
        assert chosen.tolist() == [0, 1, 2, 3, 9]

    @settings(deadline=None, max_examples=50)
    @given(
        samples=st.lists(st.tuples(st.integers(0, 6), st.integers(-5, 5)), min_size=1, max_size=60),
        percent=st.integers(1, 100),
        balanced=st.booleans(),
    )
    def test_quotas_and_order(
        self, samples: list[tuple[int, int]], percent: int, balanced: bool
    ) -> None:
        """Every group gives round(S n), at least one, or two if it is the only one and has two;
        nothing left out beats what is chosen."""
        groups = [label if balanced else 0 for label, _ in samples]
        labels = torch.tensor([label for label, _ in samples])
        scores = torch.tensor([float(score) for _, score in samples])
        chosen = select_top(scores, labels, percent / 100, balanced=balanced).tolist()
        assert chosen == sorted(set(chosen))
        counts = Counter(groups[index] for index in chosen)
        sizes = Counter(groups)
        for group, size in sizes.items():
            least = min(2, size) if len(sizes) == 1 else 1
            assert counts[group] == max(least, round(percent / 100 * size))
            inside = [samples[i][1] for i in chosen if groups[i] == group]
            outside = [
                samples[i][1] for i in range(len(samples)) if groups[i] == group and i not in chosen
            ]
            assert not outside or min(inside) >= max(outside)


def test_scores_keep_their_samples_apart() -> None:
    """Each sample is scored by itself: a batch gives what its samples give one by one."""
    generator = torch.Generator().manual_seed(0)
    p_quantized, p_teacher = torch.rand(2, 7, 3, generator=generator).softmax(2)
    labels = torch.arange(7) % 3

    def score(chosen: Tensor) -> Tensor:
        return sample_scores(
            "quarc",
            p_quantized=p_quantized[chosen],
            p_teacher=p_teacher[chosen],
            labels=labels[chosen],
            epoch=1,
            num_epochs=3,
        )

    together = score(torch.arange(7))
    alone = torch.cat([score(torch.tensor([index])) for index in range(7)])
    torch.testing.assert_close(together, alone)
