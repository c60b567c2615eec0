"""Packing of n-bit codes: 1 to 8 bits per code, little-endian bit order.

Code ``i`` occupies the bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream; bit ``j`` of the
stream is bit ``j % 8`` (least significant first) of byte ``j // 8``. Unused high bits of the last
byte are zero. Three 3-bit codes a, b, c, for example, become the bytes
``a | b << 3 | (c & 0b11) << 6`` and ``c >> 2``.

Eight codes of b bits fill exactly b bytes at every width, so the eight code bytes are handled as
one 64-bit word: three shift-and-merge steps over the whole array close the gaps between pairs,
quadruples and all eight codes, which numpy runs as vector instructions. The same steps backwards
unpack. Codes of 1, 2 and 4 bits need less: merging neighbours makes half as many codes of twice the
width, until they are bytes.
"""

import numpy as np
from numpy.typing import NDArray

MIN_BITS = 1
MAX_BITS = 8

# Groups of eight codes handled at a time: 128 KiB of codes and the temporary stay in L2.
_GROUPS_PER_CHUNK = 1 << 14


def packed_size(count: int, bits: int) -> int:
    """Number of bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs codes into bytes.

    Args:
        codes: uint8 [n], each below ``2**bits``. Signed codes are stored offset, code - Q_N.
        bits: width of a code, 1 to 8.

    Returns:
        uint8 [ceil(n * bits / 8)], a new array.

    Raises:
        ValueError: ``bits`` outside 1-8, another dtype or number of dimensions, or a code that
            does not fit.
    """
    _check(codes, bits)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"codes must be below {1 << bits} to fit {bits} bits, got {codes.max()}")
    if bits == MAX_BITS:
        return codes.copy()
    codes = np.ascontiguousarray(codes)
    packed = np.empty(packed_size(codes.size, bits), np.uint8)
    groups, rest = divmod(codes.size, 8)
    words = codes[: groups * 8].view("<u8")
    for start in range(0, groups, _GROUPS_PER_CHUNK):
        stop = min(start + _GROUPS_PER_CHUNK, groups)
        _pack_groups(words[start:stop], bits, packed[start * bits : stop * bits])
    if rest:
        padded = np.zeros(8, np.uint8)
        padded[:rest] = codes[-rest:]
        group = np.empty(bits, np.uint8)
        _pack_groups(padded.view("<u8"), bits, group)
        packed[groups * bits :] = group[: packed_size(rest, bits)]
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpacks what ``pack`` made of ``count`` codes.

    Args:
        packed: uint8 [ceil(count * bits / 8)]; unused bits of the last byte are ignored.
        bits: width of a code, 1 to 8.
        count: number of codes.

    Returns:
        uint8 [count], a new array.

    Raises:
        ValueError: ``bits`` outside 1-8, another dtype, number of dimensions or number of bytes.
    """
    _check(packed, bits)
    if count < 0 or packed.size != packed_size(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, got {packed.size}"
        )
    if bits == MAX_BITS:
        return packed.copy()
    packed = np.ascontiguousarray(packed)
    codes = np.empty(count, np.uint8)
    groups, rest = divmod(count, 8)
    words = codes[: groups * 8].view("<u8")
    for start in range(0, groups, _GROUPS_PER_CHUNK):
        stop = min(start + _GROUPS_PER_CHUNK, groups)
        _unpack_groups(packed[start * bits : stop * bits], bits, words[start:stop])
    if rest:
        group = np.zeros(bits, np.uint8)
        group[: packed_size(rest, bits)] = packed[groups * bits :]
        padded = np.empty(8, np.uint8)
        _unpack_groups(group, bits, padded.view("<u8"))
        codes[groups * 8 :] = padded[:rest]
    return codes


def _check(values: NDArray[np.uint8], bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be {MIN_BITS} to {MAX_BITS}, got {bits}")
    if values.dtype != np.uint8 or values.ndim != 1:
        raise ValueError(
            f"expected a one-dimensional uint8 array, got {values.dtype} of shape {values.shape}"
        )


def _merge_steps(bits: int) -> list[tuple[np.uint64, np.uint64]]:
    """The three steps that close the gaps: (mask of the upper halves, right shift).

    Before step k a lane of ``8 << k`` bits holds ``bits << k`` low bits of payload; the step moves
    the payload of every odd lane down to that of its even neighbour.
    """
    steps = []
    for lane in (8, 16, 32):
        payload = bits * lane // 8
        upper_halves = sum(((1 << payload) - 1) << (odd * lane) for odd in range(1, 64 // lane, 2))
        steps.append((np.uint64(upper_halves), np.uint64(lane - payload)))
    return steps


# Widths that fill a byte with whole codes.
_PAIRED = (1, 2, 4)
_MERGE_STEPS = {bits: _merge_steps(bits) for bits in (3, 5, 6, 7)}


def _pack_groups(words: NDArray[np.uint64], bits: int, packed: NDArray[np.uint8]) -> None:
    """Packs words [n], each eight code bytes, into ``packed`` [n * bits]."""
    if bits in _PAIRED:
        np.copyto(packed, _merge_neighbours(words.view(np.uint8), bits))
        return
    merged = words.copy()
    upper = np.empty_like(merged)
    for mask, shift in _MERGE_STEPS[bits]:
        np.bitwise_and(merged, mask, out=upper)
        np.bitwise_xor(merged, upper, out=merged)
        np.right_shift(upper, shift, out=upper)
        np.bitwise_or(merged, upper, out=merged)
    # Column by column: numpy copies rows of a few bytes one row at a time.
    source = merged.view(np.uint8).reshape(-1, 8)
    target = packed.reshape(-1, bits)
    for column in range(bits):
        target[:, column] = source[:, column]


def _unpack_groups(packed: NDArray[np.uint8], bits: int, words: NDArray[np.uint64]) -> None:
    """Unpacks ``packed`` [n * bits] into words [n], each eight code bytes."""
    if bits in _PAIRED:
        np.copyto(words.view(np.uint8), _part_neighbours(packed, bits))
        return
    words[:] = 0
    source = packed.reshape(-1, bits)
    target = words.view(np.uint8).reshape(-1, 8)
    for column in range(bits):
        target[:, column] = source[:, column]
    upper = np.empty_like(words)
    for mask, shift in reversed(_MERGE_STEPS[bits]):
        np.bitwise_and(words, mask >> shift, out=upper)
        np.bitwise_xor(words, upper, out=words)
        np.left_shift(upper, shift, out=upper)
        np.bitwise_or(words, upper, out=words)


def _merge_neighbours(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes [n] of 1, 2 or 4 bits as bytes [n * bits / 8]."""
    while bits < 8:
        pairs = codes.view("<u2")
        merged = pairs >> (8 - bits)
        merged |= pairs
        codes = merged.astype(np.uint8)  # the low byte, where both codes are now
        bits *= 2
    return codes


def _part_neighbours(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes [n * bits / 8] as codes [n] of 1, 2 or 4 bits."""
    codes, width = packed, 8
    while width > bits:
        width //= 2
        pairs = codes.astype("<u2")
        pairs |= pairs << (8 - width)
        pairs &= ((1 << width) - 1) * 0x0101
        codes = pairs.view(np.uint8)
    return codes
