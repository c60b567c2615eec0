"""Hostile replies: the fuzzer with a small number, and payloads that hypothesis makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.payloads.updates import decode_update
from common.payloads.wire import WireError
from tests.fuzz.replies import base_state, forge, fuzz

LARGEST_GROWTH = 64 * 1024 * 1024
"""Bytes: a bomb that went off would take more."""


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_replies_are_refused_and_rounds_go_on(seed: int) -> None:
    """`fuzz` asserts what must hold in every round; every kind of attack must really take place."""
    report = fuzz(count=1500, seed=seed)
    assert report.num_replies == 1500
    assert report.grown_bytes < LARGEST_GROWTH
    assert set(report.refused) >= {"malformed", "bad-update", "bad-metrics", "wrong-round"}
    assert sum(report.refused.values()) > report.num_replies / 2


@settings(max_examples=200, deadline=None)
@given(prefix=st.sampled_from([b"", b"FQWP\x02\x00\x00\x00"]), content=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_refusal(prefix: bytes, content: bytes) -> None:
    state = base_state()
    shapes = {name: values.shape for name, values in state.items()}
    for payload in (prefix + content, forge(prefix + content + bytes(8))):
        with pytest.raises(WireError):
            decode_update(payload, base=state, expected_shapes=shapes)


def test_the_fuzzer_repeats_itself() -> None:
    first, second = (fuzz(count=50, seed=3) for _ in range(2))
    assert first.refused == second.refused
    assert first.num_accepted == second.num_accepted
