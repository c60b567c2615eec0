"""Tests of client.quarc: when coresets are chosen, and what is trained between."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from client import quarc
from client.coreset import Coreset
from client.quarc import QuarcResult, calibrate_steps, train_on_coresets
from client.task import TrainingTask
from common.config import Config, CoresetConfig, ModelConfig, QuantizationConfig, TrainingConfig
from common.data.datasets import Dataset, ImageSet
from common.models import create_model
from common.qat import activation_quantizers, prepare
from tests.unit.datasets import dataset_of


def tiny_set(num_images: int = 24) -> tuple[ImageSet, Dataset]:
    """Noise of 8 x 8 pixels in three classes."""
    noise = torch.Generator().manual_seed(0)
    images = ImageSet(
        images=torch.randint(0, 256, (num_images, 1, 8, 8), dtype=torch.uint8, generator=noise),
        labels=torch.arange(num_images) % 3,
        class_names=("a", "b", "c"),
    )
    return images, dataset_of(images, mean=0.5, std=0.3, crop_padding=1)


def task(first_epoch: int, num_epochs: int, total_epochs: int) -> TrainingTask:
    return TrainingTask(
        num_epochs=num_epochs,
        batch_size=4,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        step_learning_rate_scale=0.1,
        schedule="cosine",
        loss="kd",
        correction="none",
        beta=0.0,
        beta_schedule="constant",
        augment=False,
        first_epoch=first_epoch,
        total_epochs=total_epochs,
    )


def run(
    config: CoresetConfig,
    epochs: TrainingTask,
    coreset: Coreset | None = None,
    asked: list[Tensor | None] | None = None,
    progress: list[float] | None = None,
) -> tuple[QuarcResult, list[int]]:
    """The result, and the epochs at which coresets were chosen."""
    images, dataset = tiny_set()
    teacher = create_model("resnet8", num_classes=3, in_channels=1).eval().requires_grad_(False)
    student = prepare(teacher, QuantizationConfig()).requires_grad_(True)
    epochs_of_choice: list[int] = []

    def teacher_outputs(candidates: Tensor | None) -> Tensor:
        if asked is not None:
            asked.append(candidates)
        return torch.full((len(images) if candidates is None else len(candidates), 3), 1 / 3)

    result = train_on_coresets(
        config,
        epochs,
        images,
        dataset,
        student=student,
        teacher=teacher,
        teacher_outputs=teacher_outputs,
        coreset=coreset,
        generator=torch.Generator().manual_seed(1),
        selection_generator=lambda epoch: torch.Generator().manual_seed(epoch),
        on_coreset=lambda chosen: epochs_of_choice.append(chosen.epoch),
        on_progress=None if progress is None else progress.append,
    )
    return result, epochs_of_choice


def test_a_coreset_is_chosen_every_interval() -> None:
    """Interval 2 over epochs 0-4: at 0, 2 and 4. Half of 24 images in steps of 4 for 5 epochs: 15
    steps and 60 images."""
    progress: list[float] = []
    config = CoresetConfig(selection="random", fraction=0.5, interval=2)
    result, epochs = run(config, task(0, 5, 5), progress=progress)
    assert epochs == [0, 2, 4]
    assert result.num_selections == 3
    assert result.coreset.epoch == 4
    assert (result.training.num_steps, result.training.num_seen) == (15, 60)
    assert progress == pytest.approx([step / 15 for step in range(15)])


def test_a_coreset_outlives_a_round() -> None:
    """Chosen after 4 epochs with interval 3: epochs 5 and 6 still use it, 7 does not."""
    earlier = Coreset(indices=torch.arange(8), epoch=4)
    config = CoresetConfig(selection="random", fraction=0.5, interval=3)
    result, epochs = run(config, task(5, 3, 20), earlier)
    assert epochs == [7]
    # 2 epochs of 8 images, one of 12
    assert result.training.num_seen == 28


def test_a_coreset_of_a_later_epoch_gives_way() -> None:
    """Asked twice with one model, as happens in asynchronous training, a device begins at epoch 3
    once more, with the coreset of epoch 5: it is not to last for all three epochs."""
    earlier = Coreset(indices=torch.arange(12), epoch=5)
    config = CoresetConfig(selection="random", fraction=0.5, interval=1)
    _, epochs = run(config, task(3, 3, 9), earlier)
    assert epochs == [3, 4, 5]


@pytest.mark.parametrize(
    ("size", "adaptive", "expected"), [(14, True, []), (15, True, [5]), (15, False, [])]
)
def test_a_coreset_that_its_device_has_no_time_for_gives_way(
    size: int, adaptive: bool, expected: list[int]
) -> None:
    """Half of 24 images are what there is time for: 12, and up to 14.4 are left alone. Chosen after
    4 epochs with interval 50, a larger one ends with the next round."""
    earlier = Coreset(indices=torch.arange(size), epoch=4)
    config = CoresetConfig(selection="random", fraction=0.5, interval=50, adaptive=adaptive)
    result, epochs = run(config, task(5, 2, 20), earlier)
    assert epochs == expected
    assert result.training.num_seen == 2 * (12 if expected else size)


def test_random_epochs_come_first() -> None:
    """Three random epochs, interval 2: random at 0 and 2, scored at 3 and 5. Only the scored ones
    ask models: the student about 24 images each, the teacher, whose outputs are kept, once."""
    asked: list[Tensor | None] = []
    config = CoresetConfig(selection="res", fraction=0.5, interval=2, random_epochs=3)
    result, epochs = run(config, task(0, 6, 6), asked=asked)
    assert epochs == [0, 2, 3, 5]
    assert asked == [None, None]
    assert (result.num_scored, result.num_teacher_scored) == (48, 24)


def test_random_epochs_are_those_of_the_whole_training() -> None:
    """A device that is first asked after 4 epochs meets a trained model: it scores at once."""
    config = CoresetConfig(selection="res", fraction=0.5, interval=2, random_epochs=3)
    result, epochs = run(config, task(4, 2, 6))
    assert epochs == [4]
    assert result.num_teacher_scored == 24


def test_a_random_coreset_of_an_earlier_round_gives_way() -> None:
    """Chosen at 2 with interval 9: it ends at epoch 3, with the random epochs."""
    earlier = Coreset(indices=torch.arange(12), epoch=2)
    config = CoresetConfig(selection="res", fraction=0.5, interval=9, random_epochs=3)
    result, epochs = run(config, task(2, 2, 6), earlier)
    assert epochs == [3]
    assert (result.num_scored, result.num_teacher_scored) == (24, 24)


def test_random_epochs_do_nothing_to_random_coresets() -> None:
    config = CoresetConfig(selection="random", fraction=0.5, interval=2, random_epochs=3)
    _, epochs = run(config, task(0, 6, 6))
    assert epochs == [0, 2, 4]


def test_time_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two selections of 3 s each, two epochs of 5 s each; all threads together take twice that."""
    clock = SimpleNamespace(seconds=0.0)
    clock.perf_counter = lambda: clock.seconds
    clock.process_time = lambda: 2 * clock.seconds
    monkeypatch.setattr("client.quarc.time", clock)

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            clock.seconds += seconds
            return function(*arguments, **options)

        return call

    monkeypatch.setattr("client.quarc.choose_coreset", taking(3.0, quarc.choose_coreset))
    monkeypatch.setattr("client.quarc.train", taking(5.0, quarc.train))
    result, _ = run(CoresetConfig(selection="res", fraction=0.5, interval=1), task(0, 2, 2))
    assert (result.select_seconds, result.train_seconds) == (6.0, 10.0)
    assert (result.select_cpu_seconds, result.train_cpu_seconds) == (12.0, 20.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CoresetConfig(selection="res", fraction=0.25), [None]),
        (CoresetConfig(selection="evs", fraction=0.25), []),
        # A quarter of 8 images of each class is 2, twice that 4: 12 in all.
        (CoresetConfig(selection="res", fraction=0.25, pool=2.0), [12]),
    ],
)
def test_the_teacher_is_asked_for_what_is_scored(
    config: CoresetConfig, expected: Iterable[int | None]
) -> None:
    asked: list[Tensor | None] = []
    result, _ = run(config, task(0, 1, 1), asked=asked)
    assert [None if indices is None else len(indices) for indices in asked] == expected
    if asked and asked[0] is not None:
        assert set(result.coreset.indices.tolist()) <= set(asked[0].tolist())


def test_a_pool_of_all_images_is_scored_by_the_teacher_once() -> None:
    """Four times 2 of 8 images are all of every class, 24, in each of two selections."""
    config = CoresetConfig(selection="res", fraction=0.25, pool=4.0, interval=1)
    asked: list[Tensor | None] = []
    result, _ = run(config, task(0, 2, 2), asked=asked)
    assert asked == [None, None]
    assert (result.num_scored, result.num_teacher_scored) == (48, 24)


def test_calibration_sets_the_activation_steps() -> None:
    """Steps wait at 1; weight-only models have none to set and stay as they are."""
    images, dataset = tiny_set()
    config = Config(
        model=ModelConfig(name="resnet8"),
        quantization=QuantizationConfig(activation_bits=4, calibration_batches=2),
        training=TrainingConfig(batch_size=8),
    )
    model = prepare(create_model("resnet8", num_classes=3, in_channels=1), config.quantization)
    calibrate_steps(model, config, images, dataset, torch.Generator().manual_seed(0))
    steps = [quantizer.step.item() for _, quantizer in activation_quantizers(model)]
    assert steps
    assert all(0 < step != 1 for step in steps)


def test_smoothed_scores_go_from_selection_to_selection() -> None:
    """Without a step between them (a learning rate of 0) student and scores stay: the second
    average, nine parts of the kept score 2 and one of the own score s, is 1.8 + 0.1 s."""
    config = CoresetConfig(selection="res", fraction=0.5, interval=1, smoothing=0.9)
    still = replace(task(0, 1, 2), learning_rate=0.0)
    own = run(config, still)[0].coreset.scores
    earlier = Coreset(indices=torch.arange(12), epoch=-1, scores=torch.full((24,), 2.0))
    averaged = run(config, still, earlier)[0].coreset.scores
    assert own is not None
    assert averaged is not None
    torch.testing.assert_close(averaged, 1.8 + 0.1 * own)


def test_weights_reach_the_loss() -> None:
    """The same coresets with and without weights: the loss of the weighted one is another."""
    results = [
        run(
            CoresetConfig(selection="res-sampled", fraction=0.5, importance_weights=weighted),
            replace(task(0, 1, 1), learning_rate=0.0),
        )[0]
        for weighted in (False, True)
    ]
    assert results[0].coreset.indices.tolist() == results[1].coreset.indices.tolist()
    assert results[0].training.loss_sum != results[1].training.loss_sum


def test_training_leaves_the_scores_that_the_next_draw_goes_by() -> None:
    """One epoch on 12 of 24 images: these have scores, which are the RES of their passes."""
    config = CoresetConfig(selection="res-online", fraction=0.5, interval=1)
    first, _ = run(config, task(0, 1, 2))
    assert first.coreset.scores is not None
    known = ~first.coreset.scores.isnan()
    assert known.nonzero().squeeze(1).tolist() == first.coreset.indices.tolist()
    assert (first.coreset.scores[known] > 0).all()
    assert (first.num_scored, first.num_teacher_scored) == (0, 0)
    second, _ = run(config, task(1, 1, 2), coreset=first.coreset)
    assert second.coreset.scores is not None
    seen_again = ~second.coreset.scores.isnan()
    assert set(seen_again.nonzero().squeeze(1).tolist()) == {
        *first.coreset.indices.tolist(),
        *second.coreset.indices.tolist(),
    }
