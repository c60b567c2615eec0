"""Named tensors laid end to end in one buffer, and their conversion to sections of a payload.

A small network has a hundred small tensors; arithmetic on one buffer takes one call where a loop
over the tensors takes a hundred.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.payloads.row_quantization import quantize_rows
from common.payloads.wire_header import Row

State = Mapping[str, NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]

Encoded = tuple[dict[str, str], dict[str, NDArray[Any]]]
"""Name of a tensor -> its encoding; name of a section -> its values (as in `payloads.wire`)."""

SCALE = "scale"
"""The section of all steps."""

_LARGEST_HALF = np.float32(np.finfo(np.float16).max)


def flat_views(shapes: Shapes) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """One uninitialised buffer for all tensors, and the view of each in it, by name."""
    size, pieces = _pieces(tuple(shapes.items()))
    flat = np.empty(size, np.float32)
    return flat, {
        name: flat[piece] if shape is None else flat[piece].reshape(shape)
        for name, piece, shape in pieces
    }


@lru_cache(maxsize=8)
def _pieces(
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> tuple[int, tuple[tuple[str, slice, tuple[int, ...] | None], ...]]:
    """Values of all tensors; each one's name, place and shape, None of a vector, as most are."""
    pieces, start = [], 0
    for name, shape in shapes:
        stop = start + math.prod(shape)
        pieces.append((name, slice(start, stop), None if shape == (stop - start,) else shape))
        start = stop
    return start, tuple(pieces)


def flat_copy(
    state: State, names: Iterable[str]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """The named tensors copied end to end into one buffer, and the view of each in it."""
    flat, views = flat_views({name: state[name].shape for name in names})
    for name, view in views.items():
        np.copyto(view, state[name])
    return flat, views


def half_sections(
    flat: NDArray[np.float32], views: State, lost: NDArray[np.float32] | None = None
) -> Encoded:
    """The tensors that lie end to end in ``flat``, as float16 if their values fit, else float32.

    Args:
        flat: float32 [n].
        views: name -> view.
        lost: float32 [n] that receives ``flat`` less what is sent; may be ``flat`` itself.
    """
    # Torch rounds as numpy does; its conversions take a 50th and a third of the time.
    half_tensor = torch.from_numpy(flat).half()
    half: NDArray[np.float16] = half_tensor.numpy()
    if _fits_half(flat):
        if lost is not None:
            torch.sub(torch.from_numpy(flat), half_tensor, out=torch.from_numpy(lost))
        return dict.fromkeys(views, "float16"), {"float16": half}
    fits = [_fits_half(values) for values in views.values()]
    is_half = np.repeat(fits, [values.size for values in views.values()])
    sections = {"float32": flat[~is_half], "float16": half[is_half]}
    if lost is not None:
        np.subtract(flat, np.where(is_half, half, flat), out=lost)
    names = {True: "float16", False: "float32"}
    return {name: names[fit] for name, fit in zip(views, fits, strict=True)}, sections


def _fits_half(values: NDArray[np.float32]) -> bool:
    return bool((np.abs(values) <= _LARGEST_HALF).all())


def channel_sections(
    flat: NDArray[np.float32],
    views: State,
    bits: int,
    generator: np.random.Generator | None = None,
    lost: NDArray[np.float32] | None = None,
) -> Encoded:
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
    encodings = dict.fromkeys(views, f"codes-{bits}-per-channel")
    return encodings, {f"codes-{bits}": codes, SCALE: scale}


def dequantize_sections(
    rows: Sequence[Row], sections: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """The tensors of a payload as float32 in one new buffer, and the view of each in it.

    Args:
        rows: the payload's table, in whose order the views are; values lie section by section.
        sections: name of a body section -> values [n] of its tensors, in the order of the table.
    """
    starts, end = {}, 0
    flat = np.empty(
        sum(values.size for name, values in sections.items() if name != SCALE), np.float32
    )
    for name, values in sections.items():
        if name != SCALE:
            starts[name], end = end, end + values.size
            np.copyto(flat[starts[name] : end], values)
    views, first_scale = {}, 0
    for row in rows:
        start = starts[row.section]
        starts[row.section] = stop = start + math.prod(row.shape)
        views[row.name] = view = flat[start:stop].reshape(row.shape)
        if row.per_channel is not None:
            scale = sections[SCALE][first_scale : first_scale + row.num_scales]
            first_scale += row.num_scales
            view *= scale.reshape((-1,) + (1,) * (view.ndim - 1)) if row.per_channel else scale[0]
    return flat, views
