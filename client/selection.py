"""One device's selection: outputs of student and teacher -> scores -> coreset."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from client.coreset import (
    MODEL_FREE,
    STUDENT_FREE,
    TEACHER_FREE,
    Coreset,
    balance_groups,
    group_quotas,
    relative_entropy_score,
    sample_scores,
    smooth_scores,
    top_of_groups,
)
from client.losses import relative_entropy
from client.sampling import SAMPLERS, Candidates, importance_weights
from common.config import ONLINE, CoresetConfig, pool_factor, selection_interval
from common.data.datasets import Dataset, ImageSet
from common.inference import EVALUATION_BATCH, predict_logits

OVERSIZE = 1.2
"""A coreset above this multiple of what its device has time for gives way: a measured pace varies,
and a new selection takes time as well."""


def choose_coreset(
    config: CoresetConfig,
    images: ImageSet,
    dataset: Dataset,
    *,
    student: nn.Module,
    teacher_outputs: Tensor | None,
    epoch: int,
    num_epochs: int,
    generator: torch.Generator,
    candidates: Tensor | None = None,
    previous: Coreset | None = None,
    batch_size: int = EVALUATION_BATCH,
    precision: str = "float32",
) -> Coreset:
    """The coreset of a device's images.

    Args:
        config: selection, fraction, balance, smoothing and weights.
        images: the device's training images.
        dataset: their normalisation.
        student: the quantized model that scores.
        teacher_outputs: the teacher's softmax outputs [n, classes], or [m, classes] of the
            candidates; None where :func:`needs_teacher_outputs` says so.
        epoch: epochs done over all rounds.
        num_epochs: epochs of all rounds.
        generator: source of what is random in the selection.
        candidates: int64 [m], the images that are scored, of :func:`draw_pool`; None: all.
        previous: the coreset of the selection before, whose scores are smoothed with.
        batch_size: images that the student scores at a time.
        precision: of its passes.

    Raises:
        ValueError: if the selection compares with a teacher whose outputs are not given.
    """
    if config.selection == "full":
        return Coreset(indices=torch.arange(len(images)), epoch=epoch)
    # The coreset's size follows all images of the device, not the pool that it comes from.
    quotas = group_quotas(balance_groups(images.labels, balanced=config.balanced), config.fraction)
    labels = images.labels if candidates is None else images.labels[candidates]
    groups = balance_groups(labels, balanced=config.balanced)
    scores_to_keep = weights = p_teacher = None
    if config.selection == "random":
        scores = torch.rand(len(labels), generator=generator)
    elif config.selection == ONLINE:
        scores_to_keep = _earlier_scores(previous, len(images))
        scores = _filled(scores_to_keep)
    else:
        p_quantized = None
        if config.selection not in STUDENT_FREE:
            logits = predict_logits(
                student,
                images.images,
                dataset,
                batch_size=batch_size,
                indices=candidates,
                precision=precision,
            )
            p_quantized = logits.softmax(1)
        if teacher_outputs is None and needs_teacher_outputs(config.selection):
            raise ValueError(f"selection {config.selection!r} needs the teacher's outputs")
        # A score that does not look at one of the two is given the other in its place.
        p_known = teacher_outputs if p_quantized is None else p_quantized
        assert p_known is not None
        p_teacher = p_known if teacher_outputs is None else teacher_outputs
        if config.selection in SAMPLERS:
            scores = relative_entropy_score(p_known, p_teacher)
        else:
            scores = sample_scores(
                config.selection,
                p_quantized=p_known,
                p_teacher=p_teacher,
                labels=labels,
                epoch=epoch,
                num_epochs=num_epochs,
            )
        if config.smoothing > 0:
            where = slice(None) if candidates is None else candidates
            scores_to_keep = _earlier_scores(previous, len(images))
            scores = smooth_scores(scores, scores_to_keep[where], config.smoothing)
            scores_to_keep[where] = scores
    if config.selection in SAMPLERS:
        scored = Candidates(
            scores=scores,
            groups=groups,
            quotas=quotas,
            p_teacher=p_teacher,
            drop_hardest=config.drop_hardest,
            hard_share=config.hard_share or math.sqrt(config.fraction),
        )
        priorities = SAMPLERS[config.selection](scored, generator)
        chosen = top_of_groups(priorities, groups, quotas)
        if config.importance_weights:
            weights = importance_weights(scored, priorities, chosen)
    else:
        chosen = top_of_groups(scores, groups, quotas)
    return Coreset(
        indices=chosen if candidates is None else candidates[chosen],
        epoch=epoch,
        weights=weights,
        scores=scores_to_keep,
    )


def _earlier_scores(previous: Coreset | None, num_images: int) -> Tensor:
    """Scores [n] that were kept with the coreset before, a copy; NaN where there are none."""
    if previous is None or previous.scores is None:
        return torch.full((num_images,), math.nan)
    return previous.scores.clone()


def _filled(scores: Tensor) -> Tensor:
    """Scores [n] with the mean of the known ones in place of NaN; 1 where none is known."""
    mean = scores.nanmean().nan_to_num(1.0)
    return torch.where(scores.isnan(), mean, scores)


@torch.no_grad()
def note_scores(
    scores: Tensor, smoothing: float, chosen: Tensor, logits: Tensor, teacher_logits: Tensor
) -> None:
    """Write the RES of images that have just been trained on, in place.

    Their logits are those of the training pass: of augmented images, and of a model that
    normalises by the batch's statistics.

    Args:
        scores: [n] of all images of the device, NaN where there is none yet.
        smoothing: weight of the earlier scores.
        chosen: int64 [b], the images of the pass.
        logits: the student's [b, classes].
        teacher_logits: [b, classes].
    """
    new = relative_entropy(logits.float(), teacher_logits.float(), dim=1)
    scores[chosen] = smooth_scores(new.cpu(), scores[chosen], smoothing)


def draw_pool(config: CoresetConfig, labels: Tensor, generator: torch.Generator) -> Tensor | None:
    """The images that a selection scores, int64 [m] ascending; None: all of them.

    `common.config.pool_factor` times as many of every class (or of all images, unbalanced) as are
    chosen, at random. So scoring costs as much as training on the pool's images once, forward only,
    however many images the device holds.
    """
    if pool_factor(config) == 0 or config.selection in MODEL_FREE:
        return None
    groups = balance_groups(labels, balanced=config.balanced)
    quotas = (group_quotas(groups, config.fraction) * pool_factor(config)).ceil().long()
    if (quotas >= groups.bincount()).all():
        return None
    return top_of_groups(torch.rand(len(labels), generator=generator), groups, quotas)


def selection_at(config: CoresetConfig, epoch: int) -> CoresetConfig:
    """How to choose after ``epoch`` epochs: as configured, or at random at first."""
    if epoch < first_scored_epoch(config):
        return replace(config, selection="random")
    return config


def first_scored_epoch(config: CoresetConfig) -> int:
    """Epochs over all rounds before the first selection that scores, where any does."""
    return 0 if config.selection in MODEL_FREE else config.random_epochs


def due_epoch(config: CoresetConfig, coreset: Coreset) -> int:
    """Epochs over all rounds after which a coreset gives way to the next."""
    first_scored = first_scored_epoch(config)
    due = coreset.epoch + selection_interval(config)
    return min(due, first_scored) if coreset.epoch < first_scored else due


def is_due(config: CoresetConfig, coreset: Coreset | None, labels: Tensor, epoch: int) -> bool:
    """Whether a new coreset is to be chosen after ``epoch`` epochs.

    A device whose share has shrunk by much (coreset.adaptive) does not wait for the interval's end:
    its coreset would make it late in every round until then.

    Args:
        config: with the share that the device has time for.
        coreset: the one in use so far, if any.
        labels: [n] of the device's training images.
        epoch: epochs done over all rounds.
    """
    # One of a later epoch is of the first time that the device was asked with this model.
    if coreset is None or not coreset.epoch <= epoch < due_epoch(config, coreset):
        return True
    return config.adaptive and len(coreset.indices) > OVERSIZE * coreset_size(config, labels)


def coreset_size(config: CoresetConfig, labels: Tensor) -> int:
    """Images of a coreset of those with ``labels`` [n]; balanced, every class is rounded."""
    if config.selection == "full":
        return len(labels)
    groups = balance_groups(labels, balanced=config.balanced)
    return int(torch.minimum(group_quotas(groups, config.fraction), groups.bincount()).sum())


def has_scored(config: CoresetConfig, coreset: Coreset | None) -> bool:
    """Whether a device has scored images before: then it has the teacher's outputs on them."""
    return coreset is not None and coreset.epoch >= first_scored_epoch(config)


def needs_teacher_outputs(selection: str) -> bool:
    """Whether the selection compares with the teacher."""
    return selection not in TEACHER_FREE
