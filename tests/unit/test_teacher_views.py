"""Tests of client.teacher_views: what is kept of a teacher, and what a training makes of it."""

import pytest
import torch
from torch import Tensor, nn

import client.teacher_views as module
from client.coreset import Coreset
from client.task import TrainingTask
from client.teacher_views import TeacherView, TeacherViews
from client.trainer import train
from common.config import Config, CoresetConfig, TrainingConfig
from common.data.augmentation import Crops, augment_batch
from common.data.datasets import Dataset, ImageSet
from common.errors import UserError
from tests.unit.datasets import dataset_of

NUM_IMAGES = 6


def make_images() -> tuple[ImageSet, Dataset]:
    """Images of 2 x 2 pixels: 1, 2 over 3, 4 and 40 more of each by index; shown as they are."""
    pixels = torch.tensor([[1, 2], [3, 4]])[None, None]
    shift = 40 * torch.arange(NUM_IMAGES)[:, None, None, None]
    images = ImageSet(
        images=(pixels + shift).to(torch.uint8),
        labels=torch.arange(NUM_IMAGES) % 2,
        class_names=("a", "b"),
    )
    return images, dataset_of(images, std=1 / 255, crop_padding=1, flip=True)


IMAGES, DATASET = make_images()
CORESET = Coreset(indices=torch.tensor([1, 2, 4, 5]), epoch=3)


class Teacher(nn.Module):
    """Logits: the first pixel, and the second."""

    num_seen = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_seen += len(inputs)
        return inputs[:, 0, 0]


def make_views(num_views: int, kept: dict[int, Tensor] | None = None) -> TeacherViews:
    return TeacherViews(
        num_views, lambda epoch, view: torch.Generator().manual_seed(10 * epoch + view), kept
    )


def inputs(view: TeacherView, chosen: Tensor) -> Tensor:
    unused = torch.Generator()
    return augment_batch(IMAGES.images, chosen, DATASET, generator=unused, crops=view.crops(chosen))


def run(views: TeacherViews, teacher: nn.Module, epochs: range, *, augment: bool = True) -> int:
    """Train a linear student, one view an epoch; how many of the teacher's outputs were kept."""
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(student[1].weight)  # type: ignore[arg-type]
    num_kept = 0
    for epoch in epochs:
        task = TrainingTask(
            num_epochs=1,
            batch_size=3,
            learning_rate=1e-6,
            momentum=0.0,
            weight_decay=0.0,
            step_learning_rate_scale=1.0,
            schedule="constant",
            loss="kd",
            correction="none",
            beta=0.0,
            beta_schedule="constant",
            augment=augment,
            first_epoch=epoch,
            total_epochs=100,
        )
        view = views.at(CORESET, epoch, DATASET, augment=augment)
        generator = torch.Generator().manual_seed(epoch)
        num_kept += train(
            student, teacher, DATASET, IMAGES, CORESET.indices, task, generator, view=view
        ).num_kept
    return num_kept


class TestView:
    CROPS = Crops(
        top=torch.tensor([1, 0, 1, 1]),
        left=torch.tensor([1, 1, 0, 1]),
        mirrored=torch.tensor([False, False, False, True]),
    )

    def test_kept_logits_are_the_teachers_on_that_very_view(self) -> None:
        """Image 4 is 161, 162 over 163, 164; padded by one and cut from the left: 0, 161 first.
        Image 1, 41, 42 over 43, 44, is not moved: 41, 42. Image 2, 81, 82 over 83, 84, cut from
        the top: black. Image 5, 201, 202 over 203, 204, mirrored: 202, 201."""
        view = TeacherView(CORESET, self.CROPS, None)
        expected = {4: [0.0, 161.0], 1: [41.0, 42.0], 2: [0.0, 0.0], 5: [202.0, 201.0]}
        for chosen in ([4, 1], [2, 5]):
            batch = torch.tensor(chosen)
            first, is_kept = view.teacher_logits(
                batch,
                lambda batch=batch: Teacher()(inputs(view, batch)),  # type: ignore[misc]
            )
            assert not is_kept
            torch.testing.assert_close(first, torch.tensor([expected[index] for index in chosen]))
        order = [5, 4, 2, 1]

        def refuse() -> Tensor:
            raise AssertionError("the teacher was asked again")

        kept, is_kept = view.teacher_logits(torch.tensor(order), refuse)
        assert is_kept
        torch.testing.assert_close(kept, torch.tensor([expected[index] for index in order]))

    def test_a_batch_with_an_unknown_image_is_computed(self) -> None:
        view = TeacherView(CORESET, None, None)
        ones = torch.ones(2, 2)
        view.teacher_logits(torch.tensor([1, 2]), lambda: ones)
        _, is_kept = view.teacher_logits(torch.tensor([2, 4]), lambda: 2 * ones)
        assert not is_kept

    def test_logits_of_a_pass_in_bfloat16_are_kept(self) -> None:
        """Autocast's linear layers give bfloat16; 1.5 and -3 are exact in it."""
        view = TeacherView(CORESET, None, None)
        logits = torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16)
        computed, _ = view.teacher_logits(torch.tensor([4]), lambda: logits)
        kept, is_kept = view.teacher_logits(torch.tensor([4]), lambda: 0 * logits)
        assert is_kept
        assert computed.tolist() == kept.tolist() == [[1.5, -3.0]]

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """3 views of 4 images and 2 classes of 4 bytes are 96."""
        compute = lambda: torch.ones(2, 2)  # noqa: E731
        monkeypatch.setattr(module, "MAX_KEPT_BYTES", 96)
        TeacherView(CORESET, None, None, 3).teacher_logits(torch.tensor([1, 2]), compute)
        monkeypatch.setattr(module, "MAX_KEPT_BYTES", 95)
        view = TeacherView(CORESET, None, None, 3)
        with pytest.raises(UserError, match=r"teacher-views = 3: .* 4 images and 2 classes"):
            view.teacher_logits(torch.tensor([1, 2]), compute)


class TestTraining:
    def test_the_teacher_runs_once_for_each_view(self) -> None:
        """Four images for 7 epochs in 3 views: 12 outputs computed, 28 - 12 taken from before."""
        teacher = Teacher()
        assert run(make_views(3), teacher, range(3, 10)) == 16
        assert teacher.num_seen == 12

    def test_shows_the_view_of_which_outputs_are_kept(self) -> None:
        views, teacher = make_views(1), Teacher()
        run(views, teacher, range(3, 4))
        view = views.at(CORESET, 3, DATASET, augment=True)
        expected = teacher(inputs(view, CORESET.indices))
        torch.testing.assert_close(views.to_keep()[0], expected)

    def test_views_go_on_in_the_next_round(self) -> None:
        """Two epochs of three views, then four in another round: views 0, 1 | 2, 0, 1, 2. Only the
        third is new."""
        views, teacher = make_views(3), Teacher()
        run(views, teacher, range(3, 5))
        later = make_views(3, views.to_keep())
        assert sorted(views.to_keep()) == [0, 1]
        assert run(later, teacher, range(5, 9)) == 12
        assert teacher.num_seen == 12
        assert sorted(later.to_keep()) == [0, 1, 2]

    def test_without_augmentation_there_is_one(self) -> None:
        teacher = Teacher()
        assert run(make_views(3), teacher, range(3, 7), augment=False) == 12
        assert teacher.num_seen == 4


class TestViews:
    def test_come_in_turn(self) -> None:
        views = make_views(2)
        at = [views.at(CORESET, epoch, DATASET, augment=True) for epoch in (3, 4, 5, 6)]
        assert at[0] is at[2]
        assert at[1] is at[3]
        shown = [inputs(view, CORESET.indices) for view in at[:2]]
        assert not torch.equal(*shown)
        again = make_views(2).at(CORESET, 3, DATASET, augment=True)
        assert torch.equal(inputs(again, CORESET.indices), shown[0])

    def test_a_new_coreset_has_its_own(self) -> None:
        views = make_views(1)
        run(views, Teacher(), range(3, 4))
        views.forget()
        assert views.to_keep() == {}


@pytest.mark.parametrize("changes", [{"correction": "mse"}, {"loss": "ce"}])
def test_views_are_refused_where_more_than_logits_or_no_teacher_is_needed(
    changes: dict[str, str],
) -> None:
    with pytest.raises(UserError, match=r"training\.teacher-views = 4: expected 0 with"):
        Config(training=TrainingConfig(teacher_views=4, **changes))  # type: ignore[arg-type]
    unused = TrainingConfig(teacher_views=4, correction="mse", beta=0.0)
    coreset = CoresetConfig(interval=5)
    assert Config(training=unused, coreset=coreset).training.teacher_views == 4
