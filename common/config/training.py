"""A device's training: quantization-aware, and of the float teacher before it."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.section import Section
from common.precision import PRECISIONS
from common.settings import setting

CORRECTIONS = (
    "none",
    "mse",
    "clc-channel",
    "clc-normalized",
    "clc-pooled",
    "clc-flat",
    "clc-spatial",
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section, name="training"):
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
    precision: str = setting("float32", choices=PRECISIONS)
    """Of the passes through student and teacher in training and selection; bfloat16 is 1.4 times
    as fast on processors that have it, slower on others."""
    loss: str = setting("kd", choices=("kd", "ce"))
    """Distillation from the teacher, or cross-entropy with the labels (control)."""
    correction: str = setting("none", choices=CORRECTIONS)
    """Cascaded layer correction's form; mse: squared error, a control."""
    beta: float = setting(10.0, minimum=0.0)
    """Weight of the correction; 10 was chosen for clc-normalized."""
    beta_schedule: str = setting("constant", choices=("constant", "cosine", "linear"))
    """How that weight falls to zero over all rounds, if it does."""
    batch_norm_images: int = setting(0, minimum=0)
    """Local images from which each device takes batch normalisation's statistics of the trained
    model anew, after the last round; 0: they stay those that devices kept while they trained."""
    teacher_views: int = setting(0, minimum=0, maximum=1000)
    """Augmentations of each coreset image, taken in turn, whose teacher outputs are kept as long as
    the coreset; 0: the teacher sees a new one in every epoch."""


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(Section, name="warmup"):
    """Float rounds that make a teacher where no checkpoint is given."""

    num_rounds: int = setting(8, minimum=0)
    """Rounds of FedAvg in float32 on all local images (ignored with a checkpoint)."""
    local_epochs: int = setting(2, minimum=1)
    """Epochs in a warm-up round."""
    learning_rate: float = setting(0.1, above=0.0)
    """Learning rate at the start of the warm-up."""
    batch_size: int = setting(32, minimum=1, maximum=65536)
    """Images per warm-up step."""
