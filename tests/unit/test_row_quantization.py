"""Row quantization: codes and steps by hand, the dither's exact mean, and the edges of float32."""

import numpy as np
import pytest

from common.payloads.row_quantization import quantize_rows


def rows(*lengths: int) -> np.ndarray:
    return np.array(lengths, np.int64)


class EveryDither:
    """Stands in for a generator: bytes 0, 1, ... 255 for 256 values, then the next fraction's."""

    def __init__(self) -> None:
        self.bit_generator = self
        self.fractions = iter(range(0, 256, 2))

    def random_raw(self, size: int) -> np.ndarray:
        assert size == 33
        fraction = np.full(8, next(self.fractions))
        return np.concatenate([np.arange(256), fraction]).astype(np.uint8).view(np.uint64)


class LargestDither:
    """Stands in for a generator: every random byte is 255."""

    def __init__(self) -> None:
        self.bit_generator = self

    def random_raw(self, size: int) -> np.ndarray:
        return np.full(size, 2**64 - 1, np.uint64)


def test_nearest_by_hand() -> None:
    """4 bits, Q_P = 7. Row one: peak 7, step 1. Row two: peak 14, step 2, so x = -7, 1.25, 0.5.

    Halves go up: -3.5 -> -3 and 0.5 -> 1.
    """
    values = np.array([7, -3.5, 0.25, -14, 2.5, 1], np.float32)
    lost = np.empty_like(values)
    codes, scale = quantize_rows(values, rows(3, 3), 4, lost=lost)
    assert scale.tolist() == [1, 2]
    assert codes.tolist() == [7, -3, 0, -7, 1, 1]
    assert lost.tolist() == [0, -0.5, 0.25, 0, 0.5, -1]


@pytest.mark.parametrize(
    ("x", "floor", "ups"),
    [
        (2.3, 2, 9830),  # 0.3 * 2**15 = 9830.4
        (2.5, 2, 16384),
        (0.0, 0, 0),
        (-0.3, -1, 22937),  # 0.7 * 2**15 = 22937.6
    ],
)
def test_every_dither_once_gives_the_mean_exactly(x: float, floor: int, ups: int) -> None:
    """256 dithers with each of 128 fractions: floor(x * 2**15) mod 2**15 of the 2**15 round up.

    The first value is the peak 7, which makes the step 1; its dither is 0, which never rounds up.
    It stands for the others' x, too: with the dither 0 none of them rounds up either.
    """
    values = np.full(256, x, np.float32)
    values[0] = 7
    generator = EveryDither()
    found = 0
    for _ in range(128):
        codes, scale = quantize_rows(values, rows(256), 4, generator=generator)  # type: ignore[arg-type]
        assert scale.tolist() == [1]
        assert codes[0] == 7
        assert set(codes[1:].tolist()) <= {floor, floor + 1}
        found += int(np.count_nonzero(codes[1:] == floor + 1))
    assert found == ups


@pytest.mark.parametrize("bits", range(2, 9))
def test_stochastic_rounding_is_unbiased(bits: int) -> None:
    """One code is a Bernoulli variable between two neighbours: standard deviation <= step / 2.

    So the mean of n draws is within 5 / 2 / sqrt(n) steps of x but for a chance of 6e-7, plus the
    2**-15 of a step of the dither and half of that for x in float32.
    """
    largest, draws = 2 ** (bits - 1) - 1, 20_000
    fractions = np.linspace(-largest, largest, 8, dtype=np.float32)
    codes, scale = quantize_rows(
        np.tile(fractions, draws), rows(8 * draws), bits, generator=np.random.default_rng(bits)
    )
    mean = codes.reshape(draws, 8).mean(axis=0) * scale
    bound = 2.5 / np.sqrt(draws) + 2**-14
    np.testing.assert_allclose(mean, fractions, rtol=0, atol=bound)


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_peak_leaves_the_range(bits: int) -> None:
    """Every float32 significand as the peak of its own row, under the largest dither.

    Rounding may put peak / scale just above Q_P. Were one to be rounded up to Q_P + 1, at 8 bits it
    would become -128: the largest change of a channel with its sign turned. Powers of two divide
    and multiply exactly, so that one exponent stands for all.
    """
    significands = (np.arange(1 << 23, dtype=np.uint32) | np.uint32(127 << 23)).view(np.float32)
    peaks = significands[:: 1 if bits == 8 else 61]
    codes, _ = quantize_rows(
        peaks,
        np.ones(peaks.size, np.int64),
        bits,
        generator=LargestDither(),  # type: ignore[arg-type]
    )
    assert codes.min() == codes.max() == 2 ** (bits - 1) - 1


def test_rows_over_many_blocks_equal_rows_alone() -> None:
    """Row lengths that never line up with the blocks, and one row larger than a block."""
    generator = np.random.default_rng(1)
    lengths = rows(*generator.integers(1, 5000, 60), 200_000, *generator.integers(1, 50, 60))
    values = generator.standard_normal(lengths.sum()).astype(np.float32)
    codes, scale = quantize_rows(values, lengths, 5)
    parts = np.split(values, np.cumsum(lengths)[:-1])
    alone = [quantize_rows(part, rows(part.size), 5) for part in parts]
    assert np.array_equal(codes, np.concatenate([part for part, _ in alone]))
    assert np.array_equal(scale, np.concatenate([step for _, step in alone]))


def test_lost_may_replace_the_values() -> None:
    values = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    lengths = rows(*[100] * 10)
    in_place = values.copy()
    codes, scale = quantize_rows(
        in_place, lengths, 3, generator=np.random.default_rng(3), lost=in_place
    )
    assert np.array_equal(in_place, values - codes * np.repeat(scale, 100))
    assert (np.abs(in_place) <= np.repeat(scale, 100) * (1 + 2**-14)).all()


@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-38, 7e-31])
def test_rows_too_small_for_a_step_are_zeros_and_lost_whole(peak: float) -> None:
    """Below 2**-100 = 7.9e-31 a row goes as zeros, with a step of 0 rather than an overflow."""
    values = np.array([peak, -peak, 3], np.float32)
    lost = np.empty_like(values)
    codes, scale = quantize_rows(
        values, rows(2, 1), 3, generator=np.random.default_rng(0), lost=lost
    )
    assert codes.tolist() == [0, 0, 3]
    assert scale.tolist() == [0, 1]
    assert lost.tolist() == [*values[:2].tolist(), 0]


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("peak", [1e-30, 3e38])
def test_extreme_rows_keep_their_peak(peak: float, bits: int) -> None:
    codes, scale = quantize_rows(np.array([peak, -peak], np.float32), rows(2), bits)
    largest = 2 ** (bits - 1) - 1
    assert codes.tolist() == [largest, -largest]
    assert scale[0] == np.float32(peak) / np.float32(largest)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_such_a_step(bad: float) -> None:
    values = np.array([1, bad, 2, 1], np.float32)
    _, scale = quantize_rows(values, rows(2, 2), 2, lost=np.empty_like(values))
    assert not np.isfinite(scale[0])
    assert scale[1] == 2


def test_no_rows() -> None:
    codes, scale = quantize_rows(np.empty(0, np.float32), rows(), 4)
    assert codes.size == scale.size == 0
