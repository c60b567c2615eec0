"""All settings of a run, checked together, from a flat run config and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from common.bit_widths import parse_bits
from common.config.combinations import check_combinations
from common.config.coreset import CoresetConfig
from common.config.data import DataConfig
from common.config.devices import AttackConfig, FleetConfig, PrivacyConfig
from common.config.federation import FederationConfig, StrategyConfig
from common.config.model import QUANTIZED_BITS, ModelConfig, QuantizationConfig
from common.config.run import EvaluationConfig, RunConfig
from common.config.section import Section
from common.config.training import TrainingConfig, WarmupConfig
from common.errors import UserError
from common.settings import Scalar, build_section, flatten, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class Config:
    """All sections of one run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_combinations(self)

    @property
    def device_bits(self) -> tuple[int, ...]:
        """The weight bit-widths that devices may train at, ascending.

        Raises:
            UserError: if federation.mixed-bits is no list of at least two bit-widths.
        """
        given = self.federation.mixed_bits
        mixed = parse_bits("federation.mixed-bits", given, QUANTIZED_BITS)
        if len(mixed) == 1:
            raise UserError(
                f"federation.mixed-bits = {given!r}: expected two bit-widths or more, or none"
            )
        return mixed or (self.quantization.weight_bits,)

    @property
    def is_corrected(self) -> bool:
        """Whether the loss of quantization-aware training compares features with the teacher's."""
        return self.training.correction != "none" and self.training.beta > 0

    @property
    def sends_changes(self) -> bool:
        """Whether a device may be sent how the model has changed in place of the model."""
        return self.federation.downlink_format == "delta"

    @property
    def whole_format(self) -> str:
        """How a whole model goes down to devices that train from it."""
        return "float32" if self.sends_changes else self.federation.downlink_format

    @property
    def is_paced(self) -> bool:
        """Whether devices look at their clocks: adaptive coresets or partial work."""
        return self.coreset.adaptive or self.training.partial_work

    def at_bits(self, weight_bits: int) -> Config:
        """The same with another quantization.weight-bits."""
        quantization = dataclasses.replace(self.quantization, weight_bits=weight_bits)
        return dataclasses.replace(self, quantization=quantization)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Scalar]) -> Config:
        """A configuration from flat ``section.key`` entries; absent keys keep their defaults.

        Raises:
            UserError: for an unknown key, a wrong type or a value out of range, naming it.
        """
        refuse_unknown(flat, DEFAULT_KEYS)
        sections: dict[str, Any] = {
            name: build_section(section_type, name, flat)
            for name, section_type in SECTION_TYPES.items()
        }
        return cls(**sections)

    def to_flat(self) -> dict[str, Scalar]:
        """The flat ``section.key`` entries of every setting."""
        flat: dict[str, Scalar] = {}
        for section in dataclasses.fields(self):
            flat.update(flatten(getattr(self, section.name), section.name))
        return flat


SECTION_TYPES: dict[str, type[Section]] = get_type_hints(Config)
DEFAULT_KEYS = frozenset(Config().to_flat())
