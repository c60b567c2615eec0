"""Named tensors laid end to end in one buffer, and their conversion to wire tensors.

A small network has a hundred small tensors; arithmetic on one buffer takes one call where a loop
over the tensors takes a hundred.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.row_quantization import quantize_rows
from common.wire_tensors import Codes, Plain

State = Mapping[str, NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]

_LARGEST_HALF = np.float32(np.finfo(np.float16).max)


def flat_views(shapes: Shapes) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """One uninitialised buffer for all tensors, and the view of each in it, by name."""
    flat = np.empty(sum(map(math.prod, shapes.values())), np.float32)
    views, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return flat, views


def flat_copy(
    state: State, names: Iterable[str]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """The named tensors copied end to end into one buffer, and the view of each in it."""
    flat, views = flat_views({name: state[name].shape for name in names})
    for name, view in views.items():
        np.copyto(view, state[name])
    return flat, views


def half_tensors(flat: NDArray[np.float32], views: State) -> dict[str, Plain]:
    """The tensors that lie end to end in ``flat``, as float16 if their values fit, else float32.

    The tensors do not share memory with ``flat``.
    """
    with np.errstate(over="ignore"):
        half = flat.astype(np.float16)
    all_fit = _fits_half(flat)
    tensors, start = {}, 0
    for name, values in views.items():
        stop = start + values.size
        as_half = all_fit or _fits_half(values)
        tensors[name] = Plain(half[start:stop].reshape(values.shape) if as_half else values.copy())
        start = stop
    return tensors


def _fits_half(values: NDArray[np.float32]) -> bool:
    return bool((np.abs(values) <= _LARGEST_HALF).all())


def channel_codes(
    flat: NDArray[np.float32],
    views: State,
    bits: int,
    generator: np.random.Generator | None = None,
    lost: NDArray[np.float32] | None = None,
) -> dict[str, Codes]:
    """The tensors that lie end to end in ``flat`` as codes, one step per output channel (axis 0).

    Args:
        flat: float32 [n].
        views: name -> view of two or more dimensions and at least one value.
        bits: 2 to 8.
        generator: see `quantize_rows`.
        lost: see `quantize_rows`.
    """
    channels = np.array([values.shape[0] for values in views.values()], np.int64)
    lengths = np.array([values[0].size for values in views.values()], np.int64)
    codes, scale = quantize_rows(
        flat, np.repeat(lengths, channels), bits, generator=generator, lost=lost
    )
    tensors, start, first = {}, 0, 0
    for (name, values), rows in zip(views.items(), channels, strict=True):
        stop, last = start + values.size, first + rows
        tensors[name] = Codes(codes[start:stop].reshape(values.shape), bits, scale[first:last])
        start, first = stop, last
    return tensors
