"""Symmetric quantization of the rows of a flat vector, with nearest or stochastic rounding.

A row is one output channel of one tensor; all channels of all tensors lie end to end in one vector,
so that a network of many small layers costs no more per value than one large matrix. Each row gets
the step ``scale = max|row| / Q_P`` with Q_P = 2**(bits - 1) - 1.

Rounding is done in fixed point with 16 fractional bits, for x = value / scale:

    code = (trunc(x * 2**16) + dither) >> 16

With a dither uniform on 0 ... 2**16 - 1 the mean code is exactly ``trunc(x * 2**16) / 2**16``, less
than 2**-16 of a step from x: no more than the rounding error of x itself in float32 at 8 bits, and
error feedback returns it. It takes 2 random bytes a value, drawn as raw 64-bit words, in a third of
the time of a random float. The constant dither 2**15 rounds to nearest.
"""

import numpy as np
from numpy.typing import NDArray

_FRACTION_BITS = 16
_HALF = np.int32(1 << (_FRACTION_BITS - 1))

# Values handled at a time: a quarter MiB per buffer, small enough for L2, large enough that the
# dozen numpy calls on a block cost little beside their work.
_BLOCK_VALUES = 1 << 16

# Rows below this peak are sent as zeros: 2**16 / scale must stay below float32's 2**128.
_MIN_PEAK = np.float32(2.0**-100)


@np.errstate(over="ignore", invalid="ignore")  # the caller refuses what is not finite
def quantize_rows(
    values: NDArray[np.float32],
    row_lengths: NDArray[np.int64],
    bits: int,
    *,
    generator: np.random.Generator | None = None,
    lost: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantizes each row to signed codes and its own step.

    Args:
        values: float32 [n], the rows end to end.
        row_lengths: int64 [rows], each at least 1, of sum n.
        bits: 2 to 8.
        generator: source of the dither of stochastic rounding; None rounds to nearest.
        lost: float32 [n] that receives ``values - scale * codes``; may be ``values`` itself.

    Returns:
        (codes int8 [n], scale float32 [rows]). A row that holds a value that is not finite gets a
        scale that is not finite, for the caller to refuse.
    """
    codes = np.empty(values.size, np.int8)
    scale = np.empty(row_lengths.size, np.float32)
    ends = np.cumsum(row_lengths)
    first = start = 0
    while first < row_lengths.size:
        last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK_VALUES, side="right")))
        stop = int(ends[last - 1])
        codes[start:stop], scale[first:last] = _quantize_block(
            values[start:stop],
            row_lengths[first:last],
            bits,
            generator,
            None if lost is None else lost[start:stop],
        )
        first, start = last, stop
    return codes, scale


def _quantize_block(
    values: NDArray[np.float32],
    row_lengths: NDArray[np.int64],
    bits: int,
    generator: np.random.Generator | None,
    lost: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(codes int32 [n], scale float32 [rows]) of whole rows; in place as far as it can."""
    largest_code = 2 ** (bits - 1) - 1
    buffer = np.abs(values)
    peak = np.maximum.reduceat(buffer, np.cumsum(row_lengths) - row_lengths)
    scale = np.divide(peak, largest_code, dtype=np.float32)
    scale[peak < _MIN_PEAK] = 0
    gain = np.zeros_like(scale)
    np.divide(np.float32(1 << _FRACTION_BITS), scale, out=gain, where=scale != 0)
    np.multiply(values, np.repeat(gain, row_lengths), out=buffer)
    # Truncation also takes back the half unit by which float32 rounding may carry a row's peak
    # above Q_P * 2**16 (tested for every float32), or the dither could carry it past Q_P.
    codes = buffer.astype(np.int32)
    codes += _HALF if generator is None else _dither(generator, values.size)
    codes >>= _FRACTION_BITS
    if lost is not None:
        np.copyto(buffer, codes, casting="unsafe")
        buffer *= np.repeat(scale, row_lengths)
        np.subtract(values, buffer, out=lost)
    return codes, scale


def _dither(generator: np.random.Generator, count: int) -> NDArray[np.uint16]:
    """Uniform uint16 [count], four from each raw 64-bit draw."""
    words = generator.integers(0, 2**64 - 1, -(-count // 4), dtype=np.uint64, endpoint=True)
    return words.view(np.uint16)[:count]
