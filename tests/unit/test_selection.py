"""Tests of client.selection: what a device asks of its models, and what it makes of the answers.

Selections that are not simply the highest scores, and pools, are in test_coreset_strategies.
"""

import pytest
import torch
from torch import Tensor, nn

from client.coreset import MODEL_FREE
from client.selection import choose_coreset, needs_teacher_outputs
from common.config import SELECTIONS, CoresetConfig
from common.data.datasets import Dataset, ImageSet
from tests.unit.datasets import dataset_of

# Probabilities of three classes that the student gives to images 0 ... 5, and the teacher's.
SURE, UNSURE, EVEN = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5), (1 / 3, 1 / 3, 1 / 3)
STUDENT = torch.tensor([SURE, SURE, EVEN, SURE, UNSURE, EVEN])
TEACHER = torch.tensor([SURE, UNSURE, EVEN, EVEN, UNSURE, EVEN])
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


class Student(nn.Module):
    """Logits by an image's pixel, which is its index; refuses to be trained or shown more."""

    def forward(self, batch: Tensor) -> Tensor:
        assert not self.training
        indices = (batch[:, 0, 0, 0] * 255).round().long()
        return STUDENT[indices].log()


def images() -> tuple[ImageSet, Dataset]:
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None]
    image_set = ImageSet(images=pixels, labels=LABELS, class_names=("a", "b", "c"))
    return image_set, dataset_of(image_set, flip=True)


def choose(
    selection: str,
    *,
    teacher_outputs: Tensor | None = TEACHER,
    balanced: bool = True,
    epoch: int = 0,
    seed: int = 0,
) -> list[int]:
    """One third of six images: one of each of the two classes, or two of all."""
    coreset = choose_coreset(
        CoresetConfig(selection=selection, fraction=1 / 3, balanced=balanced),
        *images(),
        student=Student(),
        teacher_outputs=teacher_outputs,
        epoch=epoch,
        num_epochs=4,
        generator=torch.Generator().manual_seed(seed),
    )
    assert coreset.epoch == epoch
    return coreset.indices.tolist()


# Distances to a one-hot vector: SURE sqrt(3/8) = 0.61 to its class and sqrt(14)/4 = 0.94 to the
# second, UNSURE 0.94 to the first two, EVEN sqrt(2/3) = 0.82. SURE to UNSURE: sqrt(1/8) = 0.35; to
# EVEN: sqrt(1/24) = 0.20.
@pytest.mark.parametrize(
    ("selection", "epoch", "expected"),
    [
        # KL(student || teacher): 0, ln(2)/4, 0 | 1/2 ln 3/2 + 1/2 ln 3/4, 0, 0
        ("res", 0, [1, 3]),
        # |p - y|: for a 0.61, 0.61, 0.82 | for b 0.94, 0.94 (the first of the two), 0.82
        ("evs", 0, [2, 3]),
        # |p - p_T|: 0, 0.35, 0 | 0.20, 0, 0
        ("ds", 0, [1, 3]),
        # at the start |p - y|, at the end |p - p_T|
        ("acs", 0, [2, 3]),
        ("acs", 4, [1, 3]),
        # |p - y| + KL at the start: 0.61, 0.61 + 0.17, 0.82 | 0.94 + 0.06, 0.94, 0.82
        ("quarc", 0, [2, 3]),
        ("quarc", 4, [1, 3]),
        # the teacher's |p - y|: 0.61, 0.94, 0.82 | 0.82, 0.94, 0.82
        ("el2n", 0, [1, 4]),
        # entropy: thirds have the most
        ("entropy", 0, [2, 5]),
        ("full", 0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_highest_of_each_class(selection: str, epoch: int, expected: list[int]) -> None:
    assert choose(selection, epoch=epoch) == expected


def test_the_highest_of_all() -> None:
    """|p - y|: 0.94 for images 3 and 4, 0.82 for 2 and 5."""
    assert choose("evs", balanced=False) == [3, 4]


class TestRandom:
    def test_by_the_generator_alone(self) -> None:
        """100 seeds meet all 3 x 3 choices: the chance to miss one is 9 (8/9)^100 < 0.01 %."""
        assert choose("random", seed=1) == choose("random", seed=1)
        chosen = {tuple(choose("random", seed=seed)) for seed in range(100)}
        assert len(chosen) == 9

    def test_asks_no_model(self) -> None:
        for selection in MODEL_FREE:
            coreset = choose_coreset(
                CoresetConfig(selection=selection, fraction=0.5),
                *images(),
                student=nn.Identity(),
                teacher_outputs=None,
                epoch=0,
                num_epochs=1,
                generator=torch.Generator().manual_seed(0),
            )
            assert len(coreset.indices) == (6 if selection == "full" else 4)


class TestTeacherOutputs:
    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_are_needed_or_not(self, selection: str) -> None:
        if needs_teacher_outputs(selection):
            with pytest.raises(ValueError, match=f"selection '{selection}' needs the teacher"):
                choose(selection, teacher_outputs=None)
        else:
            assert choose(selection, teacher_outputs=None) == choose(selection)

    def test_scores_without_a_teacher_do(self) -> None:
        free = {name for name in SELECTIONS if not needs_teacher_outputs(name)}
        assert free == {"random", "full", "res-online", "evs", "entropy"}
