"""What a device has learned of its own pace: client.effort."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from flwr.app import RecordDict

from client.coreset import Coreset
from client.deadline import Pace
from client.device import Device
from client.effort import Effort, measured_pace, round_effort
from client.quarc import QuarcResult
from client.state import save_coreset
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


def effort_of(
    settings: dict[str, str | int | float | bool],
    kept: Coreset | None = None,
    num_classes: int = 1,
    changes: Mapping[str, bytes] | None = None,
    mbits: float = 0.0,
) -> Effort:
    """Of a device with 1,000 images, 0.1 s for training on one and 0.0125 s for scoring it, that
    has 95 of 100 s in its first round, or in its second with a coreset that was kept; its line has
    ``mbits`` both ways, or takes no time."""
    images = ImageSet(
        images=torch.zeros(1000, 1, 2, 2, dtype=torch.uint8),
        labels=torch.arange(1000) % num_classes,
        class_names=tuple(map(str, range(num_classes))),
    )
    device = Device(
        partition_id=0,
        dataset=dataset_of(images),
        train=images,
        holdout=images,
        pace=Pace(
            seconds_per_sample=0.1,
            seconds_per_scored_sample=0.0125,
            downlink_mbits=mbits,
            uplink_mbits=mbits,
        ),
    )
    request = TrainRequest(
        stage=Stage.QUANTIZED,
        round_index=0 if kept is None else 1,
        num_rounds=2,
        model=b"",
        model_hash="",
        changes=changes or {},
    )
    records = RecordDict()
    if kept is not None:
        save_coreset(records, kept, images.digest)
    flat = {"coreset.balanced": False, "federation.round-timeout": 100.0, **settings}
    return round_effort(Config.from_flat(flat), device, request, records)


def test_changes_take_the_time_of_their_bytes() -> None:
    """Two changes of 2.5 MB at 4 bits a weight, 10^6 bytes a second: 5 s down. The update is one
    of them, and a quarter more: 3.125 s. 86.875 of 95 s are 434.375 images, trained on twice."""
    coreset, _ = effort_of(
        {
            "coreset.adaptive": True,
            "coreset.selection": "random",
            "training.local-epochs": 2,
            "federation.downlink-format": "delta",
        },
        changes={"a": bytes(2_500_000), "b": bytes(2_500_000)},
        mbits=8.0,
    )
    assert coreset.fraction == pytest.approx((434.375 - 0.5) / 1000)


@pytest.mark.parametrize(
    ("selection", "pool", "expected"),
    [
        ("res", 0.0, 0.3495),
        ("el2n", 0.0, 0.412),
        ("evs", 0.0, 0.412),
        ("entropy", 0.0, 0.412),
        ("random", 0.0, 0.4745),
        ("res", 2.0, 0.3795),
        ("el2n", 2.0, (95 / 0.225 - 0.5) / 1000),
        ("evs", 2.0, (95 / 0.225 - 0.5) / 1000),
        ("random", 2.0, 0.4745),
    ],
)
def test_only_models_that_score_take_time_for_it(
    selection: str, pool: float, expected: float
) -> None:
    """95 s are 475 images that are trained on twice, less half an image for rounding. Scored by
    student and teacher first, 25 s less are left: 350; by one of them 12.5 s: 412.5. Of a pool of
    two coresets an image costs 0.2 s of training and 0.05 s, or 0.025 s: 380, or 95 / 0.225."""
    coreset, num_epochs = effort_of(
        {
            "coreset.adaptive": True,
            "coreset.selection": selection,
            "coreset.pool": pool,
            "training.local-epochs": 2,
        }
    )
    assert coreset.fraction == pytest.approx(expected)
    assert num_epochs == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"coreset.selection": "res"}, 5),
        ({"coreset.selection": "res", "coreset.interval": 10}, 7),
        ({"coreset.selection": "res", "coreset.pool": 2.0}, 8),
        ({"coreset.selection": "random"}, 9),
    ],
)
def test_partial_work_leaves_time_for_scoring(
    settings: dict[str, str | float], expected: int
) -> None:
    """An epoch over 100 images takes 10 s. All 1,000 scored by both models: 25 s, and 7 of 95 s'
    epochs are left, if there is no second selection after five of them: that takes the student
    12.5 s, and a sixth epoch would end after 97.5 s. A pool of 200: 5 s for each selection, and 8
    epochs; a random draw takes no time."""
    coreset, num_epochs = effort_of(
        {
            "coreset.fraction": 0.1,
            "training.partial-work": True,
            "training.local-epochs": 10,
            **settings,
        }
    )
    assert num_epochs == expected
    assert coreset.fraction == 0.1


@pytest.mark.parametrize(
    ("size", "adaptive", "expected"), [(500, True, 1), (600, True, 2), (600, False, 2)]
)
def test_partial_work_goes_by_the_coreset_that_is_trained_on(
    size: int, adaptive: bool, expected: int
) -> None:
    """In 95 s the device can train twice on 475 images, or 474.5 of 1,000 for rounding. It goes on
    with a coreset of 500, which leaves time for one epoch; one of 600 gives way to a new one. The
    fixed share of 0.4 is 400 images."""
    _, num_epochs = effort_of(
        {
            "coreset.adaptive": adaptive,
            "coreset.fraction": 0.4,
            "coreset.interval": 50,
            "training.partial-work": True,
            "training.local-epochs": 2,
        },
        Coreset(indices=torch.arange(size), epoch=0),
    )
    assert num_epochs == expected


@pytest.mark.parametrize(("num_classes", "expected"), [(1, 10), (100, 9)])
def test_partial_work_counts_an_image_of_every_class(num_classes: int, expected: int) -> None:
    """A hundredth of 1,000 images of one class is 10 images: ten epochs take 10 s. Of a hundred
    classes it is one of each: an epoch takes 10 of 95 s."""
    _, num_epochs = effort_of(
        {
            "coreset.selection": "random",
            "coreset.balanced": True,
            "coreset.fraction": 0.01,
            "training.partial-work": True,
            "training.local-epochs": 10,
        },
        num_classes=num_classes,
    )
    assert num_epochs == expected
