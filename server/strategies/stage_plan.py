"""What a stage of a run asks of its rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from common.messages import Stage
from common.payloads.wire import Codes
from server.model.aggregation import State
from server.model.bit_entries import BitEntries
from server.strategies.privacy import GaussianMechanism


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What is the same in all rounds of a stage."""

    stage: Stage
    num_rounds: int
    downlink_format: str
    """Of whole models: float32, float16 or int8."""
    min_replies: int
    """Fewest good replies that make a round."""
    update_shapes: Mapping[str, tuple[int, ...]]
    """Name -> shape of the entries that an update holds."""
    downlink_bits: int = 0
    """Of the changes to devices that hold an earlier model; 0: they are sent whole ones."""
    teacher_hash: str = ""
    entries: BitEntries = field(default_factory=BitEntries)
    """What of a state belongs to one of several bit-widths."""
    quantize: Mapping[int, Callable[[State], Mapping[str, Codes]]] = field(default_factory=dict)
    """Bit-width -> the codes of a state's quantized weights; empty: the model is float."""
    lifts_codes: bool = False
    """Whether updates are codes."""
    mechanism: GaussianMechanism | None = None
    """Set where devices are to have differential privacy."""
    seed: int = 0
    """Of the run: what is repeatable in the mechanism derives from it."""
    holdout_fraction: float = 0.0
    """Of a device's images, those that it evaluates on."""
    renews_statistics: bool = False
    """Whether devices measure batch normalisation's statistics after the last round."""
    weighs_by_error: bool = False
    """Whether a device weighs its samples over the relative quantization error of its bit-width,
    instead of its samples."""
