"""Payloads for the tests of the wire: a good one, and any that a hostile sender could sign."""

import hashlib
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


def signed(content: bytes) -> bytes:
    """Content with a digest that is right, as a hostile sender would send it."""
    return content + hashlib.blake2b(content, digest_size=8).digest()


def payload_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    compressed = zlib.compress(text)
    return signed(struct.pack("<4sII", b"FQWP", 1, len(compressed)) + compressed + body)


def payload_with(tensors: Any, body: bytes = b"", metadata: Any = None) -> bytes:
    return payload_of({"metadata": metadata or {}, "tensors": tensors}, body)
