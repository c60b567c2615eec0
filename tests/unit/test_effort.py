"""What a device has learned of its own pace: client.effort."""

from __future__ import annotations

import torch

from client.coreset import Coreset
from client.effort import measured_pace
from client.quarc import QuarcResult
from client.trainer import TrainingResult


def outcome(*, num_scored: int, select_seconds: float) -> QuarcResult:
    """A round that trained 50 images in 5 s."""
    return QuarcResult(
        training=TrainingResult(loss_sum=1.0, num_seen=50, num_steps=5),
        coreset=Coreset(indices=torch.arange(50), epoch=0),
        num_selections=1,
        num_scored=num_scored,
        num_teacher_scored=num_scored,
        num_normalized=0,
        select_seconds=select_seconds,
        train_seconds=5.0,
        select_cpu_seconds=select_seconds,
        train_cpu_seconds=5.0,
    )


def test_a_round_that_scores_says_how_long_it_takes() -> None:
    """200 images by student and teacher in 8 s: 0.02 s each; 5 s for 50 images of training."""
    pace = measured_pace(outcome(num_scored=200, select_seconds=8.0), {})
    assert pace == {"seconds-per-sample": 0.1, "seconds-per-scored-sample": 0.02}


def test_a_round_without_scores_keeps_what_is_known_of_scoring() -> None:
    """A random draw takes 0.01 s, but scores nothing: for 5,000 images that would be 50 s."""
    draws = outcome(num_scored=0, select_seconds=0.01)
    assert measured_pace(draws, {})["seconds-per-scored-sample"] == 0.0
    earlier = measured_pace(outcome(num_scored=200, select_seconds=8.0), {})
    assert measured_pace(draws, earlier)["seconds-per-scored-sample"] == 0.02
