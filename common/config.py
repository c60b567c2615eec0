"""Every setting of a run: one frozen dataclass per section, read from a flat run config.

A key is ``section.field-name``: ``quantization.weight-bits``. pyproject.toml lists them all with
their defaults (a test keeps the two equal); scenarios override some of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.bit_widths import parse_bits
from common.errors import UserError
from common.settings import (
    Scalar,
    build_section,
    check_section,
    flatten,
    refuse_unknown,
    setting,
)

FLOAT_BITS = 32
"""A bit-width of 32 means: not quantized."""

QUANTIZED_BITS = (2, 3, 4, 5, 6, 7, 8)
BIT_CHOICES = (*QUANTIZED_BITS, FLOAT_BITS)

DATASETS = ("digits", "cifar10", "cifar100", "folder")
PARTITIONS = ("iid", "dirichlet", "pathological", "shard", "quantity")
MODELS = (
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet18-cifar",
    "resnet18",
    "mobilenetv2-cifar",
    "mobilenetv2",
)
SELECTIONS = (
    "quarc",
    "res",
    "acs",
    "evs",
    "ds",
    "el2n",
    "entropy",
    "stratified",
    "quantiles",
    "res-sampled",
    "res-mixed",
    "res-clustered",
    "random",
    "full",
)
CORRECTIONS = ("none", "mse", "clc-channel", "clc-pooled", "clc-flat", "clc-spatial")
PRIVACY_MECHANISMS = ("none", "central")
AVERAGING_STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that need of a round's updates no more than their mean."""
ATTACKS = ("none", "sign-flip", "scale")
STRATEGIES = (
    "fedavg",
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "qfedavg",
    "fedbuff",
)

ASYNCHRONOUS = "fedbuff"
"""The strategy without common rounds: every device trains from the model it was last sent."""


SCORING_COST = 0.5
"""Of running student and teacher on an image, relative to training on it once, rounded up: measured
on ResNet-20, one thread, were 0.40 alone on the machine and 0.56 beside much other work."""


class Section:
    """A section checks its own values when it is made."""

    def __post_init__(self) -> None:
        check_section(self, SECTION_NAMES[type(self)])


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """What concerns the run as a whole."""

    seed: int = setting(0, minimum=0, maximum=2**31 - 1)
    """The one seed that everything random derives from."""
    threads: int = setting(1, minimum=1, maximum=256)
    """Torch threads of one client; results are bit-identical only for the same number."""
    out: str = setting("")
    """The run folder; empty: runs/<dataset>-<model>-<time>."""
    resume: str = setting("")
    """Folder of a run that was killed, to go on after its last finished round; empty: a new run."""
    tensorboard: bool = setting(False)
    """Write TensorBoard logs into the run folder as well."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which images there are and which device holds which."""

    dataset: str = setting("digits", choices=DATASETS)
    """The image source."""
    root: str = setting("")
    """Where the images are; empty: FEDQUARC_DATA, else downloaded."""
    image_size: int = setting(0, minimum=0, maximum=512)
    """Side in pixels that a folder's images are resized to; 0: as they are."""
    num_devices: int = setting(10, minimum=1, maximum=1_000_000)
    """Devices that the training images are split over."""
    partition: str = setting("dirichlet", choices=PARTITIONS)
    """How labels are distributed over devices."""
    alpha: float = setting(0.5, above=0.0)
    """Dirichlet concentration; smaller is more skewed."""
    classes_per_device: int = setting(2, minimum=1)
    """Classes of one device in the pathological split."""
    shards_per_device: int = setting(2, minimum=1)
    """Shards of one device in the shard split."""
    min_samples: int = setting(10, minimum=1)
    """Fewest images that a device may hold."""
    holdout_fraction: float = setting(0.1, minimum=0.0, maximum=0.9)
    """Share of a device's images kept for its own evaluation."""
    augment: bool = setting(True)
    """Random crop and, where the data set allows it, flip."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The network and its full-precision teacher."""

    name: str = setting("resnet8", choices=MODELS)
    """The architecture."""
    teacher: str = setting("")
    """Checkpoint of the float model: a path, "shipped", or empty: from float warm-up rounds."""


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig(Section):
    """How weights and activations are quantized."""

    weight_bits: int = setting(2, choices=BIT_CHOICES)
    """Bits of a weight; 32: float, the control."""
    activation_bits: int = setting(FLOAT_BITS, choices=BIT_CHOICES)
    """Bits of an activation; 32: float."""
    edge_bits: int = setting(8, choices=BIT_CHOICES)
    """Bits of the first convolution and the last linear layer, where the others are quantized."""
    quantizer: str = setting("lsq", choices=("lsq", "lsq+"))
    """LSQ, or LSQ+: a learned offset for activations that can be negative."""
    granularity: str = setting("tensor", choices=("tensor", "channel"))
    """One weight step per tensor or per output channel."""
    step_init: str = setting("mse", choices=("lsq", "mse"))
    """Initial step: the quantizer's own rule, 2 mean|w| / sqrt(Q_P) for LSQ and
    (|mu| + 3 sigma) / |Q_N| for LSQ+ weights, or the step of least squared error."""
    calibration_batches: int = setting(4, minimum=1, maximum=1000)
    """Batches that activation steps are initialised from."""


@dataclass(frozen=True, kw_only=True)
class CoresetConfig(Section):
    """Which of its images a device trains on."""

    selection: str = setting("quarc", choices=SELECTIONS)
    """Score that ranks the images, or what is done with RES, or random, or full."""
    fraction: float = setting(0.1, above=0.0, maximum=1.0)
    """Share of the device's images that is kept (full ignores it)."""
    balanced: bool = setting(True)
    """The same share of every class, at least one image each; false: the best overall."""
    adaptive: bool = setting(False)
    """A device chooses its own share, so that it answers before the deadline."""
    adaptive_floor: float = setting(0.01, above=0.0, maximum=1.0)
    """Adaptive: smallest share, even if the device will be late with it."""
    adaptive_cap: float = setting(1.0, above=0.0, maximum=1.0)
    """Adaptive: largest share, however fast the device is."""
    interval: int = setting(5, minimum=1)
    """Epochs between two selections."""
    random_epochs: int = setting(0, minimum=0)
    """Epochs at the start of the training on a random coreset: a model that has just been
    quantized scores at random as well."""
    pool: float = setting(0.0, minimum=0.0)
    """Images that a selection scores, drawn at random: so many times the coreset; 0: all."""
    pool_share: float = setting(0.0, minimum=0.0, maximum=0.9)
    """In place of pool: as many images as cost this share of a device's time (0.1: a tenth of it
    goes into scoring, by the counts of images scored and trained on); 0: as pool says."""
    smoothing: float = setting(0.0, minimum=0.0, maximum=0.99)
    """Weight of an image's earlier scores: their exponential moving average; 0: only the last."""
    importance_weights: bool = setting(False)
    """res-sampled: images count in the loss by the inverse of their chance to be drawn."""
    drop_hardest: float = setting(0.1, minimum=0.0, maximum=0.9)
    """stratified, quantiles, res-clustered: share with the highest scores that is left out."""
    hard_share: float = setting(0.0, minimum=0.0, maximum=1.0)
    """res-mixed: share taken by the highest score, the rest at random; 0: sqrt(fraction)."""


def pool_factor(coreset: CoresetConfig) -> float:
    """Images that a selection scores, in multiples of the coreset; 0: all.

    To spend the share s on scoring P images and 1 - s on R epochs of k, P c / (k R) is
    s / (1 - s), where c is the cost of scoring relative to training.
    """
    if coreset.pool_share == 0:
        return coreset.pool
    return coreset.pool_share / (1 - coreset.pool_share) * coreset.interval / SCORING_COST


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """One device's quantization-aware training."""

    local_epochs: int = setting(1, minimum=1, maximum=1000)
    """Epochs over the coreset in a round."""
    partial_work: bool = setting(False)
    """A device does fewer epochs, at least one, where all would make it late (FedProx)."""
    batch_size: int = setting(32, minimum=1, maximum=65536)
    """Images per step."""
    learning_rate: float = setting(0.02, above=0.0)
    """Weights' learning rate at the start; it falls over the whole federation."""
    momentum: float = setting(0.9, minimum=0.0, maximum=0.999)
    """Nesterov momentum."""
    weight_decay: float = setting(5e-4, minimum=0.0)
    """Decay of weights; none on steps, biases and batch normalisation."""
    step_learning_rate_scale: float = setting(0.1, above=0.0)
    """Learning rate of the quantizer steps, relative to the weights'."""
    schedule: str = setting("cosine", choices=("cosine", "linear", "one-cycle", "constant"))
    """How the learning rate falls to zero over all rounds; one-cycle: it rises first."""
    loss: str = setting("kd", choices=("kd", "ce"))
    """Distillation from the teacher, or cross-entropy with the labels (control)."""
    correction: str = setting("none", choices=CORRECTIONS)
    """Cascaded layer correction's form; mse: squared error, a control."""
    beta: float = setting(1.0, minimum=0.0)
    """Weight of the correction."""
    teacher_views: int = setting(0, minimum=0, maximum=1000)
    """Augmentations of each coreset image, taken in turn, whose teacher outputs are kept as long as
    the coreset; 0: the teacher sees a new one in every epoch."""


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(Section):
    """Float rounds that make a teacher where no checkpoint is given."""

    num_rounds: int = setting(8, minimum=0)
    """Rounds of FedAvg in float32 on all local images (ignored with a checkpoint)."""
    local_epochs: int = setting(2, minimum=1)
    """Epochs in a warm-up round."""
    learning_rate: float = setting(0.1, above=0.0)
    """Learning rate at the start of the warm-up."""
    batch_size: int = setting(32, minimum=1, maximum=65536)
    """Images per warm-up step."""


@dataclass(frozen=True, kw_only=True)
class FederationConfig(Section):
    """Rounds, participation and what travels."""

    num_rounds: int = setting(20, minimum=1)
    """Quantization-aware rounds."""
    fraction: float = setting(1.0, above=0.0, maximum=1.0)
    """Share of the devices that is asked in a round."""
    min_devices: int = setting(2, minimum=1)
    """Fewest devices that must be there, and fewest good replies that make a round."""
    update_format: str = setting("delta", choices=("codes", "delta", "float32"))
    """What a device answers: its low-bit model, a quantized change, or float32 values."""
    delta_bits: int = setting(4, choices=(2, 3, 4, 5, 6, 7, 8))
    """Bits of a quantized change."""
    error_feedback: bool = setting(True)
    """Delta: a device adds what rounding lost to its next update."""
    downlink_format: str = setting("float32", choices=("float32", "float16", "int8"))
    """How the global model travels to the devices."""
    mixed_bits: str = setting("")
    """Weight bits that devices may train at, as "2,4", quantization.weight-bits among them: each
    takes the largest that it supports; empty: all train at quantization.weight-bits."""
    bit_weighting: str = setting("samples", choices=("samples", "error"))
    """Mixed bits: a device weighs as much as its samples, or as these over the relative
    quantization error of its bit-width."""
    round_timeout: float = setting(600.0, above=0.0)
    """Seconds that a round waits for replies."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig(Section):
    """How updates become one model; a parameter that the strategy does not have is ignored."""

    name: str = setting("fedavg", choices=STRATEGIES)
    """Flower's strategy that the decoded updates are handed to; or fedbuff: asynchronous."""
    server_learning_rate: float = setting(1.0, above=0.0)
    """fedavgm, fedbuff; also fedadam, fedyogi and fedadagrad (eta), where 0.01 is a usual value."""
    server_momentum: float = setting(0.9, minimum=0.0, maximum=0.999)
    """fedavgm."""
    beta_1: float = setting(0.9, minimum=0.0, maximum=0.9999)
    """fedadam, fedyogi: decay of the first moment."""
    beta_2: float = setting(0.99, minimum=0.0, maximum=0.9999)
    """fedadam, fedyogi: decay of the second moment."""
    tau: float = setting(1e-3, above=0.0)
    """fedadam, fedyogi, fedadagrad: degree of adaptability."""
    proximal_mu: float = setting(0.01, minimum=0.0)
    """fedprox: weight of the proximal term."""
    trim_fraction: float = setting(0.2, minimum=0.0, maximum=0.49)
    """fedtrimmedavg: share cut off at each end."""
    num_malicious: int = setting(0, minimum=0)
    """krum, multikrum, bulyan: devices assumed hostile."""
    num_to_select: int = setting(5, minimum=1)
    """multikrum: updates that are averaged."""
    fairness_q: float = setting(0.1, minimum=0.0)
    """qfedavg: 0 is plain averaging, larger is fairer."""
    buffer_size: int = setting(5, minimum=1)
    """fedbuff: good updates that make a round."""
    concurrency: int = setting(10, minimum=1)
    """fedbuff: devices that train at the same time (federation.fraction is not used)."""
    max_staleness: int = setting(20, minimum=0)
    """fedbuff: rounds that an update's base may be behind; an older one is refused."""


@dataclass(frozen=True, kw_only=True)
class FleetConfig(Section):
    """Emulated hardware, and what a round does about devices that are slow or fail."""

    name: str = setting("")
    """The hardware: a shipped fleet or a YAML file; empty: none is emulated."""
    deadline: float = setting(0.0, minimum=0.0)
    """Virtual seconds after which a round goes on without those that are late; 0: it waits."""
    over_selection: float = setting(1.0, minimum=1.0, maximum=10.0)
    """Devices asked for every reply that is used; the first are, so that a round can spare some."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Section):
    """Hostile devices, in simulations on the local engine only."""

    name: str = setting("none", choices=ATTACKS)
    """What they send in place of their change: minus or plus several times that change."""
    fraction: float = setting(0.2, minimum=0.0, maximum=1.0)
    """Share of the devices that are hostile."""
    scale: float = setting(4.0, above=0.0)
    """How many times the change."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig(Section):
    """Differential privacy of devices towards all who see the models; the server is trusted."""

    mechanism: str = setting("none", choices=PRIVACY_MECHANISMS)
    """central: the server clips every device's change and adds Gaussian noise to their mean."""
    clipping_norm: float = setting(1.0, above=0.0)
    """Largest L2 norm that a device's change keeps, over all entries of the update."""
    noise_multiplier: float = setting(1.0, minimum=0.0)
    """Standard deviation of the noise on the sum of changes, in clipping norms; 0: clipped only."""
    delta: float = setting(1e-5, above=0.0, maximum=0.5)
    """Chance at which epsilon need not hold; usually less than one over the devices."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """When and how models are measured."""

    interval: int = setting(1, minimum=1)
    """Rounds between two evaluations on the server's test images (the last is always)."""
    device_interval: int = setting(5, minimum=0)
    """Rounds between two evaluations on the devices' own held-out images; 0: never."""
    batch_size: int = setting(64, minimum=1, maximum=65536)
    """Images per evaluation step."""
    threads: int = setting(2, minimum=1, maximum=256)
    """Torch threads of the server's evaluation."""


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
        """Check what one section alone cannot know.

        Raises:
            UserError: naming the keys that contradict each other.
        """
        if self.run.resume and self.run.out not in ("", self.run.resume):
            raise UserError(
                f"run.out = '{self.run.out}': expected nothing beside run.resume, whose folder "
                f"the results go to"
            )
        if self.federation.min_devices > self.data.num_devices:
            raise UserError(
                f"federation.min-devices = {self.federation.min_devices}: expected at most "
                f"data.num-devices = {self.data.num_devices}"
            )
        if not self.model.teacher and self.warmup.num_rounds == 0:
            raise UserError(
                "warmup.num-rounds = 0: expected at least 1 when model.teacher is empty "
                "(the float model has to come from somewhere)"
            )
        if 0 < self.coreset.pool < 1:
            raise UserError(
                f"coreset.pool = {self.coreset.pool}: expected 0 (all images) or at least 1 "
                f"(a multiple of the coreset)"
            )
        if self.coreset.pool and self.coreset.pool_share:
            raise UserError(
                f"coreset.pool-share = {self.coreset.pool_share}: expected 0 with coreset.pool = "
                f"{self.coreset.pool} (one of the two says how many images are scored)"
            )
        if 0 < pool_factor(self.coreset) < 1:
            raise UserError(
                f"coreset.pool-share = {self.coreset.pool_share}: expected more with "
                f"coreset.interval = {self.coreset.interval} (it pays for scoring "
                f"{pool_factor(self.coreset):.2g} times the coreset, less than is chosen), or a "
                f"longer interval"
            )
        is_corrected = self.training.correction != "none" and self.training.beta > 0
        if self.training.teacher_views and (is_corrected or self.training.loss != "kd"):
            raise UserError(
                f"training.teacher-views = {self.training.teacher_views}: expected 0 with "
                f"training.loss = {self.training.loss!r} and training.correction = "
                f"{self.training.correction!r} (only the logits that distillation alone needs are "
                f"kept, no features)"
            )
        if self.coreset.importance_weights and self.coreset.selection != "res-sampled":
            raise UserError(
                f"coreset.importance-weights = true: expected coreset.selection = 'res-sampled', "
                f"not {self.coreset.selection!r} (no other draws images by known chances)"
            )
        if self.coreset.adaptive_floor > self.coreset.adaptive_cap:
            raise UserError(
                f"coreset.adaptive-floor = {self.coreset.adaptive_floor}: expected at most "
                f"coreset.adaptive-cap = {self.coreset.adaptive_cap}"
            )
        paced = "coreset.adaptive" if self.coreset.adaptive else "training.partial-work"
        if self.fleet.name and not self.fleet.deadline and self._is_paced:
            raise UserError(f"{paced} = true: expected fleet.deadline above 0 with fleet.name")
        if self.attack.name != "none" and self.federation.update_format == "codes":
            raise UserError(
                f"attack.name = {self.attack.name!r}: expected 'none' with "
                f"federation.update-format = 'codes' (an attack scales a change)"
            )
        if self.quantization.weight_bits not in self.device_bits:
            raise UserError(
                f"federation.mixed-bits = {self.federation.mixed_bits!r}: expected "
                f"quantization.weight-bits = {self.quantization.weight_bits} among them (the "
                f"bit-width that the run is judged by)"
            )
        if self.strategy.name == ASYNCHRONOUS:
            self._check_asynchronous()
        is_float = self.quantization.weight_bits == FLOAT_BITS
        if is_float and self.federation.update_format == "codes":
            raise UserError(
                "federation.update-format = 'codes': expected 'delta' or 'float32' with "
                "quantization.weight-bits = 32 (a float model has no codes)"
            )

        if self.privacy.mechanism != "none":
            self._check_privacy()

    def _check_privacy(self) -> None:
        """What a release of clipped changes can be combined with."""
        mechanism = f"privacy.mechanism = {self.privacy.mechanism!r}"
        if self.strategy.name not in AVERAGING_STRATEGIES:
            raise UserError(
                f"strategy.name = {self.strategy.name!r}: expected one of "
                f"{', '.join(AVERAGING_STRATEGIES)} with {mechanism} (others need single updates)"
            )
        if self.federation.update_format == "codes":
            raise UserError(
                f"federation.update-format = 'codes': expected 'delta' or 'float32' with "
                f"{mechanism} (clipped changes are no whole steps)"
            )
        if self.federation.mixed_bits:
            raise UserError(
                f"federation.mixed-bits = {self.federation.mixed_bits!r}: expected none with "
                f"{mechanism} (a bit-width's few devices would decide its steps)"
            )
        if self.fleet.over_selection > 1.0:
            raise UserError(
                f"fleet.over-selection = {self.fleet.over_selection:g}: expected 1 with "
                f"{mechanism} (how fast a device is would decide whose changes count)"
            )

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

    def at_bits(self, weight_bits: int) -> Config:
        """The same with another quantization.weight-bits."""
        quantization = dataclasses.replace(self.quantization, weight_bits=weight_bits)
        return dataclasses.replace(self, quantization=quantization)

    def _check_asynchronous(self) -> None:
        """What buffered, asynchronous aggregation does not go with."""
        name = f"strategy.name = '{ASYNCHRONOUS}'"
        if self.run.resume:
            raise UserError(
                f"run.resume = '{self.run.resume}': expected none with {name} (a checkpoint does "
                f"not hold what devices are training on)"
            )
        if self.fleet.over_selection != 1:
            raise UserError(
                f"fleet.over-selection = {self.fleet.over_selection:g}: expected 1 with {name} "
                f"(strategy.concurrency says how many devices train)"
            )
        if self.federation.mixed_bits:
            raise UserError(
                f"federation.mixed-bits = {self.federation.mixed_bits!r}: expected none with {name}"
            )
        if self.strategy.concurrency > self.data.num_devices:
            raise UserError(
                f"strategy.concurrency = {self.strategy.concurrency}: expected at most "
                f"data.num-devices = {self.data.num_devices}"
            )

    @property
    def _is_paced(self) -> bool:
        return self.coreset.adaptive or self.training.partial_work

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


SECTION_TYPES: dict[str, type[Section]] = {
    "run": RunConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "quantization": QuantizationConfig,
    "coreset": CoresetConfig,
    "training": TrainingConfig,
    "warmup": WarmupConfig,
    "federation": FederationConfig,
    "strategy": StrategyConfig,
    "fleet": FleetConfig,
    "attack": AttackConfig,
    "privacy": PrivacyConfig,
    "evaluation": EvaluationConfig,
}
SECTION_NAMES = {section_type: name for name, section_type in SECTION_TYPES.items()}
DEFAULT_KEYS = frozenset(Config().to_flat())
