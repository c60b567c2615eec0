"""Training on one device: float epochs, and QuaRC's quantization-aware epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.features import FeatureTap
from client.losses import correction_loss, distillation
from common.augmentation import augment_batch
from common.datasets import Dataset, ImageSet
from common.inference import device_of
from common.models import feature_layers
from common.qat import STEP_SUFFIX, clamp_steps


class DivergedError(RuntimeError):
    """Training met a NaN or an infinity; its weights must not leave the device."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What one call of :func:`train` is to do."""

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
    augment: bool
    first_epoch: int
    """Epochs done in the rounds before."""
    total_epochs: int
    """Epochs of all rounds: what the schedule spans."""
    proximal_mu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What came of a training."""

    loss_sum: float
    """Sum of the loss over all samples seen."""
    num_seen: int
    num_steps: int

    def __add__(self, other: TrainingResult) -> TrainingResult:
        """Both trainings together."""
        return TrainingResult(
            loss_sum=self.loss_sum + other.loss_sum,
            num_seen=self.num_seen + other.num_seen,
            num_steps=self.num_steps + other.num_steps,
        )

    @property
    def mean_loss(self) -> float:
        """Mean loss of a sample."""
        return self.loss_sum / max(1, self.num_seen)


def train(
    model: nn.Module,
    teacher: nn.Module | None,
    dataset: Dataset,
    images: ImageSet,
    indices: Tensor,
    task: TrainingTask,
    generator: torch.Generator,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> TrainingResult:
    """Train ``model`` in place on ``images[indices]``.

    One forward pass of the student and, unless the loss needs none, one of the teacher a step;
    the features of the correction are captured in these passes.

    Args:
        model: float or prepared model; the teacher is on the same torch device.
        teacher: full-precision model for distillation and correction; None with loss "ce" alone.
        dataset: normalisation and augmentation of the images.
        images: uint8 images and labels of the device.
        indices: int64 [k] into ``images``.
        task: what to do.
        generator: source of order and augmentation.
        on_progress: called in every step with the share of all rounds' epochs that is done.

    Raises:
        DivergedError: on a loss or weight that is not finite.
    """
    if teacher is None and (task.loss == "kd" or task.correction != "none"):
        raise ValueError(f"loss {task.loss!r} with correction {task.correction!r} needs a teacher")
    device = device_of(model)
    corrected = task.correction != "none" and task.beta > 0
    layers = feature_layers(model) if corrected else ()
    optimizer = make_optimizer(model, task)
    steps = [p for name, p in model.named_parameters() if name.endswith(STEP_SUFFIX)]
    anchors = [(p, p.detach().clone()) for p in model.parameters()] if task.proximal_mu else []
    model.train()
    loss_sum, num_seen, num_steps = 0.0, 0, 0
    with FeatureTap(model, layers) as tap, FeatureTap(teacher or model, layers) as teacher_tap:
        for progress, chosen in batches(indices, task, generator):
            if on_progress is not None:
                on_progress(progress)
            set_learning_rate(optimizer, schedule_factor(task.schedule, progress))
            inputs = augment_batch(
                images.images, chosen, dataset, generator=generator, augment=task.augment
            ).to(device)
            if teacher is not None:
                with torch.no_grad():
                    teacher_logits = teacher(inputs)
                    targets = teacher_tap.take()
            logits = model(inputs)
            if task.loss == "kd":
                loss = distillation(logits, teacher_logits)
            else:
                loss = F.cross_entropy(logits, images.labels[chosen].to(device))
            if corrected:
                loss = loss + task.beta * correction_loss(task.correction, tap.take(), targets)
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(f"loss is {value} in step {num_steps}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            add_proximal_gradient(anchors, task.proximal_mu)
            optimizer.step()
            clamp_steps([step.data for step in steps])
            loss_sum += value * len(chosen)
            num_seen += len(chosen)
            num_steps += 1
    require_finite(model)
    return TrainingResult(loss_sum=loss_sum, num_seen=num_seen, num_steps=num_steps)


def batches(
    indices: Tensor, task: TrainingTask, generator: torch.Generator
) -> Iterator[tuple[float, Tensor]]:
    """Shuffled batches of every epoch, each with the progress of all rounds in [0, 1).

    Batches of one epoch differ by at most one sample in size: a last batch of one or two samples
    would ruin batch normalisation's statistics.
    """
    num_batches = math.ceil(len(indices) / task.batch_size)
    for epoch in range(task.num_epochs):
        order = indices[torch.randperm(len(indices), generator=generator)]
        for step, chosen in enumerate(order.tensor_split(num_batches)):
            done = task.first_epoch + epoch + step / num_batches
            yield done / task.total_epochs, chosen


def schedule_factor(schedule: str, progress: float) -> float:
    """Learning rate relative to its start after ``progress`` in [0, 1] of all rounds."""
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1.0 - progress
    return 1.0


def make_optimizer(model: nn.Module, task: TrainingTask) -> torch.optim.SGD:
    """SGD with Nesterov momentum in the paper's groups.

    Weights decay; biases and batch normalisation do not; quantizer steps and offsets do not and
    learn more slowly.
    """
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "plain": [], "steps": []}
    for name, parameter in model.named_parameters():
        if "quantizer." in name:
            groups["steps"].append(parameter)
        elif parameter.dim() > 1:
            groups["weights"].append(parameter)
        else:
            groups["plain"].append(parameter)
    scales = {"weights": 1.0, "plain": 1.0, "steps": task.step_learning_rate_scale}
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "base_lr": task.learning_rate * scales[name],
                "weight_decay": task.weight_decay if name == "weights" else 0.0,
            }
            for name, parameters in groups.items()
            if parameters
        ],
        lr=task.learning_rate,
        momentum=task.momentum,
        nesterov=task.momentum > 0,
    )


def set_learning_rate(optimizer: torch.optim.SGD, factor: float) -> None:
    """Set every group to ``factor`` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@torch.no_grad()
def add_proximal_gradient(anchors: list[tuple[nn.Parameter, Tensor]], mu: float) -> None:
    """Add the gradient mu (w - w_global) of FedProx's term mu/2 ||w - w_global||^2."""
    for parameter, anchor in anchors:
        if parameter.grad is not None:
            parameter.grad.add_(parameter - anchor, alpha=mu)


def require_finite(model: nn.Module) -> None:
    """Refuse a model with a NaN or an infinity.

    Raises:
        DivergedError: naming the first such entry.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    for name, values in state.items():
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise DivergedError(f"{name} is not finite after training")
