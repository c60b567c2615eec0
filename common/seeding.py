"""Random streams derived from (seed, purpose, round, device), never from global state."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one purpose at one position (for example round and partition id).

    Streams of different purposes or positions are independent: the seed is a hash of them all.
    """
    key = ":".join([str(seed), purpose, *(str(part) for part in position)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A torch CPU generator for one purpose at one position."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *position))


def numpy_generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A numpy generator for one purpose at one position."""
    return np.random.default_rng(stream_seed(seed, purpose, *position))
