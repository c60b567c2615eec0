"""Losses of QuaRC training: distillation, cross-entropy and cascaded layer correction (CLC).

L = L_KD + beta L_CLC (QuaRC). The correction compares the student's intermediate outputs, each
computed from the quantized outputs of the layers before it, with the teacher's. What "as a
distribution" means is a choice; the variants here are compared in docs/results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def distillation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """L_KD = -sum_m p_T log p_Q, averaged over the batch.

    Args:
        student_logits: [n, classes].
        teacher_logits: [n, classes], without gradient.
    """
    return functional.cross_entropy(student_logits, teacher_logits.softmax(1))


def relative_entropy(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """KL(p_Q || p_F) of the softmax over ``dim``; the result lacks that dimension."""
    # Innermost, where channels are in the channels_last layout: no copies, 1.6 times as fast.
    log_student = student.movedim(dim, -1).log_softmax(-1)
    log_teacher = teacher.movedim(dim, -1).log_softmax(-1)
    return (log_student.exp() * (log_student - log_teacher)).sum(-1)


def clc_channel(student: Tensor, teacher: Tensor) -> Tensor:
    """Softmax over channels at every position of [n, c, h, w]; mean over batch and positions."""
    return relative_entropy(student, teacher, dim=1).mean()


def clc_pooled(student: Tensor, teacher: Tensor) -> Tensor:
    """Softmax over channels of the pooled map [n, c]; mean over the batch."""
    return relative_entropy(student.mean((2, 3)), teacher.mean((2, 3)), dim=1).mean()


def clc_flat(student: Tensor, teacher: Tensor) -> Tensor:
    """Softmax over the flattened map [n, c h w]; mean over the batch."""
    return relative_entropy(student.flatten(1), teacher.flatten(1), dim=1).mean()


def clc_spatial(student: Tensor, teacher: Tensor) -> Tensor:
    """Softmax over positions in every channel; mean over batch and channels."""
    return relative_entropy(student.flatten(2), teacher.flatten(2), dim=2).mean()


def normalized_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """|f_Q - f_F|^2 / |f_F|^2 over the batch: the control without distributions."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


CORRECTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clc-channel": clc_channel,
    "clc-pooled": clc_pooled,
    "clc-flat": clc_flat,
    "clc-spatial": clc_spatial,
    "mse": normalized_squared_error,
}


def correction_loss(name: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over the layers of the named correction, so that one beta serves every depth.

    Args:
        name: a key of ``CORRECTION_LOSSES``.
        student: outputs of the student's layers, [n, c, h, w] each.
        teacher: the teacher's, same shapes.

    Raises:
        ValueError: if the two differ in length.
    """
    loss = CORRECTION_LOSSES[name]
    terms = [loss(mine, target) for mine, target in zip(student, teacher, strict=True)]
    return torch.stack(terms).mean()
