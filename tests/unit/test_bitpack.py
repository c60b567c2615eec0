"""Bit packing: the layout by hand, against numpy.packbits, and round trips at every width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.payloads.bitpack import pack, packed_size, unpack

WIDTHS = range(1, 9)


def codes_of(bits: int, count: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, count, dtype=np.uint8)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        # 1 | 2 << 2 | 3 << 4 = 1 + 8 + 48 = 57
        (2, [1, 2, 3], [57]),
        # Bits, first code lowest: 101, 011, 110. 5 | 3 << 3 | (6 & 3) << 6 = 5 + 24 + 128 = 157;
        # the third code's high bit is left for the next byte: 6 >> 2 = 1.
        (3, [5, 3, 6], [157, 1]),
        # 1 | 10 << 4 = 161; 7
        (4, [1, 10, 7], [161, 7]),
    ],
)
def test_three_codes_by_hand(bits: int, codes: list[int], expected: list[int]) -> None:
    packed = pack(np.array(codes, np.uint8), bits)
    assert packed.tolist() == expected
    assert unpack(packed, bits, 3).tolist() == codes


@given(bits=st.sampled_from(WIDTHS), data=st.binary(max_size=100))
def test_round_trip(bits: int, data: bytes) -> None:
    codes = np.frombuffer(data, np.uint8) & np.uint8((1 << bits) - 1)
    packed = pack(codes, bits)
    assert packed.size == packed_size(codes.size, bits)
    assert np.array_equal(unpack(packed, bits, codes.size), codes)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, (1 << 16) * 2 + 5])
def test_layout_is_the_little_endian_bit_stream(bits: int, count: int) -> None:
    """numpy.packbits of each code's low bits, lowest first; the last count crosses chunks."""
    codes = codes_of(bits, count)
    bit_stream = np.unpackbits(codes[:, np.newaxis], axis=1, bitorder="little")[:, :bits]
    packed = pack(codes, bits)
    assert np.array_equal(packed, np.packbits(bit_stream, bitorder="little"))
    assert np.array_equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_views_pack_like_copies_and_results_are_new(bits: int) -> None:
    codes = codes_of(bits, 60)
    packed = pack(codes[::3], bits)
    assert np.array_equal(packed, pack(codes[::3].copy(), bits))
    shifted = np.concatenate([np.zeros(1, np.uint8), packed])[1:]  # not aligned to words
    assert np.array_equal(unpack(shifted, bits, 20), codes[::3])
    assert not np.shares_memory(pack(codes, bits), codes)
    assert not np.shares_memory(unpack(packed, bits, 20), packed)


def test_a_code_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="below 8 to fit 3 bits, got 8"):
        pack(np.array([1, 8], np.uint8), 3)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_widths_outside_one_to_eight_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 8, got {bits}"):
        pack(np.zeros(8, np.uint8), bits)
    with pytest.raises(ValueError, match=f"1 to 8, got {bits}"):
        unpack(np.zeros(8, np.uint8), bits, 1)


@pytest.mark.parametrize("codes", [np.zeros(8, np.int8), np.zeros((2, 4), np.uint8)])
def test_other_arrays_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one-dimensional uint8"):
        pack(codes, 4)


@pytest.mark.parametrize(("num_bytes", "count"), [(2, 3), (0, 1), (1, 0), (0, -1)])
def test_a_wrong_number_of_bytes_is_refused(num_bytes: int, count: int) -> None:
    """Three 2-bit codes take one byte, one code takes one, none takes none."""
    with pytest.raises(ValueError, match=f"{count} codes of 2 bits"):
        unpack(np.zeros(num_bytes, np.uint8), 2, count)
