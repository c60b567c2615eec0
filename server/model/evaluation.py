"""How good a model is on a set of images: Top-1, Top-5 and mean cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common.data.augmentation import normalize

TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Counts over a set of images; figures are made from them at the end."""

    num_examples: int
    num_correct: int
    num_correct_top5: int
    loss_sum: float
    """Sum of the cross-entropy, in nats."""
    num_correct_by_bits: Mapping[str, int] = field(default_factory=dict)
    """Of a model with several bit-widths: weight bits -> num_correct at that bit-width."""

    @property
    def accuracy(self) -> float:
        """Top-1 in percent."""
        return 100.0 * self.num_correct / self.num_examples

    @property
    def top5_accuracy(self) -> float:
        """Top-5 in percent; of fewer than five classes every image counts."""
        return 100.0 * self.num_correct_top5 / self.num_examples

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy of an image; None where the model gives no finite one."""
        return self.loss_sum / self.num_examples if math.isfinite(self.loss_sum) else None

    def figures(self) -> dict[str, Any]:
        """The three figures by name, and the accuracy at each of several bit-widths."""
        figures: dict[str, Any] = {
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
        }
        if self.num_correct_by_bits:
            figures["bit_accuracy"] = self.bit_accuracy
        return figures

    @property
    def bit_accuracy(self) -> dict[str, float]:
        """Weight bits -> Top-1 in percent; empty of a model with one bit-width."""
        return {
            bits: 100.0 * num_correct / self.num_examples
            for bits, num_correct in self.num_correct_by_bits.items()
        }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    batch_size: int = 64,
) -> Evaluation:
    """Measure a model in eval mode; its mode afterwards is what it was.

    Args:
        model: maps normalised images [n, c, h, w] to logits [n, classes].
        images: uint8 [n, c, h, w], normalised batch by batch.
        labels: int64 [n].
        mean: per channel, of pixel values in [0, 1].
        std: per channel, of pixel values in [0, 1].
        batch_size: images per step; large ones fall out of the processor's cache.

    Raises:
        ValueError: without images.
    """
    if not len(images):
        raise ValueError("images must hold at least one image")
    was_training = model.training
    model.eval()
    num_correct = num_correct_top5 = 0
    loss_sum = 0.0
    for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(normalize(batch, mean, std))
        top = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
        hits = top == targets[:, None]
        num_correct += int(hits[:, 0].sum())
        num_correct_top5 += int(hits.sum())
        loss_sum += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
    model.train(was_training)
    return Evaluation(
        num_examples=len(images),
        num_correct=num_correct,
        num_correct_top5=num_correct_top5,
        loss_sum=loss_sum,
    )


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Run with this many torch threads; a simulation's devices may share the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
