"""A model's state in the forms it takes on the server: Flower's records, pieces, payloads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from common.payloads.updates import decode_state, encode_float, encode_int8
from common.qat import STEP_SUFFIX
from server.model.aggregation import State

CHUNK_VALUES = 1 << 20
"""Values of a piece of the state, 4 MiB, that strategies are given."""

_SMALLEST_HALF = np.float32(np.finfo(np.float16).smallest_subnormal)


def to_chunks(state: Mapping[str, NDArray[np.float32]], names: Sequence[str]) -> ArrayRecord:
    """The named entries one after the other, cut into a few large arrays.

    Strategies work element by element or on the whole vector: for them entries have no meaning,
    but every array costs a serialization (measured, ResNet-20: 28 ms a device with its 129
    entries, 2 ms in one piece). Pieces keep the temporaries of robust strategies small.
    """
    # Of no entries, where each bit-width has its own: an empty one.
    flat = np.concatenate([np.empty(0, np.float32), *(state[name].ravel() for name in names)])
    pieces = np.split(flat, range(CHUNK_VALUES, flat.size, CHUNK_VALUES))
    return ArrayRecord({str(index): Array(piece) for index, piece in enumerate(pieces)})


def from_chunks(chunks: ArrayRecord, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """The entries of `to_chunks`, as float32 views of one array."""
    flat = np.concatenate([array.numpy() for array in chunks.values()]).astype(np.float32)
    ends = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())])
    return {
        name: flat[start:end].reshape(shape)
        for (name, shape), (start, end) in zip(shapes.items(), pairwise(ends), strict=True)
    }


def pack_model(state: State, downlink_format: str) -> tuple[bytes, State]:
    """The model's payload in the downlink format, and the state that it decodes to."""
    if downlink_format == "float32":
        return encode_float(state, "float32", {}), state
    if downlink_format == "int8":
        payload = encode_int8(state, {})
    else:
        payload = encode_float(_with_half_steps(state), "float16", {})
    return payload, decode_state(payload)


def _with_half_steps(state: State) -> State:
    """The state with quantizer steps that are above 0 in float16, too: a device divides by them.

    Those of weights that are all zero, or that training has pushed to the least that it allows,
    are not.
    """
    return {
        name: np.asarray(values.clip(_SMALLEST_HALF)) if name.endswith(STEP_SUFFIX) else values
        for name, values in state.items()
    }


def payload_hash(payload: bytes) -> str:
    """Hex digest of a payload: 32 digits of BLAKE2b."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


def to_record(state: State) -> ArrayRecord:
    """A state as Flower's record."""
    return ArrayRecord({name: Array(values) for name, values in state.items()})


def to_state(arrays: ArrayRecord) -> State:
    """The arrays of Flower's record."""
    return {name: array.numpy() for name, array in arrays.items()}
