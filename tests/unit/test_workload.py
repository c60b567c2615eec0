"""Tests of simulations.emulation.workload."""

import pytest

from common.config import Config
from common.messages import Stage
from simulations.emulation.flops import ModelFlops
from simulations.emulation.workload import Workload

FLOPS = ModelFlops(
    float_forward=1.0, float_training=30.0, quantized_forward=100.0, quantized_training=5000.0
)


def workload(**settings: bool | float | str) -> Workload:
    keys = {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()}
    return Workload(config=Config.from_flat(keys), flops=FLOPS)


class TestReply:
    METRICS = {"num-seen": 10, "num-scored": 7, "num-teacher-scored": 3}  # noqa: RUF012

    def test_a_quantized_round(self) -> None:
        """10 x (5000 + 1, the teacher's pass) + 7 x 100 + 3 x 1."""
        done = workload().of_reply(Stage.QUANTIZED, self.METRICS, 50)
        assert done == 50_010 + 700 + 3

    def test_cross_entropy_needs_no_teacher(self) -> None:
        done = workload(training__loss="ce").of_reply(Stage.QUANTIZED, self.METRICS, 50)
        assert done == 50_000 + 700 + 3

    def test_outputs_of_the_teacher_that_were_kept_cost_nothing(self) -> None:
        """6 of 10 images: 50,010 - 6 + 700 + 3."""
        metrics = {**self.METRICS, "num-teacher-kept": 6}
        assert workload().of_reply(Stage.QUANTIZED, metrics, 50) == 50_707

    def test_batch_statistics_are_forward_passes(self) -> None:
        """Of 20 images of 50, and of 10 where there are no more."""
        renewed = workload(training__batch_norm_images=20)
        assert renewed.of_reply(Stage.STATISTICS, {}, 50) == 2000
        assert renewed.least(Stage.STATISTICS, 10, 4) == 1000

    def test_a_warm_up_round(self) -> None:
        assert workload().of_reply(Stage.FLOAT, self.METRICS, 50) == 300

    def test_calibration_takes_what_there_is(self) -> None:
        """Four batches of 32 are 128 images, of 50 there are 50."""
        assert workload().of_reply(Stage.CALIBRATION, {}, 50) == 5000
        assert workload().of_reply(Stage.CALIBRATION, {}, 500) == 12_800


class TestLeast:
    def test_a_coreset_may_be_rounded_down(self) -> None:
        """A tenth of 200 images less half an image for each of four classes: 18; two epochs."""
        least = workload(training__local_epochs=2).least(Stage.QUANTIZED, 200, 4)
        assert least == pytest.approx(2 * 18 * 5001)

    def test_all_images_are_known_exactly(self) -> None:
        least = workload(coreset__selection="full").least(Stage.QUANTIZED, 200, 4)
        assert least == 200 * 5001

    def test_the_teacher_may_not_be_needed(self) -> None:
        kept = workload(coreset__selection="full", training__teacher_views=3)
        assert kept.least(Stage.QUANTIZED, 200, 4) == 200 * 5000

    def test_one_image_is_the_least(self) -> None:
        assert workload().least(Stage.QUANTIZED, 5, 4) == 5001

    def test_devices_that_mind_the_deadline_may_do_less(self) -> None:
        """Adaptive: the floor of 1 % of 1000, less 2. Partial work: one epoch of three."""
        paced = workload(coreset__adaptive=True)
        assert paced.least(Stage.QUANTIZED, 1000, 4) == pytest.approx(8 * 5001)
        partial = workload(training__partial_work=True, training__local_epochs=3)
        assert partial.least(Stage.QUANTIZED, 200, 4) == pytest.approx(18 * 5001)

    def test_a_warm_up_round(self) -> None:
        """Two epochs by default."""
        assert workload().least(Stage.FLOAT, 10, 4) == 2 * 10 * 30
