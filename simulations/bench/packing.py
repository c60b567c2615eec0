"""Packing and unpacking of codes, beside numpy's bit packing: the same bytes on one core."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from common.payloads import bitpack
from common.payloads.wire_header import CODE_WIDTHS
from common.seeding import numpy_generator
from simulations.bench.rows import Benchmark, Row
from simulations.bench.sizes import SEED, Sizes
from simulations.bench.timing import Action

GROUP = "Bit packing"
FLOAT_BYTES = 4


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Every width that travels."""
    return [
        Benchmark(title=f"packing, {bits} bits", run=partial(_compare, sizes, bits))
        for bits in CODE_WIDTHS
    ]


def _compare(sizes: Sizes, bits: int) -> list[Row]:
    codes = numpy_generator(SEED, "bench-codes").integers(
        0, 1 << bits, sizes.num_codes, dtype=np.uint8
    )
    packed = bitpack.pack(codes, bits)
    if not np.array_equal(packed, numpy_pack(codes, bits)):
        raise RuntimeError(f"numpy packs codes of {bits} bits to other bytes")
    count = sizes.num_codes
    timed: dict[str, tuple[Action, Action]] = {
        "pack": (lambda: bitpack.pack(codes, bits), lambda: numpy_pack(codes, bits)),
        "unpack": (
            lambda: bitpack.unpack(packed, bits, count),
            lambda: numpy_unpack(packed, bits, count),
        ),
    }
    rows = []
    for name, (own, peer) in timed.items():
        rate = sizes.timer.rate(own, FLOAT_BYTES * count / 1e9)
        rows.append(
            Row(
                group=GROUP,
                subject=f"{name} {bits} bits, {count:,} codes",
                against=f"numpy.{name}bits",
                unit="x the rate",
                figure=sizes.timer.ratio(peer, own),
                note=f"{rate.median:.1f} GB/s of float32",
            )
        )
    return rows


def numpy_pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """What `bitpack.pack` returns for codes [n], by numpy alone."""
    spread = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread.ravel(), bitorder="little")


def numpy_unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """What `bitpack.unpack` returns for ``count`` codes, by numpy alone."""
    spread = np.unpackbits(packed, count=count * bits, bitorder="little")
    return np.packbits(spread.reshape(count, bits), axis=1, bitorder="little").ravel()
