"""The payload that carries named tensors: versioned, checksummed, refused by name when bad.

Layout (little-endian):

    0   magic           4 bytes, b"FQWP"
    4   version         uint32
    8   header length   uint32, bytes of the compressed header
    12  header          zlib-compressed JSON:
                        {"tensors": [[name, encoding, shape], ...], "metadata": {key: value}}
        body            the tensors' values by section, in header order within each section:
                        float32 values, float32 scales, float16 values, then the codes of width
                        2, 3, ... 8, each width packed as one stream (see common.payloads.bitpack)
    -4  checksum        uint32, CRC-32 of everything before it

Encodings are "float32", "float16", "codes-B" (one scale) and "codes-B-per-channel" (shape[0]
scales) for B = 2 to 8. Values of one kind lie together so that checking, packing and casting take
one pass per section rather than one per tensor: a small network has a hundred small tensors.

The checksum finds corruption; it has no key and so does not authenticate the sender, which is TLS's
and the devices' keys' work. `decode` therefore trusts nothing in a payload with a valid checksum
either: sizes are checked against the body and against limits before memory is allocated. CRC-32 is
five times as quick as a cryptographic digest, which took a tenth of the time of encoding a delta.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.payloads import bitpack
from common.payloads.wire_header import (
    CODE_WIDTHS,
    Metadata,
    Row,
    WireError,
    checked_row,
    decode_header,
    encode_header,
)
from common.payloads.wire_tensors import Codes, Plain, WireTensor

__all__ = [
    "Codes",
    "Plain",
    "WireError",
    "WireTensor",
    "check_shapes",
    "checked_row",
    "decode",
    "decode_sections",
    "encode",
    "encode_sections",
]

MAGIC = b"FQWP"
VERSION = 2
DEFAULT_MAX_VALUES = 1 << 28
"""Most values that `decode` accepts over all tensors unless told otherwise: 1 GiB as float32."""

_PREFIX = struct.Struct("<4sII")
_CHECKSUM = struct.Struct("<I")

# Bits per value of each section, in body order.
_SECTION_BITS = {"float32": 32, "scale": 32, "float16": 16} | {
    f"codes-{bits}": bits for bits in CODE_WIDTHS
}
# A larger step times the code -128 would not be finite.
_MAX_SCALE = np.finfo(np.float32).max / 128


def encode(tensors: Mapping[str, WireTensor], metadata: Mapping[str, str | int | float]) -> bytes:
    """Encodes named tensors and metadata into one payload.

    Args:
        tensors: name -> tensor; `decode` returns them in this order.
        metadata: name -> text, 64-bit integer or finite float.

    Raises:
        WireError: naming the tensor or metadata key that cannot be sent: a value or scale that is
            not finite, a code out of range, a name or shape beyond the limits of the header.
    """
    rows = []
    arrays: dict[str, list[NDArray[Any]]] = {}
    for name, tensor in tensors.items():
        row = checked_row(name, tensor.encoding, tensor.shape)
        rows.append(row)
        if isinstance(tensor, Codes):
            arrays.setdefault("scale", []).append(tensor.scale.ravel())
            arrays.setdefault(row.section, []).append(tensor.codes.ravel())
        else:
            arrays.setdefault(row.section, []).append(tensor.values.ravel())
    sections = {section: np.concatenate(parts) for section, parts in arrays.items()}
    return encode_sections(rows, sections, metadata)


def encode_sections(
    rows: Sequence[Row],
    sections: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str | int | float],
) -> bytes:
    """`encode` for values that lie end to end already.

    Args:
        rows: the table, of `checked_row`.
        sections: name of a body section -> values [n] of all tensors in it, in the order of the
            table; int8 codes are overwritten. A section without values may be missing.
        metadata: see `encode`.

    Raises:
        WireError: see `encode`.
    """
    header = encode_header(rows, metadata)
    pieces: list[bytes | memoryview] = [_PREFIX.pack(MAGIC, VERSION, len(header)), header]
    for section in _SECTION_BITS:
        if section in sections:
            pieces.append(_write_section(section, sections[section], rows))
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return b"".join([*pieces, _CHECKSUM.pack(checksum)])


def decode(
    payload: bytes | bytearray | memoryview,
    *,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    max_values: int = DEFAULT_MAX_VALUES,
) -> tuple[dict[str, WireTensor], Metadata]:
    """Decodes a payload, trusting nothing in it.

    Args:
        payload: what `encode` returned, or any other bytes.
        expected: name -> shape of exactly the tensors that must be there; None accepts any.
        max_values: most values over all tensors.

    Returns:
        (name -> tensor, metadata). The arrays are copies that the caller may change.

    Raises:
        WireError: naming the field or tensor that is wrong. No bytes raise anything else.
    """
    rows, sections, metadata = decode_sections(payload, expected=expected, max_values=max_values)
    owners = _owners(rows)
    readers = {
        section: (part for _, part in _split(values, owners[section]))
        for section, values in sections.items()
    }
    return {row.name: _read_tensor(row, readers) for row in rows}, metadata


def decode_sections(
    payload: bytes | bytearray | memoryview,
    *,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    max_values: int = DEFAULT_MAX_VALUES,
) -> tuple[list[Row], dict[str, NDArray[Any]], Metadata]:
    """`decode` to values that lie end to end, as `encode_sections` takes them.

    Returns:
        (the table, name of a body section -> values [n] of all tensors in it, metadata). All
        sections are there, some without values.

    Raises:
        WireError: see `decode`.
    """
    header, body = _open(memoryview(payload).cast("B"))
    rows, metadata = decode_header(header)
    if expected is not None:
        check_shapes({row.name: row.shape for row in rows}, expected)
    # Sizes of 0 count as 1, or they would hide sizes that no array can have.
    if (claimed := sum(math.prod(max(n, 1) for n in row.shape) for row in rows)) > max_values:
        raise WireError(f"header: claims {claimed} values, at most {max_values} are accepted")
    owners = _owners(rows)
    _check_body_size(owners, len(body))
    sections = {}
    for section, counts in owners.items():
        size = _section_bytes(section, counts)
        sections[section] = _read_section(section, body[:size], counts, rows)
        body = body[size:]
    return rows, sections, metadata


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses tensors that are not exactly the expected ones.

    Raises:
        WireError: naming what is missing, unexpected or of another shape.
    """
    for problem, names in (
        ("missing", [name for name in expected if name not in shapes]),
        ("unexpected", [name for name in shapes if name not in expected]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WireError(f"tensors {problem}: {', '.join(map(repr, names[:3]))}{more}")
    for name, shape in expected.items():
        if shapes[name] != tuple(shape):
            raise WireError(f"tensor {name!r}: expected shape {tuple(shape)}, got {shapes[name]}")


def _open(payload: memoryview) -> tuple[memoryview, memoryview]:
    """Checks prefix and checksum; returns (compressed header, body)."""
    if len(payload) < _PREFIX.size + _CHECKSUM.size:
        raise WireError(f"payload: truncated, {len(payload)} bytes are too few for any payload")
    magic, version, header_bytes = _PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise WireError(f"magic: expected {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise WireError(f"version: {version} is not supported, only {VERSION}")
    checked, checksum = payload[: -_CHECKSUM.size], payload[-_CHECKSUM.size :]
    if _CHECKSUM.pack(zlib.crc32(checked)) != checksum:
        raise WireError("checksum: does not match, the payload is truncated or was changed")
    content = checked[_PREFIX.size :]
    if header_bytes > len(content):
        raise WireError(f"header length: {header_bytes} bytes claimed, {len(content)} follow")
    return content[:header_bytes], content[header_bytes:]


def _owners(rows: Sequence[Row]) -> dict[str, list[tuple[str, int]]]:
    """Body section -> (tensor name, number of values) in the order in which they lie there."""
    owners: dict[str, list[tuple[str, int]]] = {section: [] for section in _SECTION_BITS}
    for row in rows:
        owners[row.section].append((row.name, math.prod(row.shape)))
        if row.per_channel is not None:
            owners["scale"].append((row.name, row.num_scales))
    return owners


def _section_bytes(section: str, owners: Sequence[tuple[str, int]]) -> int:
    return bitpack.packed_size(sum(count for _, count in owners), _SECTION_BITS[section])


def _check_body_size(owners: Mapping[str, Sequence[tuple[str, int]]], body_bytes: int) -> None:
    claimed = sum(_section_bytes(section, counts) for section, counts in owners.items())
    if claimed != body_bytes:
        raise WireError(f"body: the header describes {claimed} bytes, {body_bytes} are there")


def _write_section(section: str, values: NDArray[Any], rows: Sequence[Row]) -> memoryview:
    """Bytes of one section; codes [n] are overwritten."""
    if values.dtype != np.int8:
        _check_values(section, values, rows)
        return values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).data
    bits = _SECTION_BITS[section]
    codes = values.view(np.uint8)
    codes += np.uint8(1 << (bits - 1))  # code - Q_N; wraps, so that any code out of range is large
    try:
        return bitpack.pack(codes, bits).data
    except ValueError:
        _check_values(section, codes, rows)  # names the tensor
        raise


def _read_section(
    section: str, data: memoryview, owners: Sequence[tuple[str, int]], rows: Sequence[Row]
) -> NDArray[Any]:
    """The checked values [n] of one section."""
    bits = _SECTION_BITS[section]
    if bits > 8:
        little_endian = np.frombuffer(data, f"<f{bits // 8}")
        values = little_endian.astype(little_endian.dtype.newbyteorder("="))
        _check_values(section, values, rows)
    else:
        packed = np.frombuffer(data, np.uint8)
        values = bitpack.unpack(packed, bits, sum(count for _, count in owners))
        values -= np.uint8(1 << (bits - 1))  # back to signed codes, modulo 256
        values = values.view(np.int8)
    return values


def _split(
    values: NDArray[Any], owners: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, NDArray[Any]]]:
    start = 0
    for name, count in owners:
        yield name, values[start : start + count]
        start += count


_REQUIREMENTS = {
    "float32": "values must be finite",
    "float16": "values must be finite",
    "scale": f"scales must be finite and at most {_MAX_SCALE:.3g}",
}
_CODE_REQUIREMENT = "codes must lie from -2**(bits - 1) to 2**(bits - 1) - 1"


def _check_values(section: str, values: NDArray[Any], rows: Sequence[Row]) -> None:
    """One pass over the section; only a bad one is searched for the tensor to name."""
    if not _is_valid(section, values):
        owners = _owners(rows)[section]
        name = next(name for name, part in _split(values, owners) if not _is_valid(section, part))
        raise WireError(f"tensor {name!r}: {_REQUIREMENTS.get(section, _CODE_REQUIREMENT)}")


def _is_valid(section: str, values: NDArray[Any]) -> bool:
    match section:
        case "float32":
            return bool(np.isfinite(values).all())
        case "float16":  # by its exponent bits: numpy's isfinite is 20 times slower on float16
            return bool(((values.view(np.uint16) & 0x7C00) != 0x7C00).all())
        case "scale":
            return bool((np.abs(values) <= _MAX_SCALE).all())
        case _:  # codes as they are packed, from 0
            return int(values.max(initial=0)) >> _SECTION_BITS[section] == 0


def _read_tensor(row: Row, readers: Mapping[str, Iterator[NDArray[Any]]]) -> WireTensor:
    values = next(readers[row.section]).reshape(row.shape)
    if row.per_channel is None:
        return Plain(values)
    scale = next(readers["scale"])
    return Codes(
        values, _SECTION_BITS[row.section], scale if row.per_channel else scale.reshape(())
    )
