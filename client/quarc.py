"""QuaRC on one device: choose a coreset when one is due, train on it until the next is.

The loop of QuaRC (arXiv 2507.17768) and ACS (arXiv 2306.07215), without a federation around it:
a round of the ClientApp runs its share of the epochs, the harness runs all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from client.batch_norm import renew_statistics
from client.coreset import STUDENT_FREE, Coreset
from client.optimizer import make_optimizer
from client.selection import (
    choose_coreset,
    draw_pool,
    due_epoch,
    has_scored,
    is_due,
    needs_teacher_outputs,
    note_scores,
    selection_at,
)
from client.task import TrainingTask
from client.teacher_views import TeacherViews
from client.trainer import TrainingResult, proximal_anchors, train
from common.config import ONLINE, Config, CoresetConfig
from common.data.augmentation import augment_batch
from common.data.datasets import Dataset, ImageSet
from common.qat import calibrate

TeacherOutputs = Callable[[Tensor | None], Tensor]
"""Indices of images, or None for all of them -> the teacher's softmax outputs [k, classes]."""


@dataclass(frozen=True, kw_only=True)
class QuarcResult:
    """What came of :func:`train_on_coresets`, and what it cost."""

    training: TrainingResult
    coreset: Coreset
    """The last one."""
    num_selections: int
    num_scored: int
    """Images that the student was run on for the selections."""
    num_teacher_scored: int
    """Images that the teacher was run on for them: its outputs on all images are kept."""
    select_seconds: float
    """Wall-clock time of the selections, the teacher's outputs for them included."""
    train_seconds: float
    """Wall-clock time of the training."""
    select_cpu_seconds: float
    """Processor time of all threads."""
    train_cpu_seconds: float
    """Processor time of all threads."""


def train_on_coresets(
    config: CoresetConfig,
    task: TrainingTask,
    images: ImageSet,
    dataset: Dataset,
    *,
    student: nn.Module,
    teacher: nn.Module,
    teacher_outputs: TeacherOutputs,
    coreset: Coreset | None,
    generator: torch.Generator,
    selection_generator: Callable[[int], torch.Generator],
    statistics_images: int = 0,
    views: TeacherViews | None = None,
    on_coreset: Callable[[Coreset], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> QuarcResult:
    """Train ``student`` in place for the epochs of ``task``, a new coreset whenever one is due.

    Args:
        config: which images are chosen, how many and how often.
        task: epochs to train, and their place in the whole training.
        images: the device's training images.
        dataset: their normalisation and augmentation.
        student: prepared model.
        teacher: full-precision model in eval mode.
        teacher_outputs: asked for the images that a selection scores.
        coreset: the one in use so far; None: none was chosen yet.
        generator: source of order and augmentation.
        selection_generator: epochs done -> source of what is random in a selection.
        statistics_images: from which batch normalisation's statistics are taken anew at the end; 0:
            they stay running averages.
        views: of the images, and the teacher's outputs on them that are kept; None: none are.
        on_coreset: called with every new coreset.
        on_progress: called in every step with the share of all epochs that is done.

    Raises:
        DivergedError: on a loss or weight that is not finite.
    """
    total = TrainingResult(loss_sum=0.0, num_seen=0, num_steps=0)
    select, training = _Stopwatch(), _Stopwatch()
    # One for all coresets: a selection is no reason to lose the momentum.
    optimizer = make_optimizer(student, task)
    anchors = proximal_anchors(student, task)
    num_selections = num_scored = num_teacher_scored = 0
    epoch, last_epoch = task.first_epoch, task.first_epoch + task.num_epochs
    while epoch < last_epoch:
        with select:
            if is_due(config, coreset, images.labels, epoch):
                is_first = not has_scored(config, coreset)
                now, source = selection_at(config, epoch), selection_generator(epoch)
                pool = draw_pool(now, images.labels, source)
                needs_teacher = needs_teacher_outputs(now.selection)
                coreset = choose_coreset(
                    now,
                    images,
                    dataset,
                    student=student,
                    teacher_outputs=teacher_outputs(pool) if needs_teacher else None,
                    epoch=epoch,
                    num_epochs=task.total_epochs,
                    generator=source,
                    candidates=pool,
                    previous=coreset,
                    batch_size=task.scoring_batch,
                    precision=task.precision,
                )
                num_candidates = len(images) if pool is None else len(pool)
                num_selections += 1
                if now.selection not in STUDENT_FREE:
                    num_scored += num_candidates
                # On all images the teacher's outputs are computed once and kept.
                if needs_teacher and (is_first or pool is not None):
                    num_teacher_scored += num_candidates
                if views is not None:
                    views.forget()
                if on_coreset is not None:
                    on_coreset(coreset)
        assert coreset is not None
        until_next = due_epoch(config, coreset) - epoch
        num_epochs, view = min(until_next, last_epoch - epoch), None
        if views is not None:
            num_epochs, view = 1, views.at(coreset, epoch, dataset, augment=task.augment)
        part = replace(task, first_epoch=epoch, num_epochs=num_epochs)
        on_outputs = None
        if config.selection == ONLINE:
            assert coreset.scores is not None
            on_outputs = partial(note_scores, coreset.scores, config.smoothing)
        with training:
            total = total + train(
                student,
                teacher,
                dataset,
                images,
                coreset.indices,
                part,
                generator,
                optimizer=optimizer,
                anchors=anchors,
                weights=_weights_by_image(coreset, len(images)),
                view=view,
                on_outputs=on_outputs,
                on_progress=on_progress,
            )
        epoch += part.num_epochs
    if statistics_images:
        with training:
            renew_statistics(
                student, dataset, images, task, generator, num_images=statistics_images
            )
    assert coreset is not None
    return QuarcResult(
        training=total,
        coreset=coreset,
        num_selections=num_selections,
        num_scored=num_scored,
        num_teacher_scored=num_teacher_scored,
        select_seconds=select.seconds,
        train_seconds=training.seconds,
        select_cpu_seconds=select.cpu_seconds,
        train_cpu_seconds=training.cpu_seconds,
    )


def _weights_by_image(coreset: Coreset, num_images: int) -> Tensor | None:
    """A coreset's weights at its images' places among all [n]; None: all count the same."""
    if coreset.weights is None:
        return None
    return torch.zeros(num_images).index_copy_(0, coreset.indices, coreset.weights)


def calibrate_steps(
    model: nn.Module,
    config: Config,
    images: ImageSet,
    dataset: Dataset,
    generator: torch.Generator,
) -> None:
    """Initialise the activation steps of a prepared ``model`` from random images, in place.

    Takes ``quantization.calibration-batches`` of ``training.batch-size`` images, not augmented.
    """
    order = torch.randperm(len(images), generator=generator)
    chosen = order.split(config.training.batch_size)[: config.quantization.calibration_batches]
    inputs = (
        augment_batch(images.images, batch, dataset, generator=generator, augment=False)
        for batch in chosen
    )
    calibrate(model, inputs, config.quantization)


class _Stopwatch:
    """Adds up the wall-clock and processor time of the blocks that it is entered for.

    Training reads its loss and selection its scores on the CPU, so that a GPU's work is done when
    a block ends.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started[0]
        self.cpu_seconds += time.process_time() - self._started[1]
