"""Tests of client.sampling, and of what client.selection makes of it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.coreset import Coreset, group_quotas, ranks_in_groups, top_of_groups
from client.sampling import SAMPLERS, Candidates, importance_weights, k_means
from client.selection import choose_coreset, draw_pool, note_scores
from common.config import Config, CoresetConfig, TrainingConfig
from common.data.datasets import Dataset, ImageSet
from common.errors import UserError
from tests.unit.datasets import dataset_of

ROOT_2 = math.sqrt(2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidates_of(
    scores: list[float], quota: int, *, num_groups: int = 1, **changes: Any
) -> Candidates:
    """Samples with these scores in every group, all the same to the teacher."""
    num_samples = num_groups * len(scores)
    fields = {
        "scores": torch.tensor(scores).repeat(num_groups),
        "groups": torch.arange(num_groups).repeat_interleave(len(scores)),
        "quotas": torch.full((num_groups,), quota),
        "p_teacher": torch.full((num_samples, 2), 0.5),
        "drop_hardest": 0.0,
        "hard_share": 0.0,
    }
    return Candidates(**{**fields, **changes})


def choose(
    name: str, scores: list[float], quota: int, *, seed: int = 0, **changes: Any
) -> set[int]:
    """The coreset of one group of samples."""
    candidates = candidates_of(scores, quota, **changes)
    priorities = SAMPLERS[name](candidates, generator(seed))
    return set(top_of_groups(priorities, candidates.groups, candidates.quotas).tolist())


def test_quotas_are_rounded_and_never_zero() -> None:
    """A tenth of 10, 26 and 3 images: 1, round(2.6) = 3, and 1 instead of round(0.3) = 0."""
    groups = torch.tensor([0] * 10 + [1] * 26 + [2] * 3)
    assert group_quotas(groups, 0.1).tolist() == [1, 3, 1]


def test_ranks_count_from_the_highest_score_of_each_group() -> None:
    """Group 0 has 3, 1, 2 at places 0, 2, 3: ranks 0, 2, 1; group 1 has 5, 5: a tie, by index."""
    scores = torch.tensor([3.0, 5.0, 1.0, 2.0, 5.0])
    assert ranks_in_groups(scores, torch.tensor([0, 1, 0, 0, 1])).tolist() == [0, 0, 2, 1, 1]


BULK_AND_TAIL = [0.00, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.5, 1.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lowest", [0.0, 1.0])
def test_stratified_takes_one_of_every_stratum(lowest: float, seed: int) -> None:
    """Two strata of width 0.5 from the lowest score on: samples 0-7, and 8 (at 0.5) with 9."""
    chosen = choose("stratified", [lowest + score for score in BULK_AND_TAIL], 2, seed=seed)
    assert len(chosen & {8, 9}) == 1
    assert len(chosen) == 2


@pytest.mark.parametrize("seed", range(5))
def test_stratified_drops_the_hardest_and_gives_what_is_missing_to_the_bulk(seed: int) -> None:
    """Without sample 9 the range is 0 ... 0.5: four strata of 0.125, of which the first holds 0-7,
    the last 8 alone, the others nothing: 8, and three of the bulk."""
    chosen = choose("stratified", BULK_AND_TAIL, 4, seed=seed, drop_hardest=0.1)
    assert len(chosen) == 4
    assert 8 in chosen
    assert 9 not in chosen


@pytest.mark.parametrize("name", ["stratified", "quantiles", "res-clustered"])
def test_the_hardest_are_taken_when_nothing_else_is_left(name: str) -> None:
    """Five of ten are dropped; six are asked for: the other five and one of the dropped."""
    chosen = choose(name, [float(score) for score in range(10)], 6, drop_hardest=0.5)
    assert len(chosen) == 6
    assert chosen > {0, 1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_takes_one_of_each(seed: int) -> None:
    """Ten samples in order of score, 9 dropped: three quantiles 6-8, 3-5 and 0-2."""
    scores = [float(score) for score in range(10)]
    chosen = choose("quantiles", scores, 3, seed=seed, drop_hardest=0.1)
    assert sorted(index // 3 for index in chosen) == [0, 1, 2]


def test_quantiles_differ_between_seeds() -> None:
    scores = [float(score) for score in range(100)]
    assert choose("quantiles", scores, 10, seed=0) != choose("quantiles", scores, 10, seed=1)


def test_sampled_is_proportional_to_score_and_floor() -> None:
    """Scores 3 and 1: mean 2, floor 0.2, so 3.2 / 4.4 = 0.727 of 4,000 pairs choose the first; the
    standard deviation of that share is sqrt(0.727 x 0.273 / 4000) = 0.007."""
    pairs = 4000
    candidates = candidates_of([3.0, 1.0], 1, num_groups=pairs)
    priorities = SAMPLERS["res-sampled"](candidates, generator())
    chosen = top_of_groups(priorities, candidates.groups, candidates.quotas)
    assert len(chosen) == pairs
    assert (chosen % 2 == 0).double().mean().item() == pytest.approx(3.2 / 4.4, abs=0.03)


def test_sampled_works_where_student_and_teacher_agree_entirely() -> None:
    """All scores 0: all weights equal, three of six are taken."""
    assert len(choose("res-sampled", [0.0] * 6, 3)) == 3


def test_mixed_takes_its_share_by_score_and_the_rest_at_random() -> None:
    """Half of four by score: 9 and 8 always; the other two come from 0-7 and vary."""
    scores = [float(score) for score in range(10)]
    draws = [choose("res-mixed", scores, 4, seed=seed, hard_share=0.5) for seed in range(10)]
    assert all(chosen >= {8, 9} and len(chosen) == 4 for chosen in draws)
    assert set().union(*draws) == set(range(10))


def test_mixed_with_a_share_of_one_is_hardest_first() -> None:
    scores = [float(score) for score in range(10)]
    assert choose("res-mixed", scores, 4, hard_share=1.0) == {6, 7, 8, 9}


@pytest.mark.parametrize(("hard_share", "num_hard"), [(0.0, 4), (0.8, 8)])
def test_mixed_takes_the_share_that_is_configured(hard_share: float, num_hard: int) -> None:
    """Ten of 50 images; 0 stands for sqrt(0.2) = 0.447 of them. Only these, the brightest, are in
    all of twenty draws."""
    images, dataset = brightness_set((50, 0))
    draws = [
        choose_coreset(
            CoresetConfig(selection="res-mixed", fraction=0.2, hard_share=hard_share),
            images,
            dataset,
            student=Brightness(),
            teacher_outputs=torch.full((50, 2), 0.5),
            epoch=0,
            num_epochs=1,
            generator=generator(seed),
        ).indices.tolist()
        for seed in range(20)
    ]
    assert set(range(50)).intersection(*draws) == set(range(50 - num_hard, 50))


TWO_KINDS = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5)


@pytest.mark.parametrize(
    ("quota", "drop_hardest", "expected"),
    [(2, 0.0, {4, 9}), (4, 0.0, {3, 4, 8, 9}), (2, 0.2, {4, 7})],
)
def test_clustered_takes_the_hardest_of_each_cluster(
    quota: int, drop_hardest: float, expected: set[int]
) -> None:
    """Outputs of two kinds, 0-4 and 5-9, scores by index. Without the hardest fifth (8 and 9) the
    second kind's hardest is 7."""
    scores = [float(score) for score in range(10)]
    for seed in range(5):
        assert expected == choose(
            "res-clustered",
            scores,
            quota,
            seed=seed,
            drop_hardest=drop_hardest,
            p_teacher=TWO_KINDS,
        )


def test_k_means_finds_two_far_groups() -> None:
    """Points at 0, 1 and at 100, 101: whatever the first centres, two iterations part them."""
    points = torch.tensor([[0.0], [1.0], [100.0], [101.0]])
    for seed in range(10):
        clusters = k_means(points, 2, generator(seed)).tolist()
        assert clusters[0] == clusters[1] != clusters[2] == clusters[3]


class Brightness(nn.Module):
    """Logits (pixel, 0): the brighter an image, the further the output from an even one."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([inputs[:, 0, 0, 0], torch.zeros(len(inputs))], 1)


def brightness_set(num_images: tuple[int, int]) -> tuple[ImageSet, Dataset]:
    """Images of one pixel, brighter by index."""
    labels = torch.tensor([0] * num_images[0] + [1] * num_images[1])
    pixels = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    images = ImageSet(images=pixels, labels=labels, class_names=("a", "b"))
    return images, dataset_of(images)


def coreset_of(
    config: CoresetConfig, num_images: tuple[int, int], *, seed: int = 0, **changes: Any
) -> Coreset:
    """Of a brightness set, by a student that sees brightness and a teacher that sees nothing."""
    images, dataset = brightness_set(num_images)
    arguments: dict[str, Any] = {
        "student": Brightness(),
        "teacher_outputs": torch.full((len(images), 2), 0.5),
        "epoch": 0,
        "num_epochs": 1,
        "generator": generator(seed),
    }
    return choose_coreset(config, images, dataset, **{**arguments, **changes})


def test_a_pool_is_a_multiple_of_the_coreset_in_every_class() -> None:
    """A tenth of 100 and 20 images: 10 and 2; three times that: 30 and 6."""
    images, _ = brightness_set((100, 20))
    config = CoresetConfig(selection="res", fraction=0.1, pool=3.0)
    pool = draw_pool(config, images.labels, generator())
    assert pool is not None
    assert images.labels[pool].bincount().tolist() == [30, 6]
    assert pool.tolist() == sorted(set(pool.tolist()))
    other = draw_pool(config, images.labels, generator(1))
    assert other is not None
    assert other.tolist() != pool.tolist()


def test_a_pool_by_its_share_of_the_time() -> None:
    """A tenth of the time between two selections 18 epochs apart pays for 4 coresets: 40 and 8."""
    images, _ = brightness_set((100, 20))
    config = CoresetConfig(selection="res", fraction=0.1, pool_share=0.1, interval=18)
    pool = draw_pool(config, images.labels, generator())
    assert pool is not None
    assert images.labels[pool].bincount().tolist() == [40, 8]


@pytest.mark.parametrize(
    "config",
    [
        CoresetConfig(selection="res", fraction=0.1),
        CoresetConfig(selection="res", fraction=0.5, pool=2.0),
        CoresetConfig(selection="random", fraction=0.1, pool=2.0),
        CoresetConfig(selection="full", pool=2.0),
    ],
)
def test_there_is_no_pool_where_it_would_be_all_or_serves_nothing(config: CoresetConfig) -> None:
    images, _ = brightness_set((100, 20))
    assert draw_pool(config, images.labels, generator()) is None


def test_a_pool_below_the_coreset_is_refused() -> None:
    with pytest.raises(UserError, match=r"coreset\.pool = 0\.5: expected 0 .* or at least 1"):
        Config(coreset=CoresetConfig(pool=0.5))


def test_the_coreset_of_a_pool_is_its_best_in_the_size_for_all_images() -> None:
    """RES against an even teacher grows with brightness, so by index: the last ten of the pool's
    first class and the last two of its second, though the pool has but 30 and 6."""
    images, _ = brightness_set((100, 20))
    config = CoresetConfig(selection="res", fraction=0.1, pool=3.0)
    pool = draw_pool(config, images.labels, generator())
    assert pool is not None
    outputs = torch.full((36, 2), 0.5)
    coreset = coreset_of(config, (100, 20), teacher_outputs=outputs, epoch=3, candidates=pool)
    assert coreset.indices.tolist() == pool[20:30].tolist() + pool[34:].tolist()
    assert coreset.epoch == 3


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("balanced", [True, False])
def test_every_selection_keeps_its_size(name: str, balanced: bool) -> None:
    """A fifth of 40 and 10 images: 8 and 2, or 10 of all; the same generator, the same choice."""
    images, _ = brightness_set((40, 10))
    config = CoresetConfig(selection=name, fraction=0.2, balanced=balanced)
    chosen = [coreset_of(config, (40, 10), seed=4).indices for _ in range(2)]
    assert chosen[0].tolist() == chosen[1].tolist() == sorted(set(chosen[0].tolist()))
    assert len(chosen[0]) == 10
    if balanced:
        assert images.labels[chosen[0]].bincount().tolist() == [8, 2]


def test_el2n_asks_the_teacher_alone() -> None:
    """EL2N of an output p for label y is |p - y|: of (0.9, 0.1), (0.2, 0.8), (0.6, 0.4) with label
    0, the second is furthest and the third comes next."""

    class Unused(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise AssertionError("the student was asked")

    coreset = coreset_of(
        CoresetConfig(selection="el2n", fraction=0.34),
        (3, 0),
        student=Unused(),
        teacher_outputs=torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]),
    )
    assert coreset.indices.tolist() == [1, 2]


class TestImportanceWeights:
    def weigh(
        self, scores: list[float], priorities: list[float], quota: int
    ) -> tuple[list[int], list[float]]:
        candidates = candidates_of(scores, quota)
        places = torch.tensor(priorities, dtype=torch.float64)
        chosen = top_of_groups(places, candidates.groups, candidates.quotas)
        return chosen.tolist(), importance_weights(candidates, places, chosen).tolist()

    def test_are_the_inverse_of_the_chances(self) -> None:
        """Scores 3, 1, 2 have the mean 2 and so the odds 3.2, 1.2, 2.2. With exp(kappa) =
        3.2 / ln 2 the first's chance is 1 - exp(-ln 2) = 1/2, the second's 1 - 2^(-3/8)."""
        kappa = math.log(3.2 / math.log(2))
        chosen, weights = self.weigh([3.0, 1.0, 2.0], [kappa + 2, kappa + 1, kappa], 2)
        inverse = [2.0, 1 / (1 - 2 ** (-3 / 8))]
        assert chosen == [0, 1]
        assert weights == pytest.approx([2 * value / sum(inverse) for value in inverse])

    def test_are_even_where_all_are_taken(self) -> None:
        _, weights = self.weigh([3.0, 1.0, 2.0], [0.0, 1.0, 2.0], 3)
        assert weights == [1.0, 1.0, 1.0]

    def test_are_clipped(self) -> None:
        """19 scores of 1.9 and one of 0, mean 1.805: odds 2.0805 and 0.1805. A kappa of 20 makes
        chances those odds over e^20: the rare one's weight is 11.5 times another's, 11.5 x 20 /
        30.5 = 7.6 of the mean and clipped to 5. The others have 20 / 30.5 = 0.655 then, all
        together 19 x 0.655 + 5 = 17.4."""
        rare = 2.0805 / 0.1805
        others = 20 / (19 + rare)
        mean = (19 * others + 5) / 20
        scores, priorities = [1.9] * 19 + [0.0, 0.0], [21.0] * 20 + [20.0]
        scores[-1] = 1.805  # the one that is left out, of the mean score
        chosen, weights = self.weigh(scores, priorities, 20)
        assert chosen == list(range(20))
        assert weights == pytest.approx([others / mean] * 19 + [5 / mean], rel=1e-5)

    def test_undo_the_preference(self) -> None:
        """Half of every 40 samples have the score 3, half 1. Of the 4 drawn about 3.2 / 4.4 = 0.727
        have the higher one (above), of the weights half: a sample's weight has the mean 1 over
        draws. 1,000 groups: a standard deviation of less than 0.01 for either."""
        candidates = candidates_of([3.0, 1.0] * 20, 4, num_groups=1000)
        priorities = SAMPLERS["res-sampled"](candidates, generator())
        chosen = top_of_groups(priorities, candidates.groups, candidates.quotas)
        weights = importance_weights(candidates, priorities, chosen)
        is_high = chosen % 2 == 0
        assert is_high.double().mean().item() == pytest.approx(3.2 / 4.4, abs=0.04)
        assert (weights[is_high].sum() / weights.sum()).item() == pytest.approx(0.5, abs=0.02)

    def test_come_with_the_coreset(self) -> None:
        coresets = [
            coreset_of(
                CoresetConfig(selection="res-sampled", fraction=0.2, importance_weights=weighted),
                (40, 10),
                seed=4,
            )
            for weighted in (True, False)
        ]
        assert coresets[0].indices.tolist() == coresets[1].indices.tolist()
        assert coresets[1].weights is None
        assert coresets[0].weights is not None
        assert coresets[0].weights.mean().item() == pytest.approx(1.0)
        # RES grows with brightness: the darkest of a class stands for more than its brightest.
        assert coresets[0].weights[0] > coresets[0].weights[7]

    def test_are_refused_for_other_selections(self) -> None:
        with pytest.raises(
            UserError, match=r"importance-weights = true: expected .*'res-online', not 'quarc'"
        ):
            Config(coreset=CoresetConfig(selection="quarc", importance_weights=True))


class TestOnline:
    NOT_KNOWN = math.nan

    def choose(self, scores: list[float] | None, seed: int, **changes: bool) -> Coreset:
        """Three of twelve images of one class."""
        previous = None
        if scores is not None:
            previous = Coreset(indices=torch.zeros(1).long(), epoch=0, scores=torch.tensor(scores))
        config = CoresetConfig(selection="res-online", fraction=0.25, balanced=False, **changes)
        return coreset_of(config, (12, 0), seed=seed, teacher_outputs=None, previous=previous)

    def test_the_first_is_random(self) -> None:
        """Chances are even: 200 draws of 3 from 12 take each image 50 times, give or take 6."""
        counts = torch.zeros(12)
        for seed in range(200):
            coreset = self.choose(None, seed)
            counts[coreset.indices] += 1
            assert coreset.scores is not None
            assert coreset.scores.isnan().all()
        assert (counts - 50).abs().max() < 25

    def test_chances_follow_the_scores_and_their_mean_where_there_are_none(self) -> None:
        """Known are 0 of images 0-3 and 2 of 4-7, the mean 1 stands for 8-11. Over 300 draws the
        three kinds are taken in this order, the first hardly ever (a tenth of the mean)."""
        scores = [0.0] * 4 + [2.0] * 4 + [self.NOT_KNOWN] * 4
        kinds = torch.zeros(3)
        for seed in range(300):
            coreset = self.choose(scores, seed)
            kinds += (coreset.indices // 4).bincount(minlength=3)
            assert coreset.scores is not None
            assert coreset.scores.isnan().sum() == 4
        assert kinds[0] < 120 < kinds[2] < kinds[1]

    def test_weights_undo_the_chances(self) -> None:
        coreset = self.choose([0.1] * 6 + [1.0] * 6, 0, importance_weights=True)
        assert coreset.weights is not None
        assert coreset.weights.mean().item() == pytest.approx(1.0)
        easy = coreset.indices < 6
        if easy.any() and not easy.all():
            assert coreset.weights[easy].min() > coreset.weights[~easy].max()

    def test_scores_of_a_pass_are_noted(self) -> None:
        """KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3; of equals: 0.

        Smoothed with a half: image 3, known as 1, becomes the mean; image 1 had no score.
        """
        divergence = 0.5 * math.log(4 / 3)
        logits = torch.zeros(2, 2)
        teacher_logits = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log()
        for smoothing, expected in ((0.0, 0.0), (0.5, 0.5)):
            scores = torch.tensor([9.0, self.NOT_KNOWN, 9.0, 1.0])
            note_scores(scores, smoothing, torch.tensor([1, 3]), logits, teacher_logits)
            assert scores.tolist() == pytest.approx([9.0, divergence, 9.0, expected], abs=1e-6)

    def test_needs_a_teacher(self) -> None:
        coreset = CoresetConfig(selection="res-online")
        with pytest.raises(UserError, match=r"selection = 'res-online': expected .*loss = 'kd'"):
            Config(coreset=coreset, training=TrainingConfig(loss="ce"))
        Config(coreset=coreset, training=TrainingConfig(loss="ce", correction="mse"))


class TestSmoothing:
    def choose(
        self, previous: Coreset | None, pool: Tensor | None = None, smoothing: float = 0.75
    ) -> Coreset:
        """Half of four images, of one class, with the errors |p - y| = sqrt(2) (1 - p_y) of a
        teacher that gives their class 1, 0.5, 0.5 and 0."""
        right = torch.tensor([1.0, 0.5, 0.5, 0.0])
        outputs = torch.stack([right, 1 - right], 1)
        return coreset_of(
            CoresetConfig(selection="el2n", fraction=0.5, smoothing=smoothing),
            (4, 0),
            teacher_outputs=outputs if pool is None else outputs[pool],
            candidates=pool,
            previous=previous,
        )

    def earlier(self, scores: list[float]) -> Coreset:
        return Coreset(indices=torch.tensor([0, 1]), epoch=0, scores=torch.tensor(scores))

    @pytest.mark.parametrize("previous", [None, Coreset(indices=torch.tensor([0, 1]), epoch=0)])
    def test_the_first_scores_stand_alone(self, previous: Coreset | None) -> None:
        """Also behind a coreset that was drawn at random (coreset.random-epochs)."""
        coreset = self.choose(previous)
        assert coreset.scores is not None
        assert coreset.scores.tolist() == pytest.approx([0, ROOT_2 / 2, ROOT_2 / 2, ROOT_2])
        assert coreset.indices.tolist() == [1, 3]

    def test_earlier_scores_weigh(self) -> None:
        """3/4 of 8, 4, 0 and 0, and 1/4 of 0, 0.71, 0.71 and 1.41: the first two are highest, and
        the previous scores are left as they were."""
        previous = self.earlier([8.0, 4.0, 0.0, 0.0])
        coreset = self.choose(previous)
        assert coreset.scores is not None
        assert coreset.scores.tolist() == pytest.approx([6, 3 + ROOT_2 / 8, ROOT_2 / 8, ROOT_2 / 4])
        assert coreset.indices.tolist() == [0, 1]
        assert previous.scores is not None
        assert previous.scores.tolist() == [8, 4, 0, 0]

    def test_of_a_pool_only_what_is_scored_changes(self) -> None:
        """Images 1, 2 and 3 are scored; 2 for the first time. Half of four are two: 1, with 3/4 of
        4 and 1/4 of 0.71, and 2, with 0.71 against 0.35 of image 3."""
        coreset = self.choose(self.earlier([8.0, 4.0, math.nan, 0.0]), torch.tensor([1, 2, 3]))
        assert coreset.scores is not None
        assert coreset.scores.tolist() == pytest.approx([8, 3 + ROOT_2 / 8, ROOT_2 / 2, ROOT_2 / 4])
        assert coreset.indices.tolist() == [1, 2]

    def test_without_it_no_scores_are_kept(self) -> None:
        coreset = self.choose(self.earlier([8.0, 4.0, 0.0, 0.0]), smoothing=0.0)
        assert coreset.scores is None
        assert coreset.indices.tolist() == [1, 3]
