"""Training on one device: float epochs, and QuaRC's quantization-aware epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from client.batch_fit import SMALLEST_PART
from client.batch_norm import batch_statistics
from client.features import FeatureTap
from client.losses import correction_loss, cross_entropy, distillation
from client.optimizer import make_optimizer, schedule_factor, set_learning_rate
from client.task import TrainingTask
from client.teacher_views import TeacherView
from common.data.augmentation import augment_batch
from common.data.datasets import Dataset, ImageSet
from common.inference import device_of
from common.models import feature_layers, state_tensors
from common.precision import forward_in
from common.qat import STEP_SUFFIX, clamp_steps, quantized_layers
from common.quantized_layers import quantized_at_once

Anchors = Sequence[tuple[nn.Parameter, Tensor]]
"""Parameters, each with the global value that FedProx's term holds it to."""


class DivergedError(RuntimeError):
    """Training met a NaN or an infinity; its weights must not leave the device."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What came of a training."""

    loss_sum: float
    """Sum of the loss over all samples seen."""
    num_seen: int
    num_steps: int
    num_kept: int = 0
    """Of the samples seen, those whose teacher outputs were kept from an earlier epoch."""

    def __add__(self, other: TrainingResult) -> TrainingResult:
        """Both trainings together."""
        return TrainingResult(
            loss_sum=self.loss_sum + other.loss_sum,
            num_seen=self.num_seen + other.num_seen,
            num_steps=self.num_steps + other.num_steps,
            num_kept=self.num_kept + other.num_kept,
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
    optimizer: torch.optim.SGD | None = None,
    anchors: Anchors | None = None,
    weights: Tensor | None = None,
    view: TeacherView | None = None,
    on_outputs: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> TrainingResult:
    """Train ``model`` in place on ``images[indices]``.

    One forward pass of the student and, unless the loss needs none, one of the teacher a step (or
    a part of one, see `TrainingTask.max_part_size`); the features of the correction are captured
    in these passes.

    Args:
        model: float or prepared model; the teacher is on the same torch device.
        teacher: full-precision model for distillation and correction; None with loss "ce" alone.
        dataset: normalisation and augmentation of the images.
        images: uint8 images and labels of the device.
        indices: int64 [k] into ``images``.
        task: what to do.
        generator: source of order and augmentation.
        optimizer: of `client.optimizer.make_optimizer`, where momentum is to go on from an earlier
            call.
        anchors: of :func:`proximal_anchors`; None: ``model`` is the global one still.
        weights: [n] by image, mean 1 over ``indices``: how much each counts; None: all the same.
        view: that all epochs show of the images, with the teacher's logits that are kept of it
            (not with a correction); None: a new one in every epoch.
        on_outputs: called after every pass with the images' indices [b] and the logits [b, classes]
            of student and teacher; needs a teacher.
        on_progress: called in every step with the share of all rounds' epochs that is done.

    Raises:
        DivergedError: on a loss or weight that is not finite.
        TooFewImagesError: a batch is one image, too few for this model.
        ValueError: if the loss needs a teacher and there is none.
    """
    corrected = task.is_corrected
    if task.loss == "ce" and not corrected:
        teacher = None
    elif teacher is None:
        raise ValueError(f"loss {task.loss!r} with correction {task.correction!r} needs a teacher")
    device = device_of(model)
    layers = feature_layers(model) if corrected else ()
    optimizer = optimizer or make_optimizer(model, task)
    anchors = proximal_anchors(model, task) if anchors is None else anchors
    steps: list[Tensor] = [p for name, p in model.named_parameters() if name.endswith(STEP_SUFFIX)]
    quantized = [layer for _, layer in quantized_layers(model)]
    model.train()
    loss_sum, num_seen, num_steps, num_kept = 0.0, 0, 0, 0
    with (
        FeatureTap(model, layers) as tap,
        FeatureTap(model if teacher is None else teacher, layers) as teacher_tap,
    ):
        for progress, chosen in batches(indices, task, generator):
            if on_progress is not None:
                on_progress(progress)
            set_learning_rate(optimizer, schedule_factor(task.schedule, progress))
            inputs = augment_batch(
                images.images,
                chosen,
                dataset,
                generator=generator,
                augment=task.augment,
                crops=None if view is None else view.crops(chosen),
            )
            optimizer.zero_grad(set_to_none=True)
            value = 0.0
            for part in parts(len(chosen), task.max_part_size):
                part_inputs = inputs[part].to(device)
                if teacher is not None:
                    with torch.no_grad(), forward_in(task.precision, device):
                        if view is None:
                            teacher_logits = teacher(part_inputs)
                        else:
                            teacher_logits, is_kept = view.teacher_logits(
                                chosen[part], partial(teacher, part_inputs)
                            )
                            teacher_logits = teacher_logits.to(device)
                            num_kept += is_kept * len(part_inputs)
                        targets = teacher_tap.take()
                with (
                    forward_in(task.precision, device),
                    quantized_at_once(quantized),
                    batch_statistics(len(part_inputs)),
                ):
                    logits = model(part_inputs)
                if on_outputs is not None:
                    on_outputs(chosen[part], logits.detach(), teacher_logits)
                counts = None if weights is None else weights[chosen[part]].to(device)
                if task.loss == "kd":
                    loss = distillation(logits.float(), teacher_logits.float(), counts)
                else:
                    labels = images.labels[chosen[part]].to(device)
                    loss = cross_entropy(logits.float(), labels, counts)
                if corrected:
                    correction = correction_loss(task.correction, tap.take(), targets, counts)
                    beta = task.beta * schedule_factor(task.beta_schedule, progress)
                    loss = loss + beta * correction
                # Losses are means: parts count by their images. Of one part the share is 1.
                loss = loss * ((part.stop - part.start) / len(chosen))
                part_value = loss.item()
                if not math.isfinite(part_value):
                    raise DivergedError(f"loss is {part_value} in step {num_steps}")
                value += part_value
                loss.backward()
            add_proximal_gradient(anchors, task.proximal_mu)
            optimizer.step()
            clamp_steps(steps)
            loss_sum += value * len(chosen)
            num_seen += len(chosen)
            num_steps += 1
    require_finite(model)
    return TrainingResult(
        loss_sum=loss_sum, num_seen=num_seen, num_steps=num_steps, num_kept=num_kept
    )


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


def parts(num_images: int, max_size: int) -> list[slice]:
    """As few parts of a batch as possible, none above ``max_size`` (0: one), sizes alike.

    No part is of fewer than `SMALLEST_PART` images where the batch has as many: an odd batch in
    parts of two has one part of three.
    """
    most = max(1, num_images // SMALLEST_PART)
    count = min(math.ceil(num_images / max_size), most) if max_size else 1
    bounds = [num_images * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def proximal_anchors(model: nn.Module, task: TrainingTask) -> Anchors:
    """The present values of ``model``, to be taken while it is the global one; empty if mu is 0."""
    if task.proximal_mu == 0:
        return ()
    return [(parameter, parameter.detach().clone()) for parameter in model.parameters()]


@torch.no_grad()
def add_proximal_gradient(anchors: Anchors, mu: float) -> None:
    """Add the gradient mu (w - w_global) of FedProx's term mu/2 ||w - w_global||^2."""
    for parameter, anchor in anchors:
        if parameter.grad is not None:
            parameter.grad.add_(parameter - anchor, alpha=mu)


def require_finite(model: nn.Module) -> None:
    """Refuse a model with a NaN or an infinity.

    Raises:
        DivergedError: naming the first such entry.
    """
    state = state_tensors(model)
    # The norm of all is not finite if an entry is not: a sixth of the time of looking at each. Very
    # large entries may overflow it, so that only then each is looked at.
    if math.isfinite(nn.utils.get_total_norm(list(state.values())).item()):
        return
    for name, values in state.items():
        if not torch.isfinite(values).all():
            raise DivergedError(f"{name} is not finite after training")
