"""Symmetric quantization of the rows of a flat vector, with nearest or stochastic rounding.

A row is one output channel of one tensor; all channels of all tensors lie end to end in one vector,
so that a network of many small layers costs no more per value than one large matrix. Each row gets
the step ``scale = max|row| / Q_P`` with Q_P = 2**(bits - 1) - 1.

Rounding is done in fixed point with 8 fractional bits, for x = value / scale in units of 2**-8:

    code = (floor(256 * x + fraction) + dither) >> 8

The dither is uniform on 0 ... 255, one random byte for each value; the fraction, uniform on 128
levels from 0 to 127/128, is one for a whole block, and rounds what is below the dither's resolution
up as often as it should. So the mean code is within 2**-15 of a step of x, which is about x's own
error in float32 at 8 bits and which error feedback returns, for half the random bytes that as fine
a dither takes; the rounding of two values of a block is correlated by less than 2**-8 of a step.
The constants 0 and 128 round to nearest.
"""

import numpy as np
from numpy.typing import NDArray

_FRACTION_BITS = 8
_ONE = np.float32(1 << _FRACTION_BITS)
_HALF = 1 << (_FRACTION_BITS - 1)

# Values handled at a time: 384 KiB per buffer, small enough for L2, large enough that the two
# dozen numpy calls on a block cost little beside their work.
_BLOCK_VALUES = 3 << 15

# Rows below this peak are sent as zeros: 2**8 / scale must stay below float32's 2**128.
_MIN_PEAK = np.float32(2.0**-100)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # the caller refuses infinities
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
        scale[first:last] = _quantize_block(
            values[start:stop],
            row_lengths[first:last],
            bits,
            generator,
            codes[start:stop],
            None if lost is None else lost[start:stop],
        )
        first, start = last, stop
    return codes, scale


def _quantize_block(
    values: NDArray[np.float32],
    row_lengths: NDArray[np.int64],
    bits: int,
    generator: np.random.Generator | None,
    codes: NDArray[np.int8],
    lost: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Writes codes [n] of whole rows, and what they lose [n]; returns their scale [rows]."""
    largest_code = 2 ** (bits - 1) - 1
    buffer = np.abs(values)
    # As integers, whose order is the same without a sign, in half the time: no NaN to ask for.
    bit_patterns = buffer.view(np.int32)
    peak = np.maximum.reduceat(bit_patterns, row_lengths.cumsum() - row_lengths).view(np.float32)
    scale = np.divide(peak, largest_code, dtype=np.float32)
    gain = _ONE / scale
    tiny = peak < _MIN_PEAK
    scale[tiny] = gain[tiny] = 0
    np.multiply(values, gain.repeat(row_lengths), out=buffer)
    # Shifted to start at 0, where truncation is floor, and to end at 2 * 127 * 2**8 at most, which
    # 16 bits hold with a dither. Float32 rounding may carry a row's peak above Q_P, but by less
    # than the fraction is below 1 (tested for every float32), so that floor takes it back.
    zero = largest_code << _FRACTION_BITS
    if generator is None:
        buffer += np.float32(zero + _HALF)
        fixed = buffer.astype(np.uint16)
    else:
        dither = _random_bytes(generator, values.size + 1)
        buffer += np.float32(zero + int(dither[-1] >> 1) / 128)
        fixed = buffer.astype(np.uint16)
        fixed += dither[:-1]
    fixed >>= _FRACTION_BITS
    fixed -= largest_code  # wraps to two's complement
    signed = fixed.view(np.int16)
    np.copyto(codes, signed, casting="unsafe")
    if lost is not None:
        np.copyto(buffer, signed)
        buffer *= scale.repeat(row_lengths)
        np.subtract(values, buffer, out=lost)
    return scale


def _random_bytes(generator: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Uniform uint8 [count], eight from each raw 64-bit draw: the quickest that numpy has."""
    words: NDArray[np.uint64] = generator.bit_generator.random_raw(-(-count // 8))
    return words.view(np.uint8)[:count]
