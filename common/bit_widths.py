"""Which weight bit-width a device trains at, where a federation allows several."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from common.errors import UserError
from common.settings import Scalar


def parse_bits(key: str, value: Scalar, choices: Collection[int]) -> tuple[int, ...]:
    """``"2,4"``, or ``4``, as (2, 4), or (4,): ascending, each once; of an empty string, ().

    Raises:
        UserError: naming ``key``, if anything in it is none of ``choices``.
    """
    expected = f"{key} = {value!r}: expected bit-widths as '2,4', of {sorted(choices)}"
    words = [str(value)] if isinstance(value, bool | int) else str(value).split(",")
    if not str(value).strip():
        return ()
    bits = [int(word) if word.strip().isdecimal() else -1 for word in words]
    if not set(bits) <= set(choices) or len(set(bits)) < len(bits):
        raise UserError(expected)
    return tuple(sorted(bits))


def choose_bits(
    allowed: Sequence[int], supported: Collection[int], partition_id: int
) -> int | None:
    """The bit-width that a device trains at, or None where it supports none that is allowed.

    Args:
        allowed: in the run, ascending.
        supported: by the device; the largest of them is taken. Empty: all, and the devices are
            spread over the allowed ones by partition id.
        partition_id: of the device.
    """
    if not supported:
        return allowed[partition_id % len(allowed)]
    return max(set(allowed).intersection(supported), default=None)


def describe_accuracies(accuracies: Mapping[str, float]) -> list[str]:
    """``["2 bits 61.00 %", "4 bits 65.00 %"]`` of accuracies by weight bits."""
    return [f"{bits} bits {accuracy:.2f} %" for bits, accuracy in accuracies.items()]
