"""Update formats: a model state, or its change, as one payload, and back.

A state is a mapping from names to float32 arrays. Uplink formats, device to server:

- ``codes``: the quantized weights as the b-bit codes and steps that the deployed model uses, the
  rest as float32. Lossless for the deployed model; sub-step progress of the latent weights stays
  on the device.
- ``delta``: the change against a base state that both sides hold, quantized to a few bits with
  unbiased stochastic rounding per output channel (as in QSGD, Alistarh et al., NeurIPS 2017), with
  error feedback (Seide et al., Interspeech 2014): what one round's rounding lost is added to the
  next round's change.
- ``float32``: the reference.

Downlink formats, server to device: ``float32``, ``float16``, ``int8``, and ``delta`` to one that
holds an earlier model.

The payload itself is that of common.payloads.wire, its format in the metadata under "format".
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.payloads import wire
from common.payloads.flat_tensors import (
    Shapes,
    State,
    channel_sections,
    dequantize_sections,
    flat_copy,
    flat_views,
    half_sections,
)
from common.payloads.wire import Codes, Plain, WireError

UPDATE_FORMATS = ("codes", "delta", "float32")
DOWNLINK_FORMATS = ("float32", "float16", "int8", "delta")

Metadata = Mapping[str, str | int | float]

FLOAT32 = np.dtype(np.float32)
"""Comparing a dtype with it takes a fifth of the time that comparing with np.float32 takes."""

FORMAT_KEY = "format"
BASE_HASH_KEY = "base-hash"


def encode_float(state: State, dtype: str, metadata: Metadata) -> bytes:
    """Encodes a state as floats.

    Args:
        state: name -> float32 array.
        dtype: "float32", or "float16"; a tensor beyond float16's range (65504) stays float32.
        metadata: sent along; "format" is set here.

    Raises:
        ValueError: an unknown dtype, or a state that is not float32 or not finite (by name).
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype must be float32 or float16, got {dtype!r}")
    _check_dtypes(state)
    flat, views = flat_copy(state, state)
    if dtype == "float16":
        encodings, sections = half_sections(flat, views)
    else:
        encodings, sections = dict.fromkeys(state, "float32"), {"float32": flat}
    return _encode_sections(state, encodings, sections, dtype, metadata)


def encode_codes(state: State, quantized: Mapping[str, Codes], metadata: Metadata) -> bytes:
    """Encodes the low-bit model itself: the given codes, and everything else as float32.

    Args:
        state: name -> float32 array.
        quantized: name -> codes and steps sent in place of the array of that name and shape.
        metadata: sent along; "format" is set here.

    Raises:
        ValueError: codes for a tensor that is not in the state or has another shape; codes out of
            their range; a state that is not float32 or not finite (by name).
    """
    _check_dtypes(state)
    for name, codes in quantized.items():
        if name not in state or state[name].shape != codes.shape:
            raise ValueError(
                f"codes of {name!r} have shape {codes.shape}, the state has "
                f"{state[name].shape if name in state else 'no such tensor'}"
            )
    tensors = {name: quantized.get(name) or Plain(values) for name, values in state.items()}
    return wire.encode(tensors, _with_format("codes", metadata))


@np.errstate(over="ignore", invalid="ignore")  # wire.encode refuses by name what is not finite
def encode_delta(
    state: State,
    base: State,
    bits: int,
    residual: State | None,
    generator: np.random.Generator | None,
    metadata: Metadata,
) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """Encodes ``state - base + residual``, with a generator rounded so that its mean is unbiased.

    Tensors of two and more dimensions go as ``bits``-bit codes with one step per output channel
    (axis 0), max|delta| / Q_P; all others as float16, or as float32 where float16 overflows.

    Args:
        state: name -> float32 array.
        base: the state that the receiver holds; same names and shapes.
        bits: 2 to 8.
        residual: what this sender's previous delta lost; None in its first round.
        generator: dither of the stochastic rounding; None: to nearest.
        metadata: sent along; "format" is set here. "base-hash", if given, is compared by
            `decode_state`.

    Returns:
        (payload, new residual): delta + residual = decoded delta + new residual. The arrays of the
        residual are views of one buffer.

    Raises:
        ValueError: ``bits`` outside 2-8, other names or shapes in ``base`` or ``residual``, or a
            change that is not finite (by name).
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    _check_dtypes(state)
    _check_matches("base", base, state)
    if residual is not None:
        _check_matches("residual", residual, state)
    coded, plain = _split_names(state)
    delta, views = flat_views({name: state[name].shape for name in coded + plain})
    boundary = sum(state[name].size for name in coded)
    coded_delta, plain_delta = delta[:boundary], delta[boundary:]
    for name in coded:
        np.subtract(state[name], base[name], out=views[name])
        if residual is not None:
            views[name] += residual[name]
    if plain:  # end to end: arithmetic on each of these small tensors costs more than copying it
        np.subtract(_joined(state, plain), _joined(base, plain), out=plain_delta)
        if residual is not None:
            plain_delta += _joined(residual, plain)
    # What rounding loses takes the place of the delta: the views become the residual.
    halves, half_values = half_sections(
        plain_delta, {name: views[name] for name in plain}, lost=plain_delta
    )
    codes, code_values = channel_sections(
        coded_delta, {name: views[name] for name in coded}, bits, generator, lost=coded_delta
    )
    encodings, sections = {**codes, **halves}, {**code_values, **half_values}
    return _encode_sections(state, encodings, sections, "delta", metadata), views


def encode_int8(state: State, metadata: Metadata) -> bytes:
    """Encodes a state for the downlink: tensors of two and more dimensions as 8-bit codes.

    The codes are rounded to nearest, with one step per output channel (axis 0), max|w| / 127; all
    other tensors go as float32.

    Args:
        state: name -> float32 array.
        metadata: sent along; "format" is set here.

    Raises:
        ValueError: a state that is not float32 or not finite (by name).
    """
    _check_dtypes(state)
    coded, plain = _split_names(state)
    encodings, sections = channel_sections(*flat_copy(state, coded), bits=8)
    encodings |= dict.fromkeys(plain, "float32")
    sections["float32"] = flat_copy(state, plain)[0]
    return _encode_sections(state, encodings, sections, "int8", metadata)


@dataclass(frozen=True, kw_only=True)
class Update:
    """A decoded payload."""

    state: dict[str, NDArray[np.float32]]
    """What `decode_state` returns."""
    flat: NDArray[np.float32]
    """All values of ``state``, of which its arrays are views."""
    metadata: Metadata
    """What was sent along, "format" included."""


def decode_state(
    payload: bytes | bytearray | memoryview,
    *,
    base: State | None = None,
    expected_shapes: Shapes | None = None,
    max_values: int = wire.DEFAULT_MAX_VALUES,
    base_hash: str | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The state of `decode_update`, whose arguments and errors it has."""
    return decode_update(
        payload,
        base=base,
        expected_shapes=expected_shapes,
        max_values=max_values,
        base_hash=base_hash,
    ).state


def decode_update(
    payload: bytes | bytearray | memoryview,
    *,
    base: State | None = None,
    expected_shapes: Shapes | None = None,
    max_values: int = wire.DEFAULT_MAX_VALUES,
    base_hash: str | None = None,
) -> Update:
    """Decodes a payload of any of the formats to the full state that it stands for.

    Args:
        payload: what one of the encoders returned, or any other bytes.
        base: the state that a delta is added to.
        expected_shapes: name -> shape of exactly the tensors that must be there; None accepts any,
            or for a delta those of ``base``.
        max_values: most values over all tensors.
        base_hash: what the metadata of a delta must hold under "base-hash"; None does not compare.

    Returns:
        The state, name -> float32 array, new and writable, all views of one buffer, and the
        payload's metadata.

    Raises:
        WireError: a payload that is not as expected, by the name of the field or tensor; a delta
            without a base, against another base, or one that does not stay finite when added.
    """
    rows, sections, metadata = wire.decode_sections(
        payload, expected=expected_shapes, max_values=max_values
    )
    update_format = metadata.get(FORMAT_KEY)
    if update_format not in {*UPDATE_FORMATS, *DOWNLINK_FORMATS}:
        raise WireError(f"metadata {FORMAT_KEY!r}: unknown format {update_format!a:.80}")
    flat, views = dequantize_sections(rows, sections)
    if update_format == "delta":
        if base is None:
            raise WireError(f"metadata {FORMAT_KEY!r}: a delta, but there is no base to add it to")
        if base_hash is not None and metadata.get(BASE_HASH_KEY) != base_hash:
            raise WireError(
                f"metadata {BASE_HASH_KEY!r}: expected {base_hash!r}, "
                f"got {metadata.get(BASE_HASH_KEY)!a:.80}"
            )
        names = base if expected_shapes is None else expected_shapes
        wire.check_shapes(
            {row.name: row.shape for row in rows},
            {name: base[name].shape for name in names if name in base},
        )
        _add(base, flat, views)
    return Update(state=views, flat=flat, metadata=metadata)


def _add(base: State, flat: NDArray[np.float32], views: Mapping[str, NDArray[np.float32]]) -> None:
    """Adds the base to the views of ``flat``, in place."""
    with np.errstate(over="ignore"):
        for name, values in views.items():
            values += base[name]
    if not np.isfinite(flat).all():
        name = next(name for name, values in views.items() if not np.isfinite(values).all())
        raise WireError(f"tensor {name!r}: base + delta is not finite")


def _encode_sections(
    state: State,
    encodings: Mapping[str, str],
    sections: Mapping[str, NDArray[Any]],
    update_format: str,
    metadata: Metadata,
) -> bytes:
    """A payload of the state's names and shapes, in its order; ``sections`` are in it, too."""
    rows = _checked_rows(tuple((name, encodings[name], state[name].shape) for name in state))
    return wire.encode_sections(rows, sections, _with_format(update_format, metadata))


@lru_cache(maxsize=4)
def _checked_rows(entries: tuple[tuple[str, str, tuple[int, ...]], ...]) -> tuple[wire.Row, ...]:
    """The table of a payload; kept, since updates of one model have the same."""
    return tuple(itertools.starmap(wire.checked_row, entries))


def _with_format(update_format: str, metadata: Metadata) -> dict[str, str | int | float]:
    if FORMAT_KEY in metadata:
        raise ValueError(
            f"metadata {FORMAT_KEY!r} is set by the encoder, got {metadata[FORMAT_KEY]!r}"
        )
    return {FORMAT_KEY: update_format, **metadata}


def _check_dtypes(state: State) -> None:
    for name, values in state.items():
        if values.dtype != FLOAT32:
            raise ValueError(f"state {name!r} must be float32, got {values.dtype}")


def _check_matches(what: str, other: State, state: State) -> None:
    if other.keys() != state.keys():
        raise ValueError(
            f"{what} must hold the names of the state, differs in "
            f"{sorted(other.keys() ^ state.keys())}"
        )
    for name, values in state.items():
        if other[name].shape != values.shape or other[name].dtype != FLOAT32:
            raise ValueError(
                f"{what} {name!r} must be float32 of shape {values.shape}, "
                f"got {other[name].dtype} {other[name].shape}"
            )


def _joined(state: State, names: Sequence[str]) -> NDArray[np.float32]:
    return np.concatenate([state[name] for name in names], axis=None)


def _split_names(state: State) -> tuple[list[str], list[str]]:
    """Names of the tensors that are sent as codes, and of the small rest."""
    coded: list[str] = []
    plain: list[str] = []
    for name, values in state.items():
        (coded if values.ndim >= 2 and values.size else plain).append(name)
    return coded, plain
