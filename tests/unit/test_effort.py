"""What a device has learned of its own pace: client.effort."""

from __future__ import annotations

import pytest
import torch
from flwr.app import RecordDict

from client.coreset import Coreset
from client.deadline import Pace
from client.device import Device
from client.effort import measured_pace, round_effort
from client.quarc import QuarcResult
from client.trainer import TrainingResult
from common.config import Config
from common.data.datasets import ImageSet
from common.messages import Stage, TrainRequest
from tests.unit.datasets import dataset_of


def outcome(*, num_scored: int, select_seconds: float) -> QuarcResult:
    """A round that trained 50 images in 5 s."""
    return QuarcResult(
        training=TrainingResult(loss_sum=1.0, num_seen=50, num_steps=5),
        coreset=Coreset(indices=torch.arange(50), epoch=0),
        num_selections=1,
        num_scored=num_scored,
        num_teacher_scored=num_scored,
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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"coreset.selection": "res"}, 0.3495),
        ({"coreset.selection": "random"}, 0.4745),
    ],
)
def test_only_selections_that_score_leave_time_for_it(
    settings: dict[str, str | int], expected: float
) -> None:
    """95 of 100 s for 1,000 images: trained on twice at 0.1 s they are 475, less half an image for
    rounding. Scored by student and teacher at 0.0125 s first, 25 s less are left: 350."""
    flat: dict[str, str | int | float | bool] = {
        "coreset.adaptive": True,
        "coreset.balanced": False,
        "federation.round-timeout": 100.0,
        "training.local-epochs": 2,
    }
    images = ImageSet(
        images=torch.zeros(1000, 1, 2, 2, dtype=torch.uint8),
        labels=torch.zeros(1000, dtype=torch.int64),
        class_names=("a",),
    )
    device = Device(
        partition_id=0,
        dataset=dataset_of(images),
        train=images,
        holdout=images,
        pace=Pace(seconds_per_sample=0.1, seconds_per_scored_sample=0.0125),
    )
    request = TrainRequest(
        stage=Stage.QUANTIZED, round_index=0, num_rounds=1, model=b"", model_hash=""
    )
    config = Config.from_flat({**flat, **settings})
    coreset, num_epochs = round_effort(config, device, request, RecordDict())
    assert coreset.fraction == pytest.approx(expected)
    assert num_epochs == 2
