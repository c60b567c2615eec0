"""Hostile payloads: refused by name, with nothing but WireError, in bounded memory and time."""

import random
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.payloads import wire
from common.payloads.wire import WireError
from tests.unit.wire_payloads import checksummed, payload_of, payload_with, small_payload

EMPTY = zlib.compress(b'{"tensors":[],"metadata":{}}')


def test_every_changed_byte_is_refused() -> None:
    payload = small_payload()
    for position in range(len(payload)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(payload)
            changed[position] ^= change
            with pytest.raises(WireError):
                wire.decode(changed)


def test_every_truncation_and_extension_is_refused() -> None:
    payload = small_payload()
    for length in range(len(payload)):
        with pytest.raises(WireError):
            wire.decode(payload[:length])
    with pytest.raises(WireError, match="checksum"):
        wire.decode(payload + b"\0")


def test_sizes_that_a_valid_checksum_covers_are_refused_too() -> None:
    content = small_payload()[:-4]
    with pytest.raises(WireError, match="body: the header describes 15 bytes, 14 are there"):
        wire.decode(checksummed(content[:-1]))
    with pytest.raises(WireError, match="body: the header describes 15 bytes, 16 are there"):
        wire.decode(checksummed(content + b"\0"))
    with pytest.raises(WireError, match="header length"):
        wire.decode(checksummed(content[:20]))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "truncated"),
        (b"PK\x03\x04" + bytes(60), "magic"),
        (checksummed(struct.pack("<4sII", b"FQWP", 1, 0)), "version: 1 is not supported, only 2"),
        (checksummed(struct.pack("<4sII", b"FQWP", 2, 4) + b"junk"), "not a zlib stream"),
        (checksummed(struct.pack("<4sII", b"FQWP", 2, 5) + zlib.compress(b"{}")[:5]), "complete"),
        (
            checksummed(struct.pack("<4sII", b"FQWP", 2, len(EMPTY) + 1) + EMPTY + b"\0"),
            "one complete",
        ),
        (payload_of(b"{}"), "'metadata' and 'tensors'"),
        (payload_of([]), "'metadata' and 'tensors'"),
        (payload_of({"metadata": [], "tensors": []}), "must be an object"),
        (payload_of({"metadata": {}, "tensors": {}}), "a list"),
        (payload_of(b"{"), "JSON"),
        (payload_of(b"\xff"), "JSON"),
        (payload_of(b"[" * 500_000), "JSON"),
        (payload_of(b"1" * 10_000), "JSON"),
        (payload_of(b'{"metadata": {"a": 1, "a": 2}, "tensors": []}'), "twice"),
        (payload_of(b'{"metadata": {"a": 1e999}, "tensors": []}'), "metadata 'a'"),
        (payload_of(b'{"metadata": {"a": NaN}, "tensors": []}'), "metadata 'a'"),
        (payload_with([], metadata={"a": None}), "metadata 'a'"),
        (payload_with([], metadata={"a": [1]}), "metadata 'a'"),
        (payload_with([], metadata={"a": 1 << 63}), "metadata 'a'"),
        (payload_with([], metadata={"\x1b[2J": 1}), "metadata key"),
        (payload_with([1]), "tensor 0 must be"),
        (payload_with([["a", "float32"]]), "tensor 0 must be"),
        (payload_with([["a", "float32", 3]]), "tensor 0 must be"),
        (payload_with([[1, "float32", []]]), "tensor name .* got a int"),
        (payload_with([["\ud800", "float32", []]]), "tensor name"),
        (payload_with([["a", "float64", []]]), "'a': unknown encoding 'float64'"),
        (payload_with([["a", ["float32"], []]]), "'a': unknown encoding a list"),
        (payload_with([["a", "codes-9", []]]), "'a': unknown encoding"),
        (payload_with([["a", "codes-4-per-channel", []]]), "'a': .* one dimension"),
        (payload_with([["a", "float32", [-1]]]), "'a': shape"),
        (payload_with([["a", "float32", [1.0]]]), "'a': shape"),
        (payload_with([["a", "float32", [True]]]), "'a': shape"),
        (payload_with([["a", "float32", [1 << 32]]]), "'a': shape"),
        (payload_with([["a", "float32", [1] * 9]]), "'a': shape"),
        (payload_with([["a", "float32", [0]], ["a", "float32", [0]]]), "'a': named twice"),
        (payload_with([["a", "float32", [2**31] * 8]]), "claims .* values"),
        (payload_with([["a", "float32", [0, *[2**31] * 7]]]), "claims .* values"),
        (payload_with([["a", "float32", [2**27]], ["b", "codes-2", [2**27 + 1]]]), "claims"),
        (payload_with([["a", "float32", [2**28]]]), "body"),
        (payload_with([["a", "float32", [1]]], struct.pack("<f", float("inf"))), "'a': values"),
        (payload_with([["a", "float16", [1]]], struct.pack("<e", float("nan"))), "'a': values"),
        (payload_with([["a", "codes-4", [0]]], struct.pack("<f", float("nan"))), "'a': scales"),
        (payload_with([["a", "codes-4", [0]]], struct.pack("<f", -3e38)), "'a': scales"),
    ],
)
def test_hostile_payloads_are_refused_by_name(payload: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.decode(payload)


def test_a_header_of_the_largest_size() -> None:
    """A megabyte, of which 34 bytes are around the text: as much can be sent, and no more."""
    text = "x" * ((1 << 20) - len('{"tensors":[],"metadata":{"a":""}}'))
    assert wire.decode(wire.encode({}, {"a": text}))[1] == {"a": text}
    with pytest.raises(WireError, match="header must be at most 1048576 bytes, got 1048577"):
        wire.encode({}, {"a": text + "x"})
    with pytest.raises(WireError, match="at most 1048576 bytes"):
        wire.decode(payload_of(f'{{"tensors":[],"metadata":{{"a":"{text}x"}}}}'.encode()))


@pytest.mark.parametrize(
    "payload",
    [
        payload_of(bytes(64 << 20)),  # decompresses to 64 MiB
        payload_of(b"[" + b"[]," * 340_000 + b"[]]"),  # a megabyte of small lists
        payload_with([["a", "codes-2", [1 << 28]]]),
        payload_with([["a", "codes-2-per-channel", [1 << 28, 0]]]),
    ],
)
def test_hostile_payloads_cost_little(payload: bytes) -> None:
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(WireError):
        wire.decode(payload)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert seconds < 5


def decode_or_refuse(payload: bytes) -> None:
    """Decodes; lets nothing but WireError be raised."""
    try:
        tensors, _ = wire.decode(payload, max_values=10_000)
    except WireError:
        return
    for tensor in tensors.values():
        assert np.isfinite(tensor.dequantize()).all()


@given(st.binary(max_size=200))
def test_any_bytes(payload: bytes) -> None:
    decode_or_refuse(payload)
    decode_or_refuse(checksummed(b"FQWP\2\0\0\0" + payload))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a", "float32", "float16", "codes-2", "codes-8-per-channel"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from(["metadata", "tensors", "a"]), children, max_size=3)
    ),
    max_leaves=12,
)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]) | JSON_VALUES,
        st.sampled_from(["float32", "float16", "codes-3", "codes-8-per-channel"]) | JSON_VALUES,
        st.lists(st.integers(-1, 4), max_size=3) | JSON_VALUES,
    ),
    max_size=3,
)


@given(JSON_VALUES | st.fixed_dictionaries({"metadata": JSON_VALUES, "tensors": JSON_VALUES}))
@settings(deadline=None)
def test_any_header(header: Any) -> None:
    decode_or_refuse(payload_of(header))


@given(ROWS, st.integers(0, 24), st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_any_table(rows: list[Any], body_bytes: int, byte: int) -> None:
    decode_or_refuse(payload_with(rows, bytes([byte]) * body_bytes))


def test_random_mutations_under_a_valid_checksum() -> None:
    """Bytes of prefix, compressed header and body, and of the header's text, flipped and cut."""
    rng = random.Random(0)
    content = small_payload()[:-4]
    (header_bytes,) = struct.unpack_from("<I", content, 8)
    text, body = zlib.decompress(content[12 : 12 + header_bytes]), content[12 + header_bytes :]

    def mutated(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(len(changed))
            match rng.randrange(3):
                case 0:
                    changed[position] = rng.randrange(256)
                case 1:
                    del changed[position]
                case 2:
                    changed.insert(position, rng.randrange(32, 127))
        return bytes(changed)

    for _ in range(3000):
        decode_or_refuse(checksummed(mutated(content)))
        decode_or_refuse(payload_of(mutated(text), body))
        decode_or_refuse(payload_of(text, mutated(body)))
