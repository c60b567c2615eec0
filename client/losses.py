"""Losses of QuaRC training: distillation, cross-entropy and cascaded layer correction (CLC).

L = L_KD + beta L_CLC (QuaRC). All are means over a batch, in which samples may have weights [n]
whose mean is 1 over the coreset (not over each batch). The correction compares the student's
intermediate outputs, each computed from the quantized outputs of the layers before it, with the
teacher's. What "as a distribution" means is a choice; the variants here are compared in
docs/results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of [n, ...], with each sample's values times its weight; None: all count the same."""
    if weights is None:
        return values.mean()
    return (values.reshape(len(values), -1).mean(1) * weights).mean()


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_m y log p, averaged over the batch.

    Args:
        logits: [n, classes].
        targets: classes [n] or probabilities [n, classes].
        weights: of the samples, [n]; None: all count the same.
    """
    if weights is None:
        return functional.cross_entropy(logits, targets)
    return weighted_mean(functional.cross_entropy(logits, targets, reduction="none"), weights)


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor | None = None
) -> Tensor:
    """L_KD = -sum_m p_T log p_Q, averaged over the batch.

    Args:
        student_logits: [n, classes].
        teacher_logits: [n, classes], without gradient.
        weights: of the samples, [n]; None: all count the same.
    """
    return cross_entropy(student_logits, teacher_logits.softmax(1), weights)


def relative_entropy(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """KL(p_Q || p_F) of the softmax over ``dim``; the result lacks that dimension."""
    # Innermost, where channels are in the channels_last layout: no copies, 1.6 times as fast.
    log_student = student.movedim(dim, -1).log_softmax(-1)
    log_teacher = teacher.movedim(dim, -1).log_softmax(-1)
    return (log_student.exp() * (log_student - log_teacher)).sum(-1)


def clc_channel(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax over channels at every position of [n, c, h, w]; mean over batch and positions."""
    return weighted_mean(relative_entropy(student, teacher, dim=1), weights)


def clc_normalized(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """:func:`clc_channel` of maps divided by the standard deviation of the teacher's.

    The unit that a layer's outputs happen to have is a softmax's temperature, and decides how much
    the layer counts. Here the loss does not depend on it, so that one beta can serve all layers.
    """
    scale = 1.0 / teacher.std().clamp_min(1e-6)
    return clc_channel(student * scale, teacher * scale, weights)


def clc_pooled(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax over channels of the pooled map [n, c]; mean over the batch."""
    divergence = relative_entropy(student.mean((2, 3)), teacher.mean((2, 3)), dim=1)
    return weighted_mean(divergence, weights)


def clc_flat(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax over the flattened map [n, c h w]; mean over the batch."""
    return weighted_mean(relative_entropy(student.flatten(1), teacher.flatten(1), dim=1), weights)


def clc_spatial(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax over positions in every channel; mean over batch and channels."""
    return weighted_mean(relative_entropy(student.flatten(2), teacher.flatten(2), dim=2), weights)


def normalized_squared_error(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None
) -> Tensor:
    """|f_Q - f_F|^2 / |f_F|^2 over the batch: the control without distributions."""
    errors = (student - teacher).square()
    if weights is not None:
        errors = errors * weights.reshape(-1, *[1] * (errors.dim() - 1))
    return errors.sum() / teacher.square().sum().clamp_min(1e-12)


class Correction(Protocol):
    """Outputs of the student's layer and of the teacher's, weights of the samples -> loss."""

    def __call__(
        self, student: Tensor, teacher: Tensor, weights: Tensor | None = None
    ) -> Tensor: ...


CORRECTION_LOSSES: dict[str, Correction] = {
    "clc-channel": clc_channel,
    "clc-normalized": clc_normalized,
    "clc-pooled": clc_pooled,
    "clc-flat": clc_flat,
    "clc-spatial": clc_spatial,
    "mse": normalized_squared_error,
}


def correction_loss(
    name: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    weights: Tensor | None = None,
) -> Tensor:
    """Mean over the layers of the named correction, so that one beta serves every depth.

    Args:
        name: a key of ``CORRECTION_LOSSES``.
        student: outputs of the student's layers, [n, c, h, w] each, of any float type.
        teacher: the teacher's, same shapes.
        weights: of the samples, [n]; None: all count the same.

    Raises:
        ValueError: if the two differ in length.
    """
    loss = CORRECTION_LOSSES[name]
    terms = [
        loss(mine.float(), target.float(), weights)
        for mine, target in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()
