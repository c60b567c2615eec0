"""Payloads for the tests of the wire: a good one, and any that a hostile sender could make."""

import json
import struct
import zlib
from typing import Any

import numpy as np

from common.payloads import wire
from common.payloads.wire import Codes, Plain


def small_payload() -> bytes:
    return wire.encode(
        {
            "conv.weight": Codes(np.array([[1, -2, 0]], np.int8), 2, np.array([0.5], np.float32)),
            "bn.bias": Plain(np.array([1.5, -2], np.float32)),
            "step": Plain(np.array(0.25, np.float16)),
        },
        {"format": "codes", "round": 3, "loss": 0.5},
    )


def checksummed(content: bytes) -> bytes:
    """Content with a checksum that is right, as a hostile sender would send it."""
    return content + struct.pack("<I", zlib.crc32(content))


def payload_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    compressed = zlib.compress(text)
    return checksummed(
        struct.pack("<4sII", b"FQWP", wire.VERSION, len(compressed)) + compressed + body
    )


def payload_with(tensors: Any, body: bytes = b"", metadata: Any = None) -> bytes:
    return payload_of({"metadata": metadata or {}, "tensors": tensors}, body)
