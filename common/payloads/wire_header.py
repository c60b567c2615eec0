"""The header of a payload: which tensors it holds, how each is encoded, and free metadata.

The header is zlib-compressed JSON, ``{"tensors": [[name, encoding, shape], ...], "metadata": {key:
value}}``: readable with two standard tools, and about 5 bytes per tensor once compressed. It
comes from the network, so that everything in it is checked before it is used or printed.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

MAX_HEADER_BYTES = 1 << 20
"""Largest header once decompressed; the 129 tensors of a quantized ResNet-20 take 6 kB."""
MAX_NAME_LENGTH = 256
MAX_DIMENSIONS = 8
CODE_WIDTHS = range(2, 9)

Metadata = dict[str, str | int | float]

# Encoding -> (body section of its values, whether it has one scale per channel, or None).
_ENCODINGS: dict[str, tuple[str, bool | None]] = {
    "float32": ("float32", None),
    "float16": ("float16", None),
    **{f"codes-{bits}": (f"codes-{bits}", False) for bits in CODE_WIDTHS},
    **{f"codes-{bits}-per-channel": (f"codes-{bits}", True) for bits in CODE_WIDTHS},
}


class WireError(ValueError):
    """What cannot be sent, or a payload that is refused; the message names the tensor or field."""


class Row(NamedTuple):
    """One line of the tensor table; made by `checked_row`."""

    name: str
    encoding: str
    shape: tuple[int, ...]

    @property
    def section(self) -> str:
        """Body section of the values: "float32", "float16" or "codes-B"."""
        return _ENCODINGS[self.encoding][0]

    @property
    def per_channel(self) -> bool | None:
        """Whether there is one scale per channel, or one for all; None if there is no scale."""
        return _ENCODINGS[self.encoding][1]

    @property
    def num_scales(self) -> int:
        return self.shape[0] if self.per_channel else 1


def checked_row(name: Any, encoding: Any, shape: tuple[Any, ...]) -> Row:
    """One line of the table, from the network or to be sent there.

    Raises:
        WireError: a name that is empty, long or unprintable, an unknown encoding, or a shape that
            is not a short tuple of sizes.
    """
    _check_name(name, "tensor name")
    if not isinstance(encoding, str) or encoding not in _ENCODINGS:
        raise WireError(
            f"tensor {name!r}: unknown encoding {_text(encoding)}, allowed: {', '.join(_ENCODINGS)}"
        )
    if len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise WireError(
            f"tensor {name!r}: shape must be at most {MAX_DIMENSIONS} integers from 0 to 2**32 - 1"
        )
    row = Row(name, encoding, shape)
    if row.per_channel and not shape:
        raise WireError(f"tensor {name!r}: {encoding} needs at least one dimension")
    return row


def encode_header(rows: Sequence[Row], metadata: Mapping[str, str | int | float]) -> bytes:
    """Compresses the table and the metadata.

    Raises:
        WireError: metadata that JSON or the limits of this module do not allow, or a header above
            ``MAX_HEADER_BYTES``.
    """
    _check_metadata(metadata)
    start, compressor, table_bytes = _compressed_table(tuple(rows))
    end = f'"metadata":{json.dumps(dict(metadata), separators=(",", ":"))}}}'.encode("ascii")
    if (header_bytes := table_bytes + len(end)) > MAX_HEADER_BYTES:
        raise WireError(f"header must be at most {MAX_HEADER_BYTES} bytes, got {header_bytes}")
    rest = compressor.copy()
    return start + rest.compress(end) + rest.flush()


# Kept: all updates of a model have the same table, and only other metadata in every round.
@lru_cache(maxsize=4)
def _compressed_table(rows: tuple[Row, ...]) -> tuple[bytes, Any, int]:
    """The header up to its metadata, compressed; the compressor after it; bytes of the table."""
    table = f'{{"tensors":{json.dumps(rows, separators=(",", ":"))},'.encode("ascii")
    # A table repeats itself within 4 KiB, and a compressor of that window is copied in no time.
    compressor = zlib.compressobj(9, wbits=12, memLevel=5)
    start = compressor.compress(table) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return start, compressor, len(table)


def decode_header(compressed: bytes | memoryview) -> tuple[list[Row], Metadata]:
    """Reads what `encode_header` wrote, in bounded memory.

    Raises:
        WireError: anything else; the message names the field.
    """
    rows, metadata = _decode(bytes(compressed))
    return list(rows), dict(metadata)


@lru_cache(maxsize=2)
def _decode(compressed: bytes) -> tuple[tuple[Row, ...], Metadata]:
    header = _load_json(_decompress(compressed))
    if not isinstance(header, dict) or header.keys() != {"metadata", "tensors"}:
        raise WireError("header: must hold exactly 'metadata' and 'tensors'")
    metadata, table = header["metadata"], header["tensors"]
    if not isinstance(metadata, dict) or not isinstance(table, list):
        raise WireError("header: 'metadata' must be an object and 'tensors' a list")
    _check_metadata(metadata)
    rows: dict[str, Row] = {}
    for index, line in enumerate(table):
        if not (isinstance(line, list) and len(line) == 3 and isinstance(line[2], list)):
            raise WireError(f"header: tensor {index} must be [name, encoding, shape]")
        row = checked_row(line[0], line[1], tuple(line[2]))
        if row.name in rows:
            raise WireError(f"tensor {row.name!r}: named twice")
        rows[row.name] = row
    return tuple(rows.values()), metadata


def _decompress(compressed: bytes | memoryview) -> bytes:
    inflater = zlib.decompressobj()
    try:
        # One byte more than allowed, so that a header of the full size still reaches its end.
        header = inflater.decompress(compressed, MAX_HEADER_BYTES + 1)
    except zlib.error as error:
        raise WireError(f"header: not a zlib stream ({error})") from None
    if not inflater.eof or inflater.unused_data or len(header) > MAX_HEADER_BYTES:
        raise WireError(
            f"header: must be one complete zlib stream of at most {MAX_HEADER_BYTES} bytes"
        )
    return header


def _load_json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    try:
        return json.loads(text.decode("ascii"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        raise WireError(f"header: not the JSON expected ({error})") from None


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        _check_name(key, "metadata key")
        if not (
            isinstance(value, str)
            or (isinstance(value, float) and math.isfinite(value))
            or (type(value) is int and -(1 << 63) <= value < 1 << 63)
        ):
            raise WireError(f"metadata {key!r}: must be text, a 64-bit integer or a finite float")


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise WireError(
            f"{what} must be 1 to {MAX_NAME_LENGTH} printable characters, got {_text(name)}"
        )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32  # by exact type: a bool is an int


def _text(value: Any) -> str:
    """Shows a value of unknown origin: short, printable, and never by a container's own repr."""
    return f"{value!a:.80}" if isinstance(value, str) else f"a {type(value).__name__}"
