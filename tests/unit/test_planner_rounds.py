"""Tests of simulations.planner.rounds: arithmetic, and the emulation's own rules."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config import Config
from common.devices import Availability, DeviceProfile, task_cost
from common.errors import UserError
from common.messages import Stage
from common.seeding import numpy_generator
from common.settings import Scalar
from simulations.emulation.fleet import DeviceFleet, FleetClass
from simulations.emulation.flops import ModelFlops
from simulations.emulation.hardware import Attempt, Emulation, Fate, doomed, settle_attempts
from simulations.emulation.workload import Workload
from simulations.planner.payload import MessageSizes
from simulations.planner.planned_round import PlannedRound
from simulations.planner.rounds import FleetPlan
from simulations.planner.summary import classes_table
from tests.unit.test_registry import make_registry

FLOPS = ModelFlops(
    float_forward=1e6, float_training=3e6, quantized_forward=2e6, quantized_training=6e6
)
SIZES = MessageSizes(
    request_bytes=1_000_000,
    first_request_bytes=2_000_000,
    reply_bytes={2: 100_000, 4: 200_000},
    float32_reply_bytes=1_000_000,
)
SLOW = DeviceProfile(
    class_name="slow",
    training_gflops=0.1,
    memory_mb=100,
    uplink_mbits=1,
    downlink_mbits=4,
    latency_seconds=0.5,
    training_watts=5,
    idle_watts=1,
    radio_watts=2,
)
FAST = replace(SLOW, class_name="fast", training_gflops=1.0, uplink_mbits=8, downlink_mbits=16)


def make_plan(*classes: FleetClass, **settings: Scalar) -> FleetPlan:
    flat: dict[str, Scalar] = {
        "model.teacher": "shipped",
        "coreset.selection": "quarc",
        "federation.num-rounds": 3,
        "federation.min-devices": 1,
        "data.num-devices": sum(member.count for member in classes),
        **{key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()},
    }
    config = Config.from_flat(flat)
    fleet = DeviceFleet(name="lab", classes=classes)
    return FleetPlan(
        Emulation(fleet, num_devices=config.data.num_devices, seed=config.run.seed),
        config,
        Workload(config=config, flops=FLOPS),
        SIZES,
        num_samples=100,
        num_classes=10,
    )


def test_changes_go_to_devices_that_hold_a_model_of_few_rounds_before() -> None:
    """Two are asked of four, as a run draws them. The first time with the teacher, 2 MB; then
    0.1 MB if asked in the round before, 0.2 MB if in the one before that, else the whole, 1 MB."""
    plan = make_plan(
        FleetClass(profile=FAST, count=4), federation__fraction=0.5, federation__num_rounds=12
    )
    plan.sizes = replace(SIZES, change_request_bytes=(100_000, 200_000))
    last: dict[int, int] = {}
    amounts = set()
    for index, planned in enumerate(plan.run()):
        generator = numpy_generator(plan.config.run.seed, "sampling-quantized", index)
        expected = 0
        for device in generator.permutation(4)[:2].tolist():
            rounds = index - last[device] if device in last else 0
            expected += {0: 2_000_000, 1: 100_000, 2: 200_000}.get(rounds, 1_000_000)
            last[device] = index
        assert planned.download_bytes == pytest.approx(expected)
        amounts.add(expected)
    assert len(amounts) > 3


def test_a_device_that_broke_off_holds_the_model_of_before() -> None:
    """Of twenty that are asked in every round, those that failed in the second get two changes in
    the third, 0.2 MB, the others one, 0.1 MB; without the teacher, who never trained, 2 MB."""
    failing = replace(FAST, failure_rate=0.4)
    plan = make_plan(FleetClass(profile=failing, count=20), federation__num_rounds=2)
    plan.sizes = replace(SIZES, change_request_bytes=(100_000, 200_000))
    list(plan.run())
    first, second = (np.isfinite(plan.emulation.failures(Stage.QUANTIZED, k)) for k in range(2))
    expected = np.select([~second, ~first], [100_000.0, 200_000.0], 2_000_000.0)
    assert plan.request_bytes(np.arange(20), 2).tolist() == expected.tolist()
    assert len(set(expected.tolist())) == 3


def computing(plan: FleetPlan) -> list[float]:
    """Seconds of each round of a FAST device, less its transfers (see `test_a_round_by_hand`)."""
    seconds = [planned.virtual_seconds for planned in plan.run()]
    return [seconds[0] - (1.5 + 0.6), *(later - (1.0 + 0.6) for later in seconds[1:])]


def test_a_round_by_hand() -> None:
    """One slow and one fast device, 100 images, 10 % of them an epoch, chosen by RES every time.

    Operations: 10 images x (6 + 1) MFLOP to train with the teacher, 100 x 2 to score, and the first
    time 100 x 1 of the teacher: 370 MFLOP, then 270. Slow: 3.7 s, then 2.7 s; fast: a tenth.
    Download: 2 MB, then 1 MB: slow 0.5 + 4 s, then 0.5 + 2 s; fast 0.5 + 1 s, then 0.5 + 0.5 s.
    Upload of 0.1 MB: slow 0.5 + 0.8 s, fast 0.5 + 0.1 s.
    Slow: 4.5 + 3.7 + 1.3 = 9.5 s, then 2.5 + 2.7 + 1.3 = 6.5 s.
    Fast: 1.5 + 0.37 + 0.6 = 2.47 s, then 1 + 0.27 + 0.6 = 1.87 s.
    Energy, first round: slow 5 W x 3.7 + 2 W x 5.8 = 30.1 J; fast 5 x 0.37 + 2 x 2.1 + 1 W x 7.03 s
    of waiting = 13.08 J. Then slow 5 x 2.7 + 2 x 3.8 = 21.1 J; fast 5 x 0.27 + 2 x 1.6 + 4.63 =
    9.18 J.
    Both load at the same time, 16 Mbit in 4.5 and 1.5 s; they send 0.8 Mbit one after the other,
    the fast one in 0.6 s.
    """
    plan = make_plan(
        FleetClass(profile=SLOW, count=1),
        FleetClass(profile=FAST, count=1),
        coreset__interval=1,
        federation__num_rounds=2,
    )
    first, second = plan.run()
    assert first.virtual_seconds == pytest.approx(9.5, abs=1e-9)
    assert second.virtual_seconds == pytest.approx(6.5, abs=1e-9)
    assert second.virtual_start_seconds == first.virtual_seconds
    assert first.joules == pytest.approx(43.18, abs=1e-9)
    assert second.joules == pytest.approx(30.28, abs=1e-9)
    assert (first.num_asked, first.num_trained, first.is_skipped) == (2, 2, False)
    assert first.download_bytes == pytest.approx(4e6)
    assert second.download_bytes == pytest.approx(2e6)
    assert first.upload_bytes == pytest.approx(0.2e6)
    assert first.ingress_gbits == pytest.approx(1.6e-3 / 9.5)
    assert first.egress_gbits == pytest.approx(32e-3 / 9.5)
    assert first.ingress_peak_gbits == pytest.approx(0.8e-3 / 0.6)
    assert first.egress_peak_gbits == pytest.approx(16e-3 / 4.5 + 16e-3 / 1.5)
    assert plan.seconds_sum.tolist() == pytest.approx([16.0, 4.34])


def test_selections_are_due_every_interval_epochs() -> None:
    """Three epochs a round, a choice every 2: at 0 and 2, then 4, then 6 and 8.

    Operations: 3 x 10 x 7 MFLOP to train, 200 for each choice, and once 100 of the teacher.
    """
    plan = make_plan(
        FleetClass(profile=FAST, count=1), training__local_epochs=3, coreset__interval=2
    )
    seconds = [planned.virtual_seconds for planned in plan.run()]
    assert np.diff(seconds) == pytest.approx(
        [(0.41 - 0.71) - 0.5, 0.61 - 0.41]  # the second request has no teacher: half a second less
    )
    assert seconds[0] == pytest.approx(1.5 + 0.71 + 0.6)


@pytest.mark.parametrize(
    ("random_epochs", "mega_operations"),
    [
        # Random at 0 and 2, scored at 4 and 6, 8: no selection, then one and the teacher, then two.
        (4, [210, 510, 610]),
        # Random at 0, scored at 1, at 3 and 5, at 7.
        (1, [510, 610, 410]),
    ],
)
def test_random_epochs_cost_no_selection(random_epochs: int, mega_operations: list[int]) -> None:
    """As above: 210 MFLOP a round to train, 200 for a choice by score, once 100 of the teacher."""
    plan = make_plan(
        FleetClass(profile=FAST, count=1),
        training__local_epochs=3,
        coreset__interval=2,
        coreset__random_epochs=random_epochs,
        federation__num_rounds=3,
    )
    assert computing(plan) == pytest.approx([number / 1000 for number in mega_operations])


@pytest.mark.parametrize(
    ("pool", "mega_operations"),
    [
        # 5 x 10 images, by student and teacher in every selection: 50 x (2 + 1).
        (5.0, [220, 220]),
        # 10 x 10 are all 100: 200 in every selection, and 100 of the teacher in the first.
        (10.0, [370, 270]),
    ],
)
def test_a_pool_of_all_images_is_scored_by_the_teacher_once(
    pool: float, mega_operations: list[int]
) -> None:
    """70 MFLOP to train on 10 images, a selection in each of two rounds."""
    plan = make_plan(
        FleetClass(profile=FAST, count=1),
        coreset__interval=1,
        coreset__pool=pool,
        federation__num_rounds=2,
    )
    assert computing(plan) == pytest.approx([number / 1000 for number in mega_operations])


@pytest.mark.parametrize(
    ("settings", "mega_operations"),
    [
        # Views 0 and 1 in the first two epochs, then what is kept of them: 3 - 2, 3 and 3 epochs.
        ({"coreset__interval": 100}, [500, 180, 180]),
        # Not augmented, images have one view: 3 - 1.
        ({"coreset__interval": 100, "data__augment": False}, [490, 180, 180]),
        # New coresets at 0, 4 and 8: kept at 2; at 3; at 6 and 7.
        ({"coreset__interval": 4}, [500, 400, 390]),
        # New coresets at 0 and 2, at 4, at 6 and 8: no view is shown twice.
        ({"coreset__interval": 2}, [710, 410, 610]),
        # A random one at 0, by score at 4: kept at 2; at 3; at 6, 7 and 8.
        ({"coreset__interval": 100, "coreset__random_epochs": 4}, [200, 500, 180]),
    ],
)
def test_kept_outputs_of_the_teacher_cost_nothing(
    settings: dict[str, Scalar], mega_operations: list[int]
) -> None:
    """Two views, three epochs a round on 10 images: 6 MFLOP an image, and 1 of the teacher.

    210 MFLOP a round without what is kept; 200 for a choice by score, once 100 of the teacher.
    """
    plan = make_plan(
        FleetClass(profile=FAST, count=1),
        training__local_epochs=3,
        training__teacher_views=2,
        **settings,
    )
    assert computing(plan) == pytest.approx([number / 1000 for number in mega_operations])


def test_views_of_all_images_are_kept_for_good() -> None:
    """Two views, three epochs a round on all 100 images, which are never chosen again: 1,800 MFLOP
    to train, and in the first round twice 100 of the teacher."""
    plan = make_plan(
        FleetClass(profile=FAST, count=1),
        training__local_epochs=3,
        training__teacher_views=2,
        coreset__selection="full",
        coreset__interval=1,
    )
    seconds = [planned.virtual_seconds for planned in plan.run()]
    assert seconds == pytest.approx([2.0 + 2.1, 1.8 + 1.6, 1.8 + 1.6])


def test_a_deadline_drops_who_is_late() -> None:
    """Slow devices need 9.5 s, fast ones 2.47 s: with 5 s the round ends at its deadline."""
    plan = make_plan(
        FleetClass(profile=SLOW, count=3),
        FleetClass(profile=FAST, count=2),
        fleet__deadline=5.0,
        federation__num_rounds=1,
    )
    (planned,) = plan.run()
    assert planned.virtual_seconds == 5.0
    assert (planned.num_trained, planned.num_late) == (2, 3)
    assert plan.fate_counts.tolist() == [[0, 3, 0, 0], [2, 0, 0, 0]]
    table = classes_table(plan)
    assert table.header[-2:] == ["broke off", "reply after, virtual s"]
    assert table.rows == [
        ["slow", "3", "3", "0.0 %", "100.0 %", "0.0 %", "0.0 %", "-"],
        ["fast", "2", "2", "100.0 %", "0.0 %", "0.0 %", "0.0 %", "2.47"],
    ]


def test_who_breaks_off_or_is_late_for_certain_sends_no_reply() -> None:
    """A slow device takes at least 0.5 + 4 s down, 0.35 s for five images and 0.5 s up: too long
    for 5.2 s, in the last 0.35 s of which it would have begun to send. What arrives is 0.1 MB of
    every fast device that does not break off."""
    plan = make_plan(
        FleetClass(profile=SLOW, count=3),
        FleetClass(profile=replace(FAST, failure_rate=0.5), count=8),
        fleet__deadline=5.2,
        federation__num_rounds=1,
    )
    (planned,) = plan.run()
    assert planned.num_late == 3
    assert 0 < planned.num_failed < 8
    assert planned.upload_bytes == pytest.approx(planned.num_trained * 0.1e6)


def test_a_reply_has_the_size_of_its_bit_width() -> None:
    """Two devices of 2 bits send 0.1 MB each, three of up to 4 bits 0.2 MB."""
    plan = make_plan(
        FleetClass(profile=replace(SLOW, weight_bits=(2,)), count=2),
        FleetClass(profile=replace(FAST, weight_bits=(2, 4)), count=3),
        federation__mixed_bits="2,4",
        federation__num_rounds=1,
    )
    (planned,) = plan.run()
    assert planned.upload_bytes == pytest.approx(0.8e6)


def test_devices_of_other_bit_widths_are_not_asked() -> None:
    plan = make_plan(
        FleetClass(profile=replace(SLOW, weight_bits=(8,)), count=3),
        FleetClass(profile=FAST, count=2),
        federation__num_rounds=1,
    )
    (planned,) = plan.run()
    assert (planned.num_available, planned.num_asked, planned.num_trained) == (2, 2, 2)
    assert classes_table(plan).rows[0] == ["slow", "3", "0", *["0.0 %"] * 4, "-"]


def test_the_devices_that_a_run_would_draw_are_asked() -> None:
    """Of five classes of one device each 0.75 x 5, four, in every round, by one rule."""
    num_devices = 5
    classes = [
        FleetClass(profile=replace(FAST, class_name=f"c{k}"), count=1) for k in range(num_devices)
    ]
    plan = make_plan(*classes, federation__fraction=0.5, fleet__over_selection=1.5)
    registry, _, _ = make_registry(partition_ids=tuple(range(num_devices)))
    registry.refresh()
    counts = np.zeros(num_devices, dtype=np.int64)
    for round_index, planned in enumerate(plan.run()):
        drawn = registry.sample(0, "sampling-quantized", round_index, fraction=0.75, minimum=1)
        counts[plan.emulation.class_of[[device.partition_id for device in drawn]]] += 1
        assert planned.num_asked == len(drawn) == 4
        assert plan.fate_counts.sum(axis=1).tolist() == counts.tolist()


def test_peaks_are_those_of_all_lines_together() -> None:
    """Eight devices at 16 Mbit/s down, less what latency takes: 16 Mbit in 1.5 s is 10.7 Mbit/s."""
    plan = make_plan(FleetClass(profile=FAST, count=8), federation__num_rounds=1)
    (planned,) = plan.run()
    assert planned.egress_peak_gbits == pytest.approx(8 * 16e-3 / 1.5)
    assert planned.ingress_peak_gbits == pytest.approx(8 * 0.8e-3 / 0.6)


@pytest.mark.parametrize(
    ("deadline", "download_bytes", "upload_bytes"),
    [(2.5, 2e6 * 2.5 / 4.5, 0.0), (7.0, 2e6, 0.0), (8.85, 2e6, 0.1e6 * 0.65 / 1.3)],
)
def test_what_had_left_by_the_deadline_was_carried(
    deadline: float, download_bytes: float, upload_bytes: float
) -> None:
    """Three slow devices load until 4.5 s, compute until 8.2 s and send until 9.5 s, at rates that
    do not depend on the deadline; a fast one has sent its reply after 2.47 s."""
    plan = make_plan(
        FleetClass(profile=SLOW, count=3),
        FleetClass(profile=FAST, count=1),
        fleet__deadline=deadline,
        federation__num_rounds=1,
    )
    (planned,) = plan.run()
    assert (planned.num_trained, planned.num_late) == (1, 3)
    assert planned.download_bytes == pytest.approx(2e6 + 3 * download_bytes)
    assert planned.upload_bytes == pytest.approx(0.1e6 + 3 * upload_bytes)
    assert planned.egress_peak_gbits == pytest.approx(16e-3 / 1.5 + 3 * 16e-3 / 4.5)
    slow_senders = 3 * 0.8e-3 / 1.3 if upload_bytes else 0.0
    assert planned.ingress_peak_gbits == pytest.approx(max(0.8e-3 / 0.6, slow_senders))


def test_the_server_waits_for_devices() -> None:
    """Off for the first 90 s: the server looks every second."""
    availability = Availability(schedule=((90.0, False), (1e6, True)), same_phase=True)
    plan = make_plan(FleetClass(profile=replace(FAST, availability=availability), count=2))
    assert next(plan.run()).virtual_waited_seconds == 90.0
    plan = make_plan(
        FleetClass(profile=replace(FAST, availability=availability), count=2),
        federation__round_timeout=60.0,
    )
    with pytest.raises(UserError, match="fleet lab: 0 device"):
        next(plan.run())


def test_impossible_plans_are_refused() -> None:
    plan = make_plan(FleetClass(profile=FAST, count=2), fleet__deadline=0.5)
    with pytest.raises(UserError, match=r"fleet\.deadline = 0.5: no device can meet it"):
        next(plan.run())
    with pytest.raises(UserError, match=r"no class trains at quantization\.weight-bits = 2"):
        make_plan(FleetClass(profile=replace(FAST, weight_bits=(8,)), count=1))
    with pytest.raises(UserError, match=r"coreset\.adaptive and training\.partial-work: expected"):
        make_plan(FleetClass(profile=FAST, count=1), coreset__adaptive=True)
    with pytest.raises(UserError, match=r"another strategy\.name than 'fedbuff'"):
        make_plan(
            FleetClass(profile=FAST, count=1), strategy__name="fedbuff", strategy__concurrency=1
        )


def event_by_event(
    plan: FleetPlan, emulation: Emulation
) -> list[tuple[float, float, dict[Fate, int]]]:
    """Rounds as `simulations.emulation.grid.FleetGrid` plays them, one device after the other."""
    config, now, results = plan.config, 0.0, []
    has_teacher, coreset_epoch = set(), dict[int, int]()
    for index in range(config.federation.num_rounds):
        there = np.flatnonzero(emulation.available(now)).tolist()
        failures = emulation.failures(Stage.QUANTIZED, index)
        delays = emulation.delays(Stage.QUANTIZED, index)
        attempts = []
        for device in there:
            profile = emulation.profile(device)
            down = SIZES.request_bytes if device in has_teacher else SIZES.first_request_bytes
            least = task_cost(
                profile,
                flops=plan.workload.least(Stage.QUANTIZED, 100, 10),
                download_bytes=down,
                upload_bytes=0,
                delay_seconds=float(delays[device]),
            )
            attempt = Attempt(
                partition_id=device,
                cost=least,
                fails_after=float(failures[device]) * least.virtual_seconds,
            )
            if not doomed(attempt, config.fleet.deadline):
                scored = teacher = 0
                if device not in coreset_epoch:
                    teacher = 100
                if index - coreset_epoch.get(device, -99) >= config.coreset.interval:
                    scored, coreset_epoch[device] = 100, index
                metrics = {"num-seen": 10, "num-scored": scored, "num-teacher-scored": teacher}
                cost = task_cost(
                    profile,
                    flops=plan.workload.of_reply(Stage.QUANTIZED, metrics, 100),
                    download_bytes=down,
                    upload_bytes=SIZES.reply_bytes[2],
                    delay_seconds=float(delays[device]),
                )
                attempt = replace(attempt, cost=cost)
            attempts.append(attempt)
        wanted = math.ceil(len(attempts) / config.fleet.over_selection)
        settled, seconds = settle_attempts(
            attempts, num_wanted=wanted, deadline=config.fleet.deadline
        )
        joules = math.fsum(emulation.spend(attempt, seconds) for attempt in settled)
        counts = dict.fromkeys(Fate, 0)
        for attempt in settled:
            counts[attempt.fate] += 1
            if attempt.fate is Fate.TRAINED:
                has_teacher.add(attempt.partition_id)
        results.append((seconds, joules, counts))
        now += seconds
    return results


def as_tuple(planned: PlannedRound) -> tuple[float, float, dict[Fate, int]]:
    counts = {
        Fate.TRAINED: planned.num_trained,
        Fate.LATE: planned.num_late,
        Fate.SURPLUS: planned.num_surplus,
        Fate.FAILED: planned.num_failed,
    }
    return planned.virtual_seconds, planned.joules, counts


def test_over_selection_spares_none_that_a_round_needs() -> None:
    """3 / 1.5 = 2 would do, but a round of two is none where three replies make one."""
    settings: dict[str, Any] = {"fleet__over_selection": 1.5, "federation__num_rounds": 1}
    for min_devices, num_used in ((1, 2), (3, 3)):
        classes = [FleetClass(profile=profile, count=1) for profile in (SLOW, FAST, FAST)]
        plan = make_plan(*classes, federation__min_devices=min_devices, **settings)
        (planned,) = plan.run()
        assert (planned.num_trained, planned.is_skipped) == (num_used, False)


@pytest.mark.parametrize(("deadline", "over_selection"), [(0.0, 1.0), (7.0, 1.0), (8.0, 1.5)])
def test_a_plan_is_the_emulation_without_training(deadline: float, over_selection: float) -> None:
    """Devices that come and go, break off, are delayed and run out of battery: the same figures."""
    flaky = replace(
        SLOW,
        class_name="flaky",
        training_gflops=0.4,
        failure_rate=0.3,
        mean_delay_seconds=1.0,
        availability=Availability(probability=0.7, slot_seconds=5.0),
    )
    small = replace(FAST, class_name="small", battery_wh=0.01)
    classes = [FleetClass(profile=profile, count=20) for profile in (SLOW, FAST, flaky, small)]
    settings: dict[str, Any] = {
        "federation__num_rounds": 8,
        "coreset__interval": 3,
        "fleet__deadline": deadline,
        "fleet__over_selection": over_selection,
    }
    plan = make_plan(*classes, **settings)
    other = Emulation(plan.emulation.fleet, num_devices=80, seed=plan.config.run.seed)
    expected = event_by_event(plan, other)
    rounds = list(plan.run())
    for planned, (seconds, joules, counts) in zip(rounds, expected, strict=True):
        assert as_tuple(planned) == (
            pytest.approx(seconds, abs=1e-9),
            pytest.approx(joules, rel=1e-12),
            counts,
        )
    assert len({planned.num_available for planned in rounds}) > 2
    assert sum(planned.num_failed for planned in rounds) > 0
    assert plan.emulation.spent_joules == pytest.approx(other.spent_joules)
