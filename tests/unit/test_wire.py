"""The payload: round trips, the layout by hand, and refusal of what cannot be sent."""

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.payloads import wire
from common.payloads.wire import Codes, Plain, WireError, WireTensor
from tests.unit.wire_payloads import small_payload

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def plain_tensors(draw: st.DrawFn) -> Plain:
    dtype: np.dtype[Any] = draw(st.sampled_from([np.dtype(np.float16), np.dtype(np.float32)]))
    elements = npst.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return Plain(draw(npst.arrays(dtype, SHAPES, elements=elements)))


@st.composite
def code_tensors(draw: st.DrawFn) -> Codes:
    bits = draw(st.integers(2, 8))
    elements = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    codes = draw(npst.arrays(np.int8, SHAPES, elements=elements))
    shapes = st.sampled_from([(), codes.shape[:1]])
    steps = st.floats(-(2.0**120), 2.0**120, width=32)
    return Codes(codes, bits, draw(npst.arrays(np.float32, shapes, elements=steps)))


NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)
TENSORS = st.dictionaries(NAMES, plain_tensors() | code_tensors(), max_size=6)
METADATA = st.dictionaries(NAMES, st.text() | st.integers(-(2**63), 2**63 - 1) | FINITE, max_size=4)


def assert_same(decoded: WireTensor, sent: WireTensor) -> None:
    assert type(decoded) is type(sent)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(decoded.dequantize(), sent.dequantize())]
    if isinstance(decoded, Codes) and isinstance(sent, Codes):
        assert decoded.bits == sent.bits
        pairs += [(decoded.codes, sent.codes), (decoded.scale, sent.scale)]
    if isinstance(decoded, Plain) and isinstance(sent, Plain):
        pairs += [(decoded.values, sent.values)]
    for actual, expected in pairs:
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes()


@given(tensors=TENSORS, metadata=METADATA)
@settings(deadline=None)
@example(tensors={}, metadata={})
def test_round_trip(tensors: dict[str, WireTensor], metadata: dict[str, Any]) -> None:
    payload = wire.encode(tensors, metadata)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    decoded, decoded_metadata = wire.decode(memoryview(payload), expected=shapes)
    assert decoded_metadata == metadata
    assert list(decoded) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(decoded[name], tensor)


def test_metadata_of_the_same_tensors_are_each_payloads_own() -> None:
    """The part of the header that tells of the tensors is kept between them."""
    of_round = [wire.encode({"a": GOOD}, {"round": number}) for number in (1, 2, 1)]
    assert [wire.decode(payload)[1] for payload in of_round] == [{"round": n} for n in (1, 2, 1)]
    assert of_round[0] == of_round[2]


def test_payload_by_hand() -> None:
    """Sections: float32 1.5, -2; scale 0.5; float16 0.25; codes 1, -2, 0 stored as 3, 0, 2.

    3 | 0 << 2 | 2 << 4 = 35.
    """
    payload = small_payload()
    magic, version, header_bytes = struct.unpack_from("<4sII", payload)
    header = json.loads(zlib.decompress(payload[12 : 12 + header_bytes]))
    assert (magic, version) == (b"FQWP", 2)
    assert header == {
        "metadata": {"format": "codes", "round": 3, "loss": 0.5},
        "tensors": [
            ["conv.weight", "codes-2-per-channel", [1, 3]],
            ["bn.bias", "float32", [2]],
            ["step", "float16", []],
        ],
    }
    body = struct.pack("<2f f e B", 1.5, -2, 0.5, 0.25, 35)
    checksum = struct.pack("<I", zlib.crc32(payload[:-4]))
    assert payload[12 + header_bytes :] == body + checksum


def test_dequantize_by_hand() -> None:
    """One step per row, 0.5 and 2, or one for all; into a given array or a new one."""
    codes = np.array([[1, -2], [3, 0]], np.int8)
    per_channel = Codes(codes, 3, np.array([0.5, 2], np.float32))
    assert per_channel.dequantize().tolist() == [[0.5, -1], [6, 0]]
    per_tensor = Codes(codes, 3, np.array(0.5, np.float32))
    out = np.empty((2, 2), np.float32)
    assert per_tensor.dequantize(out=out) is out
    assert out.tolist() == [[0.5, -1], [1.5, 0]]
    assert Plain(np.array([0.1], np.float16)).dequantize()[0] == np.float32(np.float16(0.1))


def test_header_of_65_tensors_is_small() -> None:
    """A ResNet-20's convolutions and norms: everything but the values in well below 1.5 kB."""
    names = [
        f"layer{stage}.{block}.{kind}"
        for stage in (1, 2, 3)
        for block in range(3)
        for kind in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight")
    ] + [
        f"layer{stage}.{block}.conv{i}.step"
        for stage in (1, 2)
        for block in range(5)
        for i in (1, 2)
    ]
    assert len(names) == 65
    payload = wire.encode({name: Plain(np.zeros(16, np.float32)) for name in names}, {"round": 1})
    assert len(payload) - 65 * 16 * 4 < 600


def test_arrays_are_writable_copies() -> None:
    payload = bytearray(small_payload())
    tensors, _ = wire.decode(payload)
    bias = tensors["bn.bias"]
    assert isinstance(bias, Plain)
    payload[:] = bytes(len(payload))
    bias.values[:] += 1
    assert bias.values.tolist() == [2.5, -1]


DOUBLE: Any = np.zeros(())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plain(np.zeros(2)), "float32 or float16, got float64"),
        (lambda: Codes(np.zeros(2, np.int8), 1, np.zeros((), np.float32)), "2 to 8, got 1"),
        (lambda: Codes(np.zeros(2, np.int8), 9, np.zeros((), np.float32)), "2 to 8, got 9"),
        (lambda: Codes(np.zeros(2, np.int64), 2, np.zeros((), np.float32)), "int8, got int64"),
        (lambda: Codes(np.zeros(2, np.int8), 2, DOUBLE), "float32 of shape"),
        (lambda: Codes(np.zeros((2, 3), np.int8), 2, np.zeros(3, np.float32)), r"got float32 \(3,"),
        (lambda: Codes(np.zeros((), np.int8), 2, np.zeros(1, np.float32)), r"got float32 \(1,"),
    ],
)
def test_wrong_tensors_are_refused(make: Callable[[], WireTensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


GOOD = Plain(np.ones(3, np.float32))
STEP = np.ones((), np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "bad",
    [
        Plain(np.array([1, np.nan], np.float32)),
        Plain(np.array([1, -np.inf], np.float16)),
        Plain(np.array([np.nan], np.float16)),
        Codes(np.array([2], np.int8), 2, STEP),
        Codes(np.array([-3], np.int8), 2, STEP),
        Codes(np.array([-128, 64], np.int8), 7, STEP),
        Codes(np.zeros(1, np.int8), 2, STEP * np.float32(np.nan)),
        Codes(np.zeros((1, 1), np.int8), 2, np.array([np.inf], np.float32)),
        Codes(np.zeros((1, 1), np.int8), 2, np.array([3e38], np.float32)),
    ],
)
def test_encode_refuses_bad_values_by_name(bad: WireTensor) -> None:
    neighbour = Codes(np.ones(3, np.int8), 2, STEP)
    with pytest.raises(WireError, match="tensor 'bad'"):
        wire.encode({"good": GOOD, "codes": neighbour, "bad": bad, "last": neighbour}, {})


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"": GOOD}, {}, "tensor name"),
        ({"a\n": GOOD}, {}, "tensor name"),
        ({"a" * 257: GOOD}, {}, "tensor name"),
        ({"deep": Plain(np.zeros((1,) * 9, np.float32))}, {}, "tensor 'deep': shape"),
        ({}, {"": 1}, "metadata key"),
        ({}, {"loss": float("nan")}, "metadata 'loss'"),
        ({}, {"flag": True}, "metadata 'flag'"),
        ({}, {"seed": 1 << 63}, "metadata 'seed'"),
        ({}, {"note": "x" * (1 << 20)}, "header must be at most"),
    ],
)
def test_encode_refuses_what_decode_would(
    tensors: dict[str, WireTensor], metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(WireError, match=message):
        wire.encode(tensors, metadata)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({}, "unexpected: 'conv.weight', 'bn.bias', 'step'"),
        ({"conv.weight": (1, 3), "bn.bias": (2,), "step": (), "fc": ()}, "missing: 'fc'"),
        (
            {"conv.weight": (3, 1), "bn.bias": (2,), "step": ()},
            r"'conv.weight': expected .*\(3, 1\)",
        ),
        ({f"{i}": () for i in range(5)}, "missing: '0', '1', '2' and 2 more"),
    ],
)
def test_other_tensors_than_expected_are_refused(
    expected: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(WireError, match=message):
        wire.decode(small_payload(), expected=expected)


def test_max_values() -> None:
    """3 codes + 2 + 1 values."""
    wire.decode(small_payload(), max_values=6)
    with pytest.raises(WireError, match="claims 6 values, at most 5"):
        wire.decode(small_payload(), max_values=5)
