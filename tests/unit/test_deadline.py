"""Tests of client.deadline."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.coreset import SMALLEST_CORESET, balance_groups, group_quotas
from client.deadline import (
    Pace,
    fitting_epochs,
    fitting_fraction,
    round_deadline,
    seconds_to_compute,
    selection_seconds,
    update_bytes,
)
from common.config import Config
from common.errors import UserError

PACE = Pace(seconds_per_sample=0.1, seconds_per_scored_sample=0.02)


def make_config(**settings: bool | float | str) -> Config:
    keys = {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()}
    defaults: dict[str, bool | float | str] = {
        "coreset.adaptive": True,
        "coreset.selection": "res",
        "coreset.balanced": False,
        "fleet.deadline": 100.0,
        "training.local-epochs": 2,
    }
    return Config.from_flat({**defaults, **keys})


def fraction(
    config: Config, *, seconds: float, is_first: bool = False, samples: int = 1000
) -> float:
    return fitting_fraction(
        config,
        PACE,
        seconds=seconds,
        num_samples=samples,
        num_classes=10,
        is_first=is_first,
    )


class TestFraction:
    def test_all_images_are_scored(self) -> None:
        """1000 images scored at 0.02 s leave 75 of 95 s; two epochs at 0.1 s an image: 375 images,
        half an image less for rounding."""
        assert fraction(make_config(), seconds=95.0) == pytest.approx(0.3745)

    def test_the_teacher_scores_once(self) -> None:
        """40 s of scoring leave 55: 275 images."""
        assert fraction(make_config(), seconds=95.0, is_first=True) == pytest.approx(0.2745)

    def test_a_pool_costs_in_proportion(self) -> None:
        """An image costs 0.2 s of training and 3 x 2 x 0.02 s of scoring: 64 / 0.32 = 200, half an
        image less for rounding."""
        config = make_config(coreset__pool=3.0)
        assert fraction(config, seconds=64.0) == pytest.approx(0.1995)

    def test_a_pool_of_all_images_costs_no_more_than_they_do(self) -> None:
        """Three times 374.5 images are all 1000 of them: as without a pool, the teacher has scored
        them. The first time there is room for 274.5, whose pool is smaller: 95 / 0.32 = 296.875.
        With at most 0.2 of the images the pool is never all of them."""
        config = make_config(coreset__pool=3.0)
        assert fraction(config, seconds=95.0) == pytest.approx(0.3745)
        assert fraction(config, seconds=95.0, is_first=True) == pytest.approx(0.296375)
        capped = make_config(coreset__pool=3.0, coreset__adaptive_cap=0.2)
        assert fraction(capped, seconds=60.0) == pytest.approx(0.187)

    def test_every_selection_of_a_round_takes_its_time(self) -> None:
        """Four epochs with a selection after every two: 2 x 20 s of scoring leave 55 s, four
        epochs on 137.5 images, half an image less for rounding; the teacher's 20 s come once: 35 s
        for 87.5. With a pool an image costs 0.4 s of training and 2 x 3 x 2 x 0.02 s of scoring:
        64 / 0.64 = 100."""
        settings = {"coreset__interval": 2, "training__local_epochs": 4}
        assert fraction(make_config(**settings), seconds=95.0) == pytest.approx(0.137)
        first = fraction(make_config(**settings), seconds=95.0, is_first=True)
        assert first == pytest.approx(0.087)
        pooled = make_config(**settings, coreset__pool=3.0)
        assert fraction(pooled, seconds=64.0) == pytest.approx(0.0995)

    @pytest.mark.parametrize(
        ("size", "is_first", "num_epochs", "seconds"),
        [
            (100, False, 5, 12.0),
            (400, False, 5, 20.0),
            (400, True, 5, 40.0),
            (1000, True, 5, 40.0),
            (100, False, 6, 24.0),
            (400, True, 6, 60.0),
        ],
    )
    def test_selections_time(
        self, size: int, is_first: bool, num_epochs: int, seconds: float
    ) -> None:
        """A pool of 300 for student and teacher; from 334 images on the pool is all 1000, which
        the teacher scores the first time only. More than five epochs have a second selection."""
        taken = selection_seconds(
            make_config(coreset__pool=3.0).coreset,
            PACE,
            coreset_size=size,
            num_samples=1000,
            num_epochs=num_epochs,
            is_first=is_first,
        )
        assert taken == pytest.approx(seconds)

    def test_a_balanced_coreset_leaves_room_for_rounding(self) -> None:
        """375 images less one of each of ten classes."""
        assert fraction(make_config(coreset__balanced=True), seconds=95.0) == pytest.approx(0.365)

    def test_floor_and_cap(self) -> None:
        config = make_config(coreset__adaptive_floor=0.05, coreset__adaptive_cap=0.5)
        assert fraction(config, seconds=-3.0) == 0.05
        assert fraction(config, seconds=1e6) == 0.5

    @given(
        counts=st.lists(st.integers(0, 300), min_size=10, max_size=10).filter(any),
        seconds=st.floats(0.0, 500.0),
        is_balanced=st.booleans(),
    )
    def test_what_is_chosen_fits(
        self, counts: list[int], seconds: float, is_balanced: bool
    ) -> None:
        """Above the floor and two images, selecting and two epochs take no longer than there is
        time for."""
        config = make_config(coreset__balanced=is_balanced)
        labels = torch.arange(10).repeat_interleave(torch.tensor(counts))
        share = fraction(config, seconds=seconds, samples=len(labels))
        groups = balance_groups(labels, balanced=is_balanced)
        size = int(torch.minimum(group_quotas(groups, share), groups.bincount()).sum())
        if share > config.coreset.adaptive_floor and size > SMALLEST_CORESET:
            assert len(labels) * 0.02 + 2 * size * 0.1 <= seconds + 1e-9


class TestTime:
    def test_transfers_and_margin_are_taken_off(self) -> None:
        """95 of 100 s; 1e6 + 2e6 bytes down at 10^6 a second, 1e6 x 1.25 x 4 / 32 up at 10^5:
        3 + 1.5625 s; twice 0.5 s of latency."""
        pace = Pace(
            seconds_per_sample=0.1,
            downlink_mbits=8.0,
            uplink_mbits=0.8,
            latency_seconds=0.5,
        )
        left = seconds_to_compute(
            make_config(), pace, model_bytes=1_000_000, teacher_bytes=2_000_000
        )
        assert left == pytest.approx(95.0 - 3.0 - 1.5625 - 1.0)

    def test_transfers_that_are_not_known_are_not_counted(self) -> None:
        left = seconds_to_compute(make_config(), PACE, model_bytes=10**9, teacher_bytes=0)
        assert left == pytest.approx(95.0)

    def test_without_a_deadline_the_servers_patience_counts(self) -> None:
        assert round_deadline(Config()) == Config().federation.round_timeout

    @pytest.mark.parametrize(
        ("update_format", "bits"), [("codes", 2), ("delta", 4), ("float32", 32)]
    )
    def test_bytes_of_an_update(self, update_format: str, bits: int) -> None:
        """Of a float16 model of 1600 bytes: 1600 x bits / 16 and a quarter more."""
        config = make_config(
            federation__update_format=update_format, federation__downlink_format="float16"
        )
        assert update_bytes(config, 1600) == pytest.approx(125.0 * bits)

    def test_bytes_of_an_update_where_changes_came(self) -> None:
        """Two changes of 3 bits, 600 bytes together, are 800 weights: at 4 bits 400 bytes and a
        quarter more. A whole model is float32: 600 bytes are 150 weights, 75 bytes."""
        config = make_config(federation__downlink_format="delta", federation__downlink_bits=3)
        assert update_bytes(config, 600, num_changes=2) == pytest.approx(500.0)
        assert update_bytes(config, 600) == pytest.approx(93.75)


class TestPartialWork:
    @pytest.mark.parametrize(("seconds", "epochs"), [(-1.0, 1), (9.9, 1), (20.1, 2), (99.0, 5)])
    def test_epochs_that_fit(self, seconds: float, epochs: int) -> None:
        """An epoch over 100 images takes 10 s; five are asked for."""
        config = make_config(coreset__selection="random", training__local_epochs=5)
        fitting = fitting_epochs(
            config, PACE, seconds=seconds, coreset_size=100, num_samples=1000, is_first=False
        )
        assert fitting == epochs


class TestPace:
    def test_from_a_node_config(self) -> None:
        figures = {"partition-id": 3, "seconds-per-sample": 0.5, "uplink-mbits": 2}
        assert Pace.from_figures(figures) == Pace(seconds_per_sample=0.5, uplink_mbits=2.0)
        assert Pace.from_figures({"partition-id": 3}) is None

    def test_bad_figures_are_named(self) -> None:
        with pytest.raises(UserError, match=r"seconds-per-sample = 0.0: expected a number, > 0"):
            Pace.from_figures({"seconds-per-sample": 0})


class TestSettings:
    def test_an_emulated_fleet_needs_a_deadline(self) -> None:
        with pytest.raises(UserError, match=r"coreset.adaptive = true: expected fleet.deadline"):
            make_config(fleet__name="pi-lab", fleet__deadline=0.0)

    def test_all_images_adapt_to_nothing(self) -> None:
        """The share that a device would choose is one that `full` does not look at."""
        with pytest.raises(UserError, match=r"coreset.adaptive = true: .*selection = 'full'"):
            make_config(coreset__selection="full")
        make_config(coreset__selection="full", coreset__adaptive=False)

    def test_floor_and_cap_in_order(self) -> None:
        with pytest.raises(UserError, match=r"adaptive-floor = 0.5: expected at most"):
            make_config(coreset__adaptive_floor=0.5, coreset__adaptive_cap=0.2)
