"""Which images a device trains on: scores of samples and the choice of a coreset by them.

RES is the relative entropy score of QuaRC (arXiv 2507.17768); EVS, DS and ACS are those of
Huang et al. (TMLR 2024, arXiv 2306.07215). All take probabilities [n, classes] and give [n];
the highest score is chosen first. Selections that do not simply take the highest scores are in
`client.sampling`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.config import COST_NOTHING

TINY = 1e-12
"""Floor of a probability under a logarithm."""

SMALLEST_CORESET = 2
"""Images: batch normalisation needs more than one value per channel."""

MODEL_FREE = frozenset({*COST_NOTHING, "full"})
"""Selections that run no model."""

TEACHER_FREE = MODEL_FREE | {"evs", "entropy"}
"""Selections that need no teacher outputs."""

STUDENT_FREE = MODEL_FREE | {"el2n"}
"""Selections that need no outputs of the quantized model."""


def relative_entropy_score(p_quantized: Tensor, p_float: Tensor) -> Tensor:
    """d_RES = sum_m p_Q log(p_Q / p_F) = KL(p_Q || p_F) (QuaRC)."""
    ratio = p_quantized.clamp_min(TINY).log_().sub_(p_float.clamp_min(TINY).log_())
    return ratio.mul_(p_quantized).sum(1)


def error_vector_score(p_quantized: Tensor, labels: Tensor) -> Tensor:
    """d_EVS = ||p_Q - y||_2, y the one-hot label (ACS)."""
    one_hot = functional.one_hot(labels, p_quantized.shape[1]).to(p_quantized.dtype)
    return torch.linalg.vector_norm(p_quantized - one_hot, dim=1)


def disagreement_score(p_quantized: Tensor, p_teacher: Tensor) -> Tensor:
    """d_DS = ||p_Q - p_T||_2 (ACS)."""
    return torch.linalg.vector_norm(p_quantized - p_teacher, dim=1)


def entropy_score(p_quantized: Tensor) -> Tensor:
    """-sum_m p_Q log p_Q: uncertainty of the quantized model."""
    return -(p_quantized.clamp_min(TINY).log_().mul_(p_quantized)).sum(1)


def acs_weight(epoch: float, num_epochs: int) -> float:
    """a(t) = cos(pi t / 2T): from the error vector early to disagreement late (ACS)."""
    return math.cos(math.pi * epoch / (2 * num_epochs))


def adaptive_score(
    p_quantized: Tensor, p_teacher: Tensor, labels: Tensor, *, epoch: float, num_epochs: int
) -> Tensor:
    """d_ACS = a(t) d_EVS + (1 - a(t)) d_DS (ACS)."""
    weight = acs_weight(epoch, num_epochs)
    return weight * error_vector_score(p_quantized, labels) + (1 - weight) * disagreement_score(
        p_quantized, p_teacher
    )


def sample_scores(
    selection: str,
    *,
    p_quantized: Tensor,
    p_teacher: Tensor,
    labels: Tensor,
    epoch: float,
    num_epochs: int,
) -> Tensor:
    """Scores [n] of the named selection.

    Args:
        selection: quarc, res, acs, evs, ds, el2n or entropy.
        p_quantized: the quantized model's softmax outputs [n, classes].
        p_teacher: the full-precision teacher's [n, classes].
        labels: [n].
        epoch: epochs done over all rounds, t.
        num_epochs: epochs of the whole training, T.

    Raises:
        ValueError: for a selection that has no score.
    """
    position = {"epoch": epoch, "num_epochs": num_epochs}
    if selection == "res":
        return relative_entropy_score(p_quantized, p_teacher)
    if selection == "quarc":
        adaptive = adaptive_score(p_quantized, p_teacher, labels, **position)  # type: ignore[arg-type]
        return adaptive + relative_entropy_score(p_quantized, p_teacher)
    if selection == "acs":
        return adaptive_score(p_quantized, p_teacher, labels, **position)  # type: ignore[arg-type]
    if selection == "evs":
        return error_vector_score(p_quantized, labels)
    if selection == "ds":
        return disagreement_score(p_quantized, p_teacher)
    if selection == "el2n":
        # EL2N (Paul et al., NeurIPS 2021) scores with a float network: here the teacher.
        return error_vector_score(p_teacher, labels)
    if selection == "entropy":
        return entropy_score(p_quantized)
    raise ValueError(f"selection = {selection!r}: has no score")


def smooth_scores(scores: Tensor, earlier: Tensor, weight: float) -> Tensor:
    """Exponential moving average over selections, in which the earlier scores have ``weight``.

    Args:
        scores: [n], of this selection.
        earlier: [n], their average so far, NaN where there is none: there the score stands alone.
        weight: 0 ... 1.
    """
    return torch.where(earlier.isnan(), scores, torch.lerp(scores, earlier, weight))


def balance_groups(labels: Tensor, *, balanced: bool) -> Tensor:
    """Groups [n] that are each chosen from by themselves: the classes, or all images as one."""
    return labels if balanced else torch.zeros_like(labels)


def group_quotas(groups: Tensor, fraction: float) -> Tensor:
    """How many to choose of every group, int64 [groups]: round(fraction n_g), at least one.

    Of a single group at least `SMALLEST_CORESET`, if it has as many. A group without images has
    a quota as well, which nothing can use up.
    """
    counts = groups.bincount()
    is_single = int(counts.count_nonzero()) == 1
    least = min(SMALLEST_CORESET, len(groups)) if is_single else 1
    return (counts.double() * fraction).round_().clamp_min_(least).long()


def top_of_groups(scores: Tensor, groups: Tensor, quotas: Tensor) -> Tensor:
    """Indices [k] of the ``quotas[g]`` highest scores of every group g, sorted ascending.

    Args:
        scores: [n].
        groups: int64 [n], from 0.
        quotas: int64 [groups].
    """
    return (ranks_in_groups(scores, groups) < quotas[groups]).nonzero().squeeze(1)


def ranks_in_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """Place [n] of every sample among its group: 0 is the highest score, ties by index."""
    order = scores.argsort(descending=True, stable=True)
    by_group = order[groups[order].argsort(stable=True)]
    counts = groups.bincount()
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(by_group)
    ranks[by_group] = torch.arange(len(by_group)) - starts[groups[by_group]]
    return ranks


@dataclass(frozen=True, kw_only=True)
class Coreset:
    """The chosen samples of one device."""

    indices: Tensor
    """int64 [k], ascending, into the device's training images."""
    epoch: int
    """Epochs that had been done when it was chosen."""
    weights: Tensor | None = None
    """[k], mean 1: how much each sample counts in the loss; None: all the same."""
    scores: Tensor | None = None
    """[n], scores of all images, NaN where one was never scored; None: not kept. Those of `ONLINE`
    go on changing while the coreset is trained on."""
