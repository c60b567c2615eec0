"""Coresets that do not simply take the hardest samples: RES as a guide, not as an order.

Taking the highest scores starves a small coreset of the bulk of the data (Zheng et al.,
"Coverage-centric Coreset Selection", ICLR 2023). The selections here turn RES into priorities [n]
of which the highest of every group are taken, so that all share one way of balancing classes.
"Group" below is a class, or all images where classes are not balanced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from client.coreset import ranks_in_groups
from common.config import ONLINE

NUM_STRATA = 50
"""Most strata of a group's range of scores (CCS's number)."""

NUM_CLUSTERS = 8
"""Most clusters of a group."""

CLUSTER_ITERATIONS = 5
"""Iterations of k-means: rough clusters are enough to spread a coreset over."""

SAMPLING_FLOOR = 0.1
"""Added to a score before sampling, as a share of the mean score: every sample has a chance."""

LARGEST_WEIGHT = 5.0
"""Of a sample, in multiples of the mean: an unlikely draw must not rule its batch (Ionides,
"Truncated Importance Sampling", 2008)."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Scored samples, and what a selection may look at."""

    scores: Tensor
    """RES [n], higher is harder."""
    groups: Tensor
    """int64 [n]."""
    quotas: Tensor
    """How many of every group will be taken, int64 [groups]."""
    p_teacher: Tensor | None
    """The teacher's softmax outputs [n, classes], for clusters; None with `ONLINE`."""
    drop_hardest: float
    """Share of every group that is left out, the highest scores."""
    hard_share: float
    """Share of a mixed coreset that is taken by the highest score."""


def stratified(candidates: Candidates, generator: torch.Generator) -> Tensor:
    """Evenly over strata of equal width in RES, without the hardest (CCS, algorithm 1).

    A stratum with fewer samples than its share gives all of them, and the others give more.
    Sparse ranges, the tail of hard samples among them, have more weight than at random.
    """
    scores, groups, quotas = candidates.scores, candidates.groups, candidates.quotas
    dropped = _hardest(candidates)
    lowest = _per_group(scores, groups, "amin", ~dropped)
    highest = _per_group(scores, groups, "amax", ~dropped)
    num_strata = quotas.clamp_max(NUM_STRATA)[groups]
    place = (scores - lowest[groups]) / (highest - lowest).clamp_min(1e-12)[groups]
    strata = (place.clamp(0, 1) * num_strata).long().minimum(num_strata - 1)
    return _in_turn(_shuffled(scores, generator), groups, strata, generator, dropped)


def quantiles(candidates: Candidates, generator: torch.Generator) -> Tensor:
    """One of each of as many RES quantiles as samples are taken, without the hardest.

    As at random, but no part of the distribution is missed by chance: stratified sampling.
    """
    groups, quotas = candidates.groups, candidates.quotas
    dropped = _hardest(candidates)
    kept = torch.where(dropped, -math.inf, candidates.scores)
    num_kept = groups.bincount(minlength=len(quotas)) - _count(dropped, groups, len(quotas))
    strata = ranks_in_groups(kept, groups) * quotas[groups] // num_kept.clamp_min(1)[groups]
    shuffled = _shuffled(candidates.scores, generator)
    return _in_turn(shuffled, groups, strata.minimum(quotas[groups] - 1), generator, dropped)


def sampled(candidates: Candidates, generator: torch.Generator) -> Tensor:
    """Without replacement, each draw with probability proportional to RES plus a floor.

    The order of log w_i + Gumbel noise is that of successive draws with weights w_i (Efraimidis
    and Spirakis 2006; Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019).
    """
    num_samples = len(candidates.scores)
    uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 1e-16)))
    return _log_odds(candidates) + gumbel


def importance_weights(candidates: Candidates, priorities: Tensor, chosen: Tensor) -> Tensor:
    """Weights [k] that undo the preference of :func:`sampled`, largest ones clipped, mean 1.

    1 / q_i with q_i = 1 - exp(-w_i exp(-kappa)), the chance to be among the k highest given that
    the next one, of its group, is kappa (Kool et al. 2019, section 4.2). Few of many are drawn:
    q_i ~ k p_i, p_i = w_i / sum w, so that this is 1 / (N p_i) up to a factor; near-certain draws,
    at large shares, have q_i ~ 1.

    Args:
        candidates: that were sampled.
        priorities: [n], what :func:`sampled` gave.
        chosen: int64 [k], the highest of every group.
    """
    ranks = ranks_in_groups(priorities, candidates.groups)
    is_next = ranks == candidates.quotas[candidates.groups]
    # A group that is taken whole has no next one: all its chances are 1.
    threshold = torch.full((len(candidates.quotas),), -math.inf, dtype=priorities.dtype)
    threshold[candidates.groups[is_next]] = priorities[is_next]
    odds = (_log_odds(candidates) - threshold[candidates.groups])[chosen].exp()
    weights = -1.0 / torch.expm1(-odds)
    weights = (weights / weights.mean()).clamp_max(LARGEST_WEIGHT)
    return (weights / weights.mean()).float()


def _log_odds(candidates: Candidates) -> Tensor:
    """log w_i [n], float64, of the RES-proportional draw."""
    scores = candidates.scores.clamp_min(0)
    return (scores + SAMPLING_FLOOR * scores.mean() + 1e-12).double().log()


def mixed(candidates: Candidates, generator: torch.Generator) -> Tensor:
    """``hard_share`` of the coreset by the highest RES, the rest at random from the others."""
    num_hard = (candidates.quotas.double() * candidates.hard_share).round_().long()
    ranks = ranks_in_groups(candidates.scores, candidates.groups)
    is_hard = ranks < num_hard[candidates.groups]
    return _shuffled(candidates.scores, generator) + is_hard


def clustered(candidates: Candidates, generator: torch.Generator) -> Tensor:
    """The highest RES of each cluster of teacher outputs in turn: hard, but not all alike.

    Clusters are those of k-means on sqrt(p_T), whose Euclidean distance is, up to a factor, the
    Hellinger distance of two outputs.
    """
    assert candidates.p_teacher is not None
    points = candidates.p_teacher.sqrt()
    clusters = torch.zeros_like(candidates.groups)
    for group, quota in enumerate(candidates.quotas.tolist()):
        members = (candidates.groups == group).nonzero().squeeze(1)
        num_clusters = min(quota, NUM_CLUSTERS, len(members))
        if num_clusters > 1:
            clusters[members] = k_means(points[members], num_clusters, generator)
    dropped = _hardest(candidates)
    return _in_turn(candidates.scores, candidates.groups, clusters, generator, dropped)


def k_means(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Cluster [n] of every point: Lloyd's iterations from random points of the set.

    Args:
        points: [n, d].
        num_clusters: at most n; one that loses all its points keeps its centre.
        generator: source of the first centres.
    """
    centres = points[torch.randperm(len(points), generator=generator)[:num_clusters]]
    for _ in range(CLUSTER_ITERATIONS):
        nearest = torch.cdist(points, centres).argmin(1)
        counts = nearest.bincount(minlength=num_clusters).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return torch.cdist(points, centres).argmin(1)


SAMPLERS: dict[str, Callable[[Candidates, torch.Generator], Tensor]] = {
    "stratified": stratified,
    "quantiles": quantiles,
    "res-sampled": sampled,
    ONLINE: sampled,
    "res-mixed": mixed,
    "res-clustered": clustered,
}
"""Selection -> priorities [n]; the highest of every group are taken."""


def _hardest(candidates: Candidates) -> Tensor:
    """Which samples [n] are among the floor(drop_hardest n_g) highest scores of their group."""
    counts = candidates.groups.bincount()
    num_dropped = (counts.double() * candidates.drop_hardest + 1e-9).long()
    return ranks_in_groups(candidates.scores, candidates.groups) < num_dropped[candidates.groups]


def _in_turn(
    order: Tensor, groups: Tensor, strata: Tensor, generator: torch.Generator, last: Tensor
) -> Tensor:
    """Priorities [n] that take one sample of every stratum of a group before a second of any.

    Within a stratum the highest ``order`` [n] is first; among strata, turns are in random order;
    samples marked ``last`` come after all others. Taking the first q of a group so gives every
    stratum the same number, except those that are smaller: CCS's budgets.
    """
    num_strata = int(strata.max()) + 1
    cells = groups * num_strata + strata
    turn = ranks_in_groups(torch.where(last, -math.inf, order), cells)
    lots = torch.rand(int(cells.max()) + 1, generator=generator, dtype=torch.float64)
    return lots[cells] - turn - last.double() * len(order)


def _shuffled(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(like), generator=generator)


def _per_group(values: Tensor, groups: Tensor, reduction: str, counted: Tensor) -> Tensor:
    """amin or amax [groups] of the ``counted`` values [n] of every group; 0 for none."""
    result = torch.zeros(int(groups.max()) + 1, dtype=values.dtype)
    return result.scatter_reduce_(
        0, groups[counted], values[counted], reduction, include_self=False
    )


def _count(marked: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    return groups[marked].bincount(minlength=num_groups)
