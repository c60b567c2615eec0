"""What a payload can hold: plain float tensors and integer codes with their steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.payloads.wire_header import CODE_WIDTHS


@dataclass(frozen=True, eq=False)
class Plain:
    """A tensor sent as it is.

    Attributes:
        values: float32 or float16, any shape.

    Raises:
        ValueError: any other dtype.
    """

    values: NDArray[Any]

    def __post_init__(self) -> None:
        if self.values.dtype not in (np.float32, np.float16):
            raise ValueError(f"values must be float32 or float16, got {self.values.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def encoding(self) -> str:
        return "float16" if self.values.dtype == np.float16 else "float32"

    def dequantize(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The values as float32, written to ``out`` (same shape) or to a new array."""
        return _write(self.values, out)


@dataclass(frozen=True, eq=False)
class Codes:
    """A tensor sent as signed integer codes and the step between two neighbouring codes.

    Attributes:
        codes: int8, any shape, from Q_N = -2**(bits - 1) to Q_P = 2**(bits - 1) - 1.
        bits: 2 to 8.
        scale: float32, shape () for the whole tensor or [shape[0]] for one per output channel.

    Only dtypes and shapes are checked here; `encode` checks the range of all codes and scales of a
    payload at once.

    Raises:
        ValueError: another dtype, ``bits`` out of range, or a scale of another shape.
    """

    codes: NDArray[np.int8]
    bits: int
    scale: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.bits not in CODE_WIDTHS:
            raise ValueError(f"bits must be 2 to 8, got {self.bits}")
        if self.codes.dtype != np.int8:
            raise ValueError(f"codes must be int8, got {self.codes.dtype}")
        if self.scale.dtype != np.float32 or self.scale.shape not in ((), self.codes.shape[:1]):
            raise ValueError(
                f"scale of codes {self.codes.shape} must be float32 of shape () or "
                f"{self.codes.shape[:1]}, got {self.scale.dtype} {self.scale.shape}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def encoding(self) -> str:
        return f"codes-{self.bits}{'-per-channel' if self.scale.ndim else ''}"

    def dequantize(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """scale * codes as float32 [shape of codes], in ``out`` or a new array.

        The scale is broadcast along axis 0.
        """
        values = _write(self.codes, out)
        values *= self.scale.reshape(self.scale.shape + (1,) * (values.ndim - self.scale.ndim))
        return values


WireTensor = Plain | Codes


def _write(values: NDArray[Any], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    target = np.empty(values.shape, np.float32) if out is None else out
    np.copyto(target, values)
    return target
