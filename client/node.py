"""What the operator of one device said about it: Flower's node config.

Keys of the node config; none is needed on an emulated device but Flower's own ``partition-id``.

- ``data-dir``: folder of the device's own images; without it the device is emulated.
- ``partition-id``: who the device is among the others; by default a number made from its node id.
- ``data-share``: part of its share of the images that an emulated device has room for.
- ``threads``: Torch threads, instead of the run's.
- ``max-memory``: bytes that ClientApp and SuperNode may hold; batches pass in parts that fit.
- ``used-memory``: bytes of them that are in use before training, where the process that emulates a
  device can't tell; by default the process's own.
- ``max-temperature``: degrees Celsius above which training pauses.
- ``min-battery``: per cent of charge below which training pauses while on battery.
- ``weight-bits``: weight bit-widths that the device trains at, ``4`` or ``'2,4'``; by default any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.bit_widths import parse_bits
from common.config import BIT_CHOICES
from common.errors import UserError
from common.settings import Scalar

MAX_PARTITION_ID = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """One device's settings, checked.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """

    partition_id: int
    data_dir: str = ""
    """Empty: an emulated device."""
    data_share: float = 1.0
    """Of an emulated device, (0, 1]."""
    threads: int = 0
    """0: as many as the run says."""
    max_memory: int = 0
    """Bytes; 0: no limit."""
    used_memory: int = 0
    """Bytes; 0: what the process holds."""
    max_temperature: float = 0.0
    """Degrees Celsius; 0: whatever the temperature."""
    min_battery: float = 0.0
    """Per cent; 0: down to the last."""
    weight_bits: tuple[int, ...] = ()
    """Bit-widths that the device trains at; empty: any."""

    def __post_init__(self) -> None:
        if not 0 <= self.partition_id <= MAX_PARTITION_ID:
            raise UserError(
                f"node config partition-id = {self.partition_id}: expected 0 to {MAX_PARTITION_ID}"
            )
        if not 0 < self.data_share <= 1:
            raise UserError(
                f"node config data-share = {self.data_share}: expected above 0, at most 1"
            )
        if not 0 <= self.threads <= 256:
            raise UserError(f"node config threads = {self.threads}: expected 1 to 256")
        for key, size in (("max-memory", self.max_memory), ("used-memory", self.used_memory)):
            if size < 0:
                raise UserError(f"node config {key} = {size}: expected bytes")
        if not 0 <= self.max_temperature <= 150:
            raise UserError(
                f"node config max-temperature = {self.max_temperature}: expected 0 to 150"
            )
        if not 0 <= self.min_battery <= 100:
            raise UserError(f"node config min-battery = {self.min_battery}: expected 0 to 100")

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, Scalar], node_id: int) -> NodeSettings:
        """The settings in Flower's node config of node ``node_id``."""
        return cls(
            partition_id=_integer(node_config, "partition-id", node_id % (MAX_PARTITION_ID + 1)),
            data_dir=str(node_config.get("data-dir", "")),
            data_share=_number(node_config, "data-share", 1.0),
            threads=_integer(node_config, "threads", 0),
            max_memory=_integer(node_config, "max-memory", 0),
            used_memory=_integer(node_config, "used-memory", 0),
            max_temperature=_number(node_config, "max-temperature"),
            min_battery=_number(node_config, "min-battery"),
            weight_bits=parse_bits(
                "node config weight-bits", node_config.get("weight-bits", ""), BIT_CHOICES
            ),
        )


def _integer(node_config: Mapping[str, Scalar], key: str, default: int) -> int:
    value = node_config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"node config {key} = {value!r}: expected a whole number")
    return value


def _number(node_config: Mapping[str, Scalar], key: str, default: float = 0.0) -> float:
    value = node_config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"node config {key} = {value!r}: expected a number")
    return float(value)
