"""What a training is to do: epochs and their place in the whole, optimizer, loss, batches."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import Config
from common.inference import EVALUATION_BATCH

SMALLEST_SCORING_BATCH = 8
"""A smaller one takes hardly less memory: layers' outputs are not kept."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What one call of :func:`client.trainer.train` is to do."""

    num_epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    step_learning_rate_scale: float
    schedule: str
    loss: str
    correction: str
    beta: float
    beta_schedule: str
    augment: bool
    first_epoch: int
    """Epochs done in the rounds before."""
    total_epochs: int
    """Epochs of all rounds: what the schedules span."""
    proximal_mu: float = 0.0
    max_part_size: int = 0
    """Most images in one pass; larger batches pass in parts whose gradients add up (the same step
    but for batch normalisation's statistics, which are each part's). 0: whole batches."""
    precision: str = "float32"
    """Of the passes through student and teacher; losses and weights are float32."""

    @property
    def is_corrected(self) -> bool:
        """Whether the loss compares features of student and teacher."""
        return self.correction != "none" and self.beta > 0

    @property
    def scoring_batch(self) -> int:
        """Images that are scored at a time."""
        return scoring_batch(self.max_part_size, EVALUATION_BATCH)


def scoring_batch(max_part_size: int, whole: int) -> int:
    """Images of a pass without gradient: ``whole``, or fewer where memory is too short.

    Args:
        max_part_size: most images that training passes at a time; 0: whole batches.
        whole: images of a pass where there is room.
    """
    return min(whole, max(SMALLEST_SCORING_BATCH, max_part_size)) if max_part_size else whole


def training_task(
    config: Config,
    *,
    first_epoch: int,
    num_epochs: int,
    total_epochs: int,
    proximal_mu: float = 0.0,
) -> TrainingTask:
    """The configured training of ``num_epochs`` epochs out of ``total_epochs``."""
    training = config.training
    return TrainingTask(
        num_epochs=num_epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        step_learning_rate_scale=training.step_learning_rate_scale,
        schedule=training.schedule,
        loss=training.loss,
        correction=training.correction,
        beta=training.beta,
        beta_schedule=training.beta_schedule,
        augment=config.data.augment,
        first_epoch=first_epoch,
        total_epochs=total_epochs,
        proximal_mu=proximal_mu,
        precision=training.precision,
    )
