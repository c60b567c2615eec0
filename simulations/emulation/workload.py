"""What a device computes in a round, in floating-point operations: from its reply, or foreseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.config import Config
from common.messages import Stage
from simulations.emulation.flops import ModelFlops


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Operations of a run's tasks."""

    config: Config
    flops: ModelFlops

    def of_reply(self, stage: Stage, metrics: Mapping[str, float], num_samples: int) -> float:
        """Operations of a task that was done.

        Args:
            stage: of the run.
            metrics: of the reply: num-seen, num-scored, num-teacher-scored, num-teacher-kept.
            num_samples: training images of the device.
        """
        seen = metrics.get("num-seen", 0)
        if stage in (Stage.CALIBRATION, Stage.STATISTICS):
            return self._without_training(stage, num_samples)
        if stage is Stage.FLOAT:
            return seen * self.flops.float_training
        return (
            seen * self.training_step()
            + metrics.get("num-scored", 0) * self.flops.quantized_forward
            + metrics.get("num-teacher-scored", 0) * self.flops.float_forward
            - metrics.get("num-teacher-kept", 0) * self.flops.float_forward
        )

    def least(self, stage: Stage, num_samples: int, num_classes: int) -> float:
        """Operations that a task takes for certain: without selections, on the smallest coreset.

        A balanced coreset rounds the number of every class, so that it may be smaller than its
        share of all images by half an image a class.
        """
        if stage in (Stage.CALIBRATION, Stage.STATISTICS):
            return self._without_training(stage, num_samples)
        if stage is Stage.FLOAT:
            return self.config.warmup.local_epochs * num_samples * self.flops.float_training
        coreset, training = self.config.coreset, self.config.training
        fraction = coreset.adaptive_floor if coreset.adaptive else coreset.fraction
        num_epochs = 1 if training.partial_work else training.local_epochs
        size: float = num_samples
        if coreset.selection != "full":
            slack = num_classes / 2 if coreset.balanced else 0.5
            size = max(min(1.0, num_samples), fraction * num_samples - slack)
        # The teacher's outputs may all be kept from the rounds before.
        kept = self.flops.float_forward if training.teacher_views else 0.0
        return num_epochs * size * (self.training_step() - kept)

    def training_step(self) -> float:
        """Operations of a quantization-aware step on one image, the teacher's pass included."""
        needs_teacher = self.config.training.loss == "kd" or self.config.is_corrected
        teacher = self.flops.float_forward if needs_teacher else 0.0
        return self.flops.quantized_training + teacher

    def _without_training(self, stage: Stage, num_samples: int) -> float:
        training = self.config.training
        most = training.batch_norm_images
        if stage is Stage.CALIBRATION:
            most = self.config.quantization.calibration_batches * training.batch_size
        return min(num_samples, most) * self.flops.quantized_forward
