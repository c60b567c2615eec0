"""Tests of common.data.stratify."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.stratify import stratified_mask


def test_counts_of_each_class() -> None:
    """A fifth of 15: floor(15/5 + 1/2) = 3, of 10 of class 0: 2, of 5 of class 1: 1."""
    labels = np.array([0] * 10 + [1] * 5)
    for seed in range(20):
        taken = stratified_mask(labels, 0.2, np.random.default_rng(seed))
        assert np.bincount(labels[taken], minlength=2).tolist() == [2, 1]


def test_every_sample_may_be_taken() -> None:
    """Half of two samples a class is one; over 40 seeds each of them is taken sometimes."""
    labels = np.array([0, 0, 1, 1])
    times = np.sum(
        [stratified_mask(labels, 0.5, np.random.default_rng(seed)) for seed in range(40)], axis=0
    )
    assert (times > 5).all()
    assert times[:2].sum() == times[2:].sum() == 40


def test_classes_with_one_sample_are_not_taken() -> None:
    labels = np.array([3, 1, 7])
    assert not stratified_mask(labels, 0.9, np.random.default_rng(0)).any()


def test_no_samples() -> None:
    assert stratified_mask(np.array([], dtype=int), 0.5, np.random.default_rng(0)).shape == (0,)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        stratified_mask(np.array([0, 1]), fraction, np.random.default_rng(0))


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array),
    fraction=st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.9]),
    seed=st.integers(0, 2**32),
)
def test_each_class_keeps_its_share(labels: np.ndarray, fraction: float, seed: int) -> None:
    taken = stratified_mask(labels, fraction, np.random.default_rng(seed))
    assert (taken == stratified_mask(labels, fraction, np.random.default_rng(seed))).all()
    spared = 0
    for label in np.unique(labels):
        size = int((labels == label).sum())
        count = int(taken[labels == label].sum())
        assert count < size
        if count == size - 1:
            spared += 1  # one of its samples may have been given back
        else:
            assert math.floor(size * fraction) <= count <= math.ceil(size * fraction)
    expected = math.floor(len(labels) * fraction + 0.5)
    assert expected - spared <= taken.sum() <= expected
