"""One device's selection: outputs of student and teacher -> scores -> coreset."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from client.coreset import MODEL_FREE, TEACHER_FREE, Coreset, sample_scores, select_top
from common.config import CoresetConfig
from common.datasets import Dataset, ImageSet
from common.inference import predict_logits


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
) -> Coreset:
    """The coreset of a device's images.

    Args:
        config: selection, fraction and balance.
        images: the device's training images.
        dataset: their normalisation.
        student: the quantized model that scores.
        teacher_outputs: the teacher's softmax outputs [n, classes]; None where
            :func:`needs_teacher_outputs` says so.
        epoch: epochs done over all rounds.
        num_epochs: epochs of all rounds.
        generator: source of a random selection.
    """
    if config.selection == "full":
        return Coreset(indices=torch.arange(len(images)), epoch=epoch)
    if config.selection in MODEL_FREE:
        scores = torch.rand(len(images), generator=generator)
    else:
        probabilities = predict_logits(student, images.images, dataset).softmax(1)
        scores = sample_scores(
            config.selection,
            p_quantized=probabilities,
            p_teacher=probabilities if teacher_outputs is None else teacher_outputs,
            labels=images.labels,
            epoch=epoch,
            num_epochs=num_epochs,
        )
    indices = select_top(scores, images.labels, config.fraction, balanced=config.balanced)
    return Coreset(indices=indices, epoch=epoch)


def needs_teacher_outputs(selection: str) -> bool:
    """Whether the selection compares with the teacher."""
    return selection not in TEACHER_FREE
