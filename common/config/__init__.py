"""Every setting of a run: one frozen dataclass per section, read from a flat run config.

A key is ``section.field-name``: ``quantization.weight-bits``. pyproject.toml lists them all with
their defaults (a test keeps the two equal); scenarios override some of them.
"""

from common.config.coreset import (
    COST_NOTHING,
    NEVER,
    ONLINE,
    SCORING_COST,
    SELECTIONS,
    CoresetConfig,
    pool_factor,
    selection_interval,
)
from common.config.data import DATASETS, PARTITIONS, DataConfig
from common.config.devices import (
    ATTACKS,
    PRIVACY_MECHANISMS,
    AttackConfig,
    FleetConfig,
    PrivacyConfig,
)
from common.config.federation import (
    ASYNCHRONOUS,
    AVERAGING_STRATEGIES,
    STRATEGIES,
    FederationConfig,
    StrategyConfig,
)
from common.config.model import (
    BIT_CHOICES,
    FLOAT_BITS,
    MODELS,
    QUANTIZED_BITS,
    ModelConfig,
    QuantizationConfig,
)
from common.config.run import EvaluationConfig, RunConfig
from common.config.section import Section
from common.config.training import CORRECTIONS, TrainingConfig, WarmupConfig
from common.config.whole import DEFAULT_KEYS, SECTION_TYPES, Config

__all__ = [
    "ASYNCHRONOUS",
    "ATTACKS",
    "AVERAGING_STRATEGIES",
    "BIT_CHOICES",
    "CORRECTIONS",
    "COST_NOTHING",
    "DATASETS",
    "DEFAULT_KEYS",
    "FLOAT_BITS",
    "MODELS",
    "NEVER",
    "ONLINE",
    "PARTITIONS",
    "PRIVACY_MECHANISMS",
    "QUANTIZED_BITS",
    "SCORING_COST",
    "SECTION_TYPES",
    "SELECTIONS",
    "STRATEGIES",
    "AttackConfig",
    "Config",
    "CoresetConfig",
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "FleetConfig",
    "ModelConfig",
    "PrivacyConfig",
    "QuantizationConfig",
    "RunConfig",
    "Section",
    "StrategyConfig",
    "TrainingConfig",
    "WarmupConfig",
    "pool_factor",
    "selection_interval",
]
