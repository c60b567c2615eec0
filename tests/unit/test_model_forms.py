"""Tests of server.model.forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.payloads.updates import decode_state
from server.model.forms import from_chunks, pack_model, payload_hash, to_chunks

STATE = {
    "weight": np.array([[1.0, -2.0]], np.float32),
    "variance": np.array([3.0, 4.0], np.float32),
    "step": np.array(0.5, np.float32),
}


@pytest.mark.parametrize("chunk_values", [1, 3, 5, 100])
def test_pieces_of_any_size_hold_the_same_state(
    monkeypatch: pytest.MonkeyPatch, chunk_values: int
) -> None:
    """Five values in pieces of 1, 3, 5 or more: 5, 2, 1 and 1 arrays."""
    monkeypatch.setattr("server.model.forms.CHUNK_VALUES", chunk_values)
    shapes = {name: values.shape for name, values in STATE.items()}
    chunks = to_chunks(STATE, list(shapes))
    assert len(chunks) == math.ceil(5 / chunk_values)
    restored = from_chunks(chunks, shapes)
    assert list(restored) == list(STATE)
    for name, values in STATE.items():
        np.testing.assert_array_equal(restored[name], values)
        assert restored[name].shape == values.shape


def test_a_piece_holds_the_named_entries_alone() -> None:
    (piece,) = to_chunks(STATE, ["step", "weight"]).values()
    assert piece.numpy().tolist() == [0.5, 1.0, -2.0]


def test_of_no_entries_there_is_an_empty_piece() -> None:
    chunks = to_chunks(STATE, [])
    assert [array.numpy().tolist() for array in chunks.values()] == [[]]
    assert from_chunks(chunks, {}) == {}


@pytest.mark.parametrize("downlink_format", ["float32", "float16", "int8"])
def test_the_base_is_what_devices_decode(downlink_format: str) -> None:
    """1/3 is no float16, and 1 is no multiple of an int8 step of 2/127."""
    state = {"weight": np.array([[1 / 3, 1.0, -2.0]], np.float32)}
    payload, base = pack_model(state, downlink_format)
    np.testing.assert_array_equal(base["weight"], decode_state(payload)["weight"])
    is_exact = np.array_equal(base["weight"], state["weight"])
    assert is_exact == (downlink_format == "float32")


def test_steps_stay_above_zero_in_float16() -> None:
    """The least that training allows, 1e-8, is nearer to 0 than to 2^-24, float16's least number.
    Zero by a step of zero would be NaN; other steps and weights are rounded as ever."""
    state = {
        "a.weight": np.array([[1e-8]], np.float32),
        "a.weight_quantizer.step": np.array(1e-8, np.float32),
        "b.weight_quantizer.step": np.array([[1e-8], [0.5]], np.float32),
    }
    base = pack_model(state, "float16")[1]
    assert base["a.weight"].tolist() == [[0.0]]
    assert base["a.weight_quantizer.step"].tolist() == 2**-24
    assert base["b.weight_quantizer.step"].tolist() == [[2**-24], [0.5]]


def test_a_payloads_hash_is_the_same_everywhere() -> None:
    """Devices compare it: BLAKE2b with 16 bytes, here of nothing."""
    assert payload_hash(b"") == "cae66941d9efbd404e4d88758ea67670"
