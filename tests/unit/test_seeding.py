"""Tests of common.seeding."""

import hashlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.seeding import numpy_generator, stream_seed, torch_generator


def test_the_seed_is_a_hash_of_its_place() -> None:
    """BLAKE2b of "7:train:3:5", eight bytes as a little-endian number, its lowest bit dropped."""
    digest = hashlib.blake2b(b"7:train:3:5", digest_size=8).digest()
    assert stream_seed(7, "train", 3, 5) == int.from_bytes(digest, "little") // 2


@given(st.integers(0, 2**31 - 1), st.text(), st.lists(st.integers(0, 10**6), max_size=3))
def test_every_seed_fits_both_kinds_of_generator(
    seed: int, purpose: str, position: list[int]
) -> None:
    value = stream_seed(seed, purpose, *position)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)
    np.random.default_rng(value)


def test_places_have_seeds_of_their_own() -> None:
    """Among them those that would collide if the parts were only put together."""
    places: list[tuple[int, str, tuple[int, ...]]] = [
        (seed, purpose, position)
        for seed in (0, 1, 11)
        for purpose in ("train", "select")
        for position in ((), (1,), (11,), (1, 1), (1, 11), (11, 1))
    ]
    seeds = {stream_seed(seed, purpose, *position) for seed, purpose, position in places}
    assert len(seeds) == len(places) == 36


def test_generators_repeat() -> None:
    draws = [torch.rand(4, generator=torch_generator(3, "order", 1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=torch_generator(3, "order", 2)))
    numbers = [numpy_generator(3, "order", 1).random(4).tolist() for _ in range(2)]
    assert numbers[0] == numbers[1]


def test_global_state_is_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.random(3)
    torch.manual_seed(5)
    np.random.seed(5)
    torch.rand(9, generator=torch_generator(1, "order"))
    numpy_generator(1, "order").random(9)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.random(3), expected[1])
