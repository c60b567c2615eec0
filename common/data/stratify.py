"""Stratified random choice: a share of the samples in which every class keeps its share."""

from __future__ import annotations

import numpy as np


def stratified_mask(
    labels: np.ndarray, fraction: float, generator: np.random.Generator
) -> np.ndarray:
    """Choose ``fraction`` of the samples at random, with every class in proportion.

    Systematic sampling (Madow 1949): samples are lined up class by class, classes and the samples
    within them in random order, and every (1 / fraction)-th one is taken. So floor(n f + 1/2) of
    all n samples are taken, and floor(n_c f) or ceil(n_c f) of the n_c samples of class c. A
    class is never taken whole: one sample of it is left, so fewer may be taken when classes are
    tiny.

    Args:
        labels: class of each sample, integers >= 0, shape [n].
        fraction: share to take, 0 <= fraction < 1.
        generator: source of the choice.

    Returns:
        Boolean mask of the samples taken, shape [n].

    Raises:
        ValueError: ``fraction`` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction = {fraction} is not in [0, 1)")
    taken = np.zeros(len(labels), dtype=bool)
    if len(labels) == 0:
        return taken
    class_order = generator.permutation(int(labels.max()) + 1)
    line = np.lexsort((generator.random(len(labels)), class_order[labels]))
    steps = np.floor(np.arange(len(labels) + 1) * fraction + 0.5)
    taken[line] = np.diff(steps) > 0
    left = np.bincount(labels[~taken], minlength=len(class_order))
    classes, first = np.unique(labels[line], return_index=True)
    taken[line[first[left[classes] == 0]]] = False
    return taken
