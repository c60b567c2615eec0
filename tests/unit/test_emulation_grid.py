"""Tests of simulations.emulation.grid: emulated hardware around devices that answer by hand."""

from __future__ import annotations

import json

import pytest
from flwr.app import Error, Message, MessageType, RecordDict

from common.config import Config
from common.devices import Availability, DeviceProfile
from common.errors import UserError
from common.messages import Reply, Stage, Status, TrainRequest, message_bytes
from server.exchange.courier import Courier
from server.exchange.registry import DeviceRegistry
from simulations.emulation.clock import VirtualClock
from simulations.emulation.fleet import DeviceFleet, FleetClass
from simulations.emulation.flops import ModelFlops
from simulations.emulation.grid import FleetGrid
from simulations.emulation.hardware import Emulation
from simulations.emulation.workload import Workload
from simulations.engines.worker import FIRST_NODE_ID
from tests.unit.fake_grid import FakeGrid, is_query, query_reply

FLOPS = ModelFlops(
    float_forward=1e6, float_training=3e6, quantized_forward=1e6, quantized_training=3e6
)
SEEN, SCORED, TEACHER_SCORED = 50, 100, 100
UPDATE = b"u" * 1000


def profile(gflops: float, **figures: object) -> DeviceProfile:
    """8 Mbit/s (10^6 bytes a second) each way, 0.25 s of latency."""
    defaults: dict[str, object] = {
        "class_name": f"{gflops:g} GFLOP/s",
        "training_gflops": gflops,
        "memory_mb": 1000.0,
        "uplink_mbits": 8.0,
        "downlink_mbits": 8.0,
        "latency_seconds": 0.25,
        "training_watts": 5.0,
        "idle_watts": 1.0,
        "radio_watts": 3.0,
    }
    return DeviceProfile(**{**defaults, **figures})  # type: ignore[arg-type]


class Nodes(FakeGrid):
    """Fake devices whose node ids are those of the in-process engine."""

    def partition_of(self, node_id: int) -> int:
        return node_id - FIRST_NODE_ID

    def trained(self) -> list[int]:
        """Partition ids of the devices that were trained for real."""
        return [self.partition_of(m.metadata.dst_node_id) for m in self.sent_of(MessageType.TRAIN)]


def answer(partition_id: int, message: Message) -> Reply:
    """50 images trained on, 100 scored by student and teacher."""
    if is_query(message):
        return query_reply(partition_id, emulated=1)
    metrics = {
        "num-examples": SEEN,
        "num-seen": SEEN,
        "num-scored": SCORED,
        "num-teacher-scored": TEACHER_SCORED,
    }
    return Reply(partition_id=partition_id, round_index=0, update=UPDATE, metrics=metrics)


def make_grid(*profiles: DeviceProfile, **settings: float | str) -> tuple[FleetGrid, Nodes]:
    """One device of every profile, in this order; queried, so that their images are known."""
    num_devices = len(profiles)
    config = Config.from_flat(
        {"data.num-devices": num_devices, "federation.min-devices": 1, **settings}
    )
    fleet = DeviceFleet(
        name="made",
        classes=tuple(FleetClass(profile=made, count=1) for made in profiles),
    )
    emulation = Emulation(fleet, num_devices=num_devices, seed=0)
    emulation.class_of.sort()
    nodes = Nodes(answer, range(num_devices))
    grid = FleetGrid(
        nodes,
        emulation,
        config,
        Workload(config=config, flops=FLOPS),
        num_classes=2,
        clock=VirtualClock(),
    )
    grid.send_and_receive(
        Message(RecordDict(), dst_node_id=FIRST_NODE_ID + i, message_type=MessageType.QUERY)
        for i in range(num_devices)
    )
    return grid, nodes


def train_messages(
    num_devices: int, round_index: int = 0, stage: Stage = Stage.QUANTIZED
) -> list[Message]:
    record = TrainRequest(
        stage=stage,
        round_index=round_index,
        num_rounds=5,
        model=b"m" * 5000,
        model_hash="0",
    ).to_record()
    return [
        Message(record, dst_node_id=FIRST_NODE_ID + i, message_type=MessageType.TRAIN)
        for i in range(num_devices)
    ]


def reason(message: Message) -> str:
    return message.error.reason or ""


def by_hand(gflops: float, message: Message, reply: Message) -> float:
    """0.25 s + bytes at 10^6 a second, either way; 50 images of 3e6 + 1e6 (teacher), 100 scored at
    1e6 by either model: 4e8 operations."""
    operations = 50 * 4e6 + 100 * 1e6 + 100 * 1e6
    transfer = 0.25 + message_bytes(message) / 1e6 + 0.25 + message_bytes(reply) / 1e6
    return transfer + operations / (gflops * 1e9)


def device_line(partition_id: int) -> dict[str, object]:
    return {
        "kind": "device",
        "task": "train",
        "stage": "quantized",
        "round": 1,
        "partition_id": partition_id,
    }


class TestTime:
    def test_a_round_by_hand(self) -> None:
        grid, _ = make_grid(profile(0.1), profile(0.4))
        messages = train_messages(2)
        replies = grid.send_and_receive(messages)
        expected = [by_hand(0.1, messages[0], replies[0]), by_hand(0.4, messages[1], replies[1])]
        lines = [grid.annotate(device_line(i)) for i in (0, 1)]
        assert [line["virtual_seconds"] for line in lines] == pytest.approx(expected, abs=1e-9)
        assert grid.clock.now() == pytest.approx(max(expected), abs=1e-9)
        # 4 s and 1 s of computing at 5 W, the transfers at 3 W, the wait for the slower at 1 W.
        radio = [expected[0] - 4.0, expected[1] - 1.0]
        energy = [5 * 4.0 + 3 * radio[0], 5 * 1.0 + 3 * radio[1] + expected[0] - expected[1]]
        assert [line["joules"] for line in lines] == pytest.approx(energy, abs=1e-9)
        figures = grid.annotate({"kind": "round", "stage": "quantized", "round": 1})
        assert figures["virtual_seconds"] == pytest.approx(expected[0], abs=1e-9)
        assert figures["joules"] == pytest.approx(sum(energy), abs=1e-9)
        assert figures["fates"] == {"trained": 2}
        assert figures["away"] == []

    def test_a_training_that_diverged_took_the_least_at_least(self) -> None:
        """Its reply has no counts. One of ten images at 4e6 operations, of 1e6 a second: 4 s."""
        grid, nodes = make_grid(profile(1e-3))
        nodes.answer = lambda partition_id, _: Reply(
            partition_id=partition_id, round_index=0, status=Status.DIVERGED, reason="loss is nan"
        )
        grid.send_and_receive(train_messages(1))
        assert grid.annotate(device_line(0))["virtual_compute_seconds"] == pytest.approx(4.0)

    def test_a_device_that_is_broken_for_real_took_the_least_at_least(self) -> None:
        """As above: its error has no counts either."""
        grid, nodes = make_grid(profile(1e-3))
        nodes.answer = lambda *_: Error(code=0, reason="broken")
        (reply,) = grid.send_and_receive(train_messages(1))
        assert reason(reply) == "broken"
        assert grid.annotate(device_line(0))["virtual_compute_seconds"] == pytest.approx(4.0)

    def test_statistics_cost_energy_but_are_no_training(self) -> None:
        """Asked of all, twice, after the last training: two trainings ended well, not six."""
        grid, _ = make_grid(profile(0.1), profile(0.4))
        joules = []
        for task in ("train", "statistics", "statistics"):
            grid.send_and_receive(train_messages(2))
            joules += [grid.annotate({**device_line(i), "task": task})["joules"] for i in (0, 1)]
        figures = grid.annotate({"kind": "round", "stage": "quantized", "round": 1})
        assert figures["fates"] == {"trained": 2}
        assert figures["joules"] == pytest.approx(sum(joules), abs=1e-9)
        participation = grid.annotate({"kind": "summary"})["class_participation"]
        assert participation == {name: {"trained": 1} for name in ("0.1 GFLOP/s", "0.4 GFLOP/s")}

    def test_a_devices_seconds_are_the_sum_of_their_parts(self) -> None:
        """Device 0 begins after a delay, device 1 breaks off in the middle of its task."""
        grid, _ = make_grid(profile(0.1, mean_delay_seconds=5.0), profile(0.4, failure_rate=1.0))
        grid.send_and_receive(train_messages(2))
        delayed, failed = (grid.annotate(device_line(i)) for i in (0, 1))
        for figures in (delayed, failed):
            names = [
                f"virtual_{part}_seconds" for part in ("delay", "download", "compute", "upload")
            ]
            parts = sum(figures[name] for name in names)
            assert parts == pytest.approx(figures["virtual_seconds"], abs=1e-9)
        assert delayed["virtual_delay_seconds"] > 0
        assert failed["fate"] == "failed"

    def test_rounds_add_up(self) -> None:
        grid, _ = make_grid(profile(0.1))
        one = by_hand(0.1, train_messages(1)[0], grid.send_and_receive(train_messages(1))[0])
        grid.annotate({"kind": "round", "stage": "quantized", "round": 1})
        grid.clock.sleep(7.0)
        grid.send_and_receive(train_messages(1))
        figures = grid.annotate({"kind": "round", "stage": "quantized", "round": 2})
        assert figures["virtual_seconds"] == pytest.approx(one + 7.0, abs=1e-9)
        assert figures["virtual_clock_seconds"] == pytest.approx(2 * one + 7.0, abs=1e-9)


class TestDropping:
    def test_a_device_that_is_late_for_certain_is_not_trained(self) -> None:
        """10 images, 1 at 10 %: the least is 4e6 operations and the transfers. At 1e-3 GFLOP/s that
        is 4 s of computing and half a second of latency."""
        grid, nodes = make_grid(profile(0.001), profile(0.4), **{"fleet.deadline": 3.0})
        late, used = grid.send_and_receive(train_messages(2))
        assert nodes.trained() == [1]
        assert used.has_content()
        assert reason(late).startswith("late: at least 4.5")
        assert grid.clock.now() == 3.0

    def test_a_device_that_turns_out_late_is_dropped(self) -> None:
        """At 0.1 GFLOP/s the reply takes 4.5 s, though the least task would take 0.3 s."""
        grid, nodes = make_grid(profile(0.1), profile(0.4), **{"fleet.deadline": 3.0})
        late, used = grid.send_and_receive(train_messages(2))
        assert nodes.trained() == [0, 1]
        assert used.has_content()
        assert "the deadline is 3" in reason(late)
        assert grid.annotate(device_line(0))["fate"] == "late"

    def test_failures_are_reported_and_not_trained(self) -> None:
        """In a part of the least that the task could take: 4e6 operations and the transfers."""
        grid, nodes = make_grid(profile(0.1, failure_rate=1.0), profile(0.4))
        messages = train_messages(2)
        failed, used = grid.send_and_receive(messages)
        assert nodes.trained() == [1]
        assert used.has_content()
        assert reason(failed).startswith("broke off after")
        least = 0.25 + message_bytes(messages[0]) / 1e6 + 0.04 + 0.25
        part = grid.emulation.failures(Stage.QUANTIZED, 0)[0]
        seconds = grid.annotate(device_line(0))["virtual_seconds"]
        assert seconds == pytest.approx(part * least, abs=1e-9)

    def test_over_selection_takes_the_first(self) -> None:
        """Three are asked, 3 / 1.5 = 2 are wanted."""
        settings = {"fleet.over-selection": 1.5}
        grid, _ = make_grid(profile(0.1), profile(0.4), profile(0.2), **settings)
        replies = grid.send_and_receive(train_messages(3))
        assert [reply.has_content() for reply in replies] == [False, True, True]
        assert reason(replies[0]).startswith("surplus")
        assert grid.clock.now() == pytest.approx(
            by_hand(0.2, train_messages(1)[0], replies[2]), abs=1e-9
        )

    def test_over_selection_spares_none_that_a_round_needs(self) -> None:
        """3 / 1.5 = 2 would do, but a round of two is none where three replies make one."""
        settings = {"fleet.over-selection": 1.5, "federation.min-devices": 3}
        grid, _ = make_grid(profile(0.1), profile(0.4), profile(0.2), **settings)
        replies = grid.send_and_receive(train_messages(3))
        assert [reply.has_content() for reply in replies] == [True, True, True]

    def test_a_deadline_nobody_can_meet(self) -> None:
        grid, nodes = make_grid(profile(0.001), profile(0.002), **{"fleet.deadline": 1.0})
        for ask in (grid.send_and_receive, grid.push_messages):
            with pytest.raises(UserError, match=r"the fastest, device 1 \(0.002 GFLOP/s\), needs"):
                ask(train_messages(2))
        assert nodes.trained() == []

    def test_the_server_hears_reasons(self) -> None:
        """Through the courier, that knows nothing of emulation: every failure has its own node."""
        grid, _ = make_grid(profile(0.1, failure_rate=1.0), profile(0.4), profile(0.001))
        grid.config = Config.from_flat({"data.num-devices": 3, "fleet.deadline": 3.0})
        exchange = Courier(grid, timeout_seconds=1.0).exchange(train_messages(3))
        assert [m.metadata.src_node_id for m in exchange.replies] == [FIRST_NODE_ID + 1]
        assert exchange.failures[FIRST_NODE_ID].startswith("broke off")
        assert exchange.failures[FIRST_NODE_ID + 2].startswith("late")


class TestTasks:
    """Devices on their own: pushed, and pulled one by one."""

    def pull(self, grid: FleetGrid, ids: list[str]) -> Message:
        (reply,) = grid.pull_messages(ids)
        ids.remove(reply.metadata.reply_to_message_id)
        return reply

    def again(self, grid: FleetGrid, ids: list[str], partition_id: int) -> Message:
        (message,) = [m for m in train_messages(2) if m.metadata.dst_node_id == partition_id + 2]
        ids += grid.push_messages([message])
        return message

    def test_the_order_of_events_by_hand(self) -> None:
        """Device 0 computes for 4 s, device 1 for 1 s; both transfer for little over 0.5 s. Device
        1, asked again at once, answers at about 1.5, 3 and 4.5 s; device 0 at 4.5 s. Its reply is
        as long, its transfers are the same: 4 s of computing come to less than three times 1.5."""
        grid, _ = make_grid(profile(0.1), profile(0.4))
        assert FIRST_NODE_ID == 2
        messages = train_messages(2)
        ids = grid.push_messages(messages)
        assert grid.clock.now() == 0.0
        order, times = [], []
        for _ in range(4):
            reply = self.pull(grid, ids)
            partition_id = reply.metadata.src_node_id - FIRST_NODE_ID
            order.append(partition_id)
            times.append(grid.clock.now())
            self.again(grid, ids, partition_id)
        slow, quick = (by_hand(gflops, messages[0], reply) for gflops in (0.1, 0.4))
        assert 2 * quick < slow < 3 * quick
        assert order == [1, 1, 0, 1]
        assert times == pytest.approx([quick, 2 * quick, slow, 3 * quick], abs=1e-9)

    def test_figures_of_devices_and_rounds(self) -> None:
        """Device 1 has answered twice, device 0 not yet: 2 s of computing at 5 W, transfers at 3 W,
        and nobody waits for anybody."""
        grid, _ = make_grid(profile(0.1), profile(0.4))
        ids = grid.push_messages(train_messages(2))
        lines = []
        for _ in range(2):
            reply = self.pull(grid, ids)
            message = self.again(grid, ids, 1)
            lines.append(grid.annotate(device_line(1)))
        once = by_hand(0.4, message, reply)
        joules = 5 * 1.0 + 3 * (once - 1.0)
        assert [line["virtual_seconds"] for line in lines] == pytest.approx([once, once])
        assert [line["joules"] for line in lines] == pytest.approx([joules, joules])
        figures = grid.annotate({"kind": "round", "stage": "quantized", "round": 1})
        assert figures["under_way"] == [0]  # device 1 is asked again as the round ends
        assert figures["virtual_seconds"] == pytest.approx(2 * once, abs=1e-9)
        assert figures["joules"] == pytest.approx(2 * joules)
        assert figures["fates"] == {"trained": 2}

    def test_the_deadline_is_each_devices_own(self) -> None:
        """Device 0 would take 4.5 s, known once it has trained; device 1, asked again at 1.5 s, has
        until 4.5 s."""
        grid, nodes = make_grid(profile(0.1), profile(0.4), **{"fleet.deadline": 3.0})
        ids = grid.push_messages(train_messages(2))
        assert self.pull(grid, ids).has_content()
        self.again(grid, ids, 1)
        late = self.pull(grid, ids)
        assert reason(late).startswith("late: at least 4.5")
        assert grid.clock.now() == 3.0
        assert grid.annotate(device_line(0))["fate"] == "late"
        assert self.pull(grid, ids).has_content()
        assert nodes.trained() == [0, 1, 1]

    def test_who_fails_or_is_late_for_certain_is_not_trained(self) -> None:
        grid, nodes = make_grid(
            profile(0.4, failure_rate=1.0), profile(0.001), **{"fleet.deadline": 3.0}
        )
        ids = grid.push_messages(train_messages(2))
        failed, late = self.pull(grid, ids), self.pull(grid, ids)
        assert reason(failed).startswith("broke off after")
        assert reason(late).startswith("late: at least 4.5")
        assert nodes.trained() == []
        assert grid.pull_messages(["1"]) == []

    def test_a_task_that_is_under_way_goes_on_in_another_process(self) -> None:
        """After device 1's answer both are asked again: device 0 from 0 s on, device 1 from its
        first answer on. They answer when they would have, whatever the clock was, and are counted
        as in the run that went on; delays show that their numbers are."""
        profiles = [profile(0.1, mean_delay_seconds=1.0), profile(0.4, mean_delay_seconds=1.0)]
        grid, _ = make_grid(*profiles)
        ids = grid.push_messages(train_messages(2))
        first = self.pull(grid, ids).metadata.src_node_id - FIRST_NODE_ID
        grid.annotate(device_line(first))
        self.again(grid, ids, first)
        state = json.loads(json.dumps(grid.state()))
        other, _ = make_grid(*profiles)
        other.restore(state)
        assert other.clock.now() == grid.clock.now()
        other_ids = other.push_messages(train_messages(2))
        times: dict[int, list[float]] = {0: [], 1: []}
        for index, (one, its_ids) in enumerate([(grid, ids), (other, other_ids)]):
            for _ in range(3):
                reply = self.pull(one, its_ids)
                times[index].append(one.clock.now())
                self.again(one, its_ids, reply.metadata.src_node_id - FIRST_NODE_ID)
        assert times[0] == times[1]
        assert grid.emulation.spent_joules.tolist() == other.emulation.spent_joules.tolist()

    def test_the_energy_of_what_is_never_finished(self) -> None:
        """Device 1 answers after about 1.5 s, and is asked again; device 0 has loaded for half a
        second, at 3 W, and computed for the rest, at 5 W. Nobody else is charged for it, and only a
        last round's line asks for it."""
        grid, _ = make_grid(profile(0.1), profile(0.4))
        ids = grid.push_messages(train_messages(2))
        self.pull(grid, ids)
        self.again(grid, ids, 1)
        figures = grid.annotate(device_line(1))
        now, loading = grid.clock.now(), 0.25 + message_bytes(train_messages(1)[0]) / 1e6
        line = {"kind": "round", "stage": "quantized", "round": 1}
        assert "unfinished_joules" not in grid.annotate(line)
        joules = 3 * loading + 5 * (now - loading)
        last = grid.annotate({**line, "unfinished_devices": 1})
        assert last["unfinished_joules"] == pytest.approx(joules)
        spent = grid.emulation.spent_joules.tolist()
        assert spent == pytest.approx([joules, figures["joules"]])

    def test_statistics_taken_at_the_end_are_not_charged_twice(self) -> None:
        """What device 0 had spent when the server went on to ask both for statistics is as above;
        the exchange that follows is charged by itself."""
        grid, _ = make_grid(profile(0.1), profile(0.4))
        ids = grid.push_messages(train_messages(2))
        self.pull(grid, ids)
        now, loading = grid.clock.now(), 0.25 + message_bytes(train_messages(1)[0]) / 1e6
        figures = [grid.annotate(device_line(1))]
        list(grid.send_and_receive(train_messages(2, stage=Stage.STATISTICS)))
        assert grid.clock.now() > now
        figures += [grid.annotate({**device_line(i), "task": "statistics"}) for i in (0, 1)]
        line = {"kind": "round", "stage": "quantized", "round": 1, "unfinished_devices": 1}
        last = grid.annotate(line)
        assert last["under_way"] == [0]
        unfinished = last["unfinished_joules"]
        assert unfinished == pytest.approx(3 * loading + 5 * (now - loading))
        told = sum(each["joules"] for each in figures)
        assert grid.emulation.spent_joules.sum() == pytest.approx(told + unfinished)

    def test_the_server_gives_up_after_its_own_timeout(self) -> None:
        grid, _ = make_grid(profile(0.1), **{"federation.round-timeout": 3.0})
        courier = Courier(grid, timeout_seconds=3.0, clock=grid.clock)
        courier.post(train_messages(1)[0])
        assert courier.collect().failures[FIRST_NODE_ID].startswith("late: at least 4.5")

    def test_every_task_waits_anew(self) -> None:
        """Exponential delays of one device, whose rounds do not change: three of them differ."""
        grid, _ = make_grid(profile(0.4), profile(0.4, mean_delay_seconds=5.0))
        seconds = []
        for _ in range(3):
            ids: list[str] = []
            self.again(grid, ids, 1)
            self.pull(grid, ids)
            seconds.append(grid.annotate(device_line(1))["virtual_seconds"])
        assert len(set(seconds)) == 3


class TestPresence:
    def test_devices_that_are_away_are_no_nodes(self) -> None:
        """There for the first 10 of 20 s, all in step."""
        in_periods = Availability(schedule=((10.0, True), (10.0, False)), same_phase=True)
        grid, _ = make_grid(profile(0.1), profile(0.4, availability=in_periods))
        assert grid.get_node_ids() == [FIRST_NODE_ID, FIRST_NODE_ID + 1]
        grid.clock.sleep(12.0)
        assert grid.get_node_ids() == [FIRST_NODE_ID]

    def test_who_took_part_is_not_away_in_that_round(self) -> None:
        """Device 1 is there for the first 10 of 20 s, and gone when device 0 is asked once more."""
        in_periods = Availability(schedule=((10.0, True), (10.0, False)), same_phase=True)
        grid, _ = make_grid(profile(0.1), profile(0.4, availability=in_periods))
        grid.send_and_receive(train_messages(2))
        for partition_id in (0, 1):
            grid.annotate(device_line(partition_id))
        grid.clock.sleep(12.0 - grid.clock.now())
        grid.send_and_receive(train_messages(1))
        grid.annotate(device_line(0))
        line = {"kind": "round", "stage": "quantized", "round": 1}
        assert grid.annotate(line)["away"] == []
        assert grid.annotate({**line, "round": 2})["away"] == [1]

    def test_devices_that_cannot_train_at_these_bits_are_no_nodes(self) -> None:
        grid, _ = make_grid(profile(0.1), profile(0.4, weight_bits=(8,)))
        assert grid.get_node_ids() == [FIRST_NODE_ID]

    def test_devices_without_the_memory_are_no_nodes(self) -> None:
        grid, _ = make_grid(profile(0.1), profile(0.4))
        grid.unable = {0}
        assert grid.get_node_ids() == [FIRST_NODE_ID + 1]

    def test_the_server_waits_in_virtual_time(self) -> None:
        """The second device comes at 20 s: the server, polling every second, waits until then."""
        in_periods = Availability(schedule=((10.0, True), (10.0, False)), same_phase=True)
        grid, _ = make_grid(profile(0.1), profile(0.4, availability=in_periods))
        grid.clock.sleep(12.0)
        notes: list[str] = []
        courier = Courier(grid, timeout_seconds=60.0, clock=grid.clock)
        DeviceRegistry(courier, notes.append).wait_for(2, timeout_seconds=60.0)
        assert grid.clock.now() == pytest.approx(20.0, abs=1e-9)
        assert notes == ["waiting for devices: 1 of at least 2 are there"]

    def test_the_server_stops_when_too_few_come(self) -> None:
        never = Availability(probability=0.0)
        grid, _ = make_grid(profile(0.1), profile(0.4, availability=never))
        courier = Courier(grid, timeout_seconds=60.0, clock=grid.clock)
        with pytest.raises(UserError, match=r"1 of 1 device.* expected at least 2"):
            DeviceRegistry(courier, print).wait_for(2, timeout_seconds=60.0)
        assert grid.clock.now() >= 60.0


def test_accuracy_of_each_class() -> None:
    """Two devices of one class: 3 of 4 and 1 of 4 right; one of the other: 1 of 1; another has no
    images to evaluate on. What was measured a round earlier, with none right, does not count, and
    the round after says nothing."""
    shared = {"class_name": "slow"}
    classes = [profile(0.1, **shared), profile(0.1, **shared), profile(0.4), profile(0.8)]
    grid, _ = make_grid(*classes)
    for number, is_right in ((1, 0), (2, 1)):
        for partition_id, correct, examples in ((0, 3, 4), (1, 1, 4), (2, 1, 1), (3, 0, 0)):
            line = {**device_line(partition_id), "task": "evaluate", "round": number}
            line |= {"correct": correct * is_right, "num_examples": examples}
            name = classes[partition_id].class_name
            assert grid.annotate(line) == {"device_class": name}
    rounds = [{"kind": "round", "stage": "quantized", "round": number} for number in (2, 3)]
    assert grid.annotate(rounds[0])["class_accuracy"] == {"0.4 GFLOP/s": 100.0, "slow": 50.0}
    assert "class_accuracy" not in grid.annotate(rounds[1])
    summary = grid.annotate({"kind": "summary"})
    assert summary["fleet_fingerprint"] == grid.emulation.fleet.fingerprint
    assert summary["class_accuracy"] == {"0.4 GFLOP/s": 100.0, "slow": 50.0}


def test_the_books_go_on_in_another_process() -> None:
    """After a round of two devices, and 9 s before the line of the next: its figures, and those of
    the whole run. Device 1 is there for the first 10 of 20 s only."""
    in_periods = Availability(schedule=((10.0, True), (10.0, False)), same_phase=True)
    profiles = [profile(0.1), profile(0.4, availability=in_periods)]
    grid, _ = make_grid(*profiles)
    grid.send_and_receive(train_messages(2))
    for partition_id in (0, 1):
        grid.annotate(device_line(partition_id))
    grid.annotate({"kind": "round", "stage": "quantized", "round": 1})
    grid.clock.sleep(9.0)
    grid.send_and_receive(train_messages(1, 1))
    grid.annotate({**device_line(0), "round": 2})
    evaluation = {**device_line(0), "task": "evaluate", "round": 2}
    grid.annotate({**evaluation, "correct": 3, "num_examples": 4})
    other, _ = make_grid(*profiles)
    other.restore(json.loads(json.dumps(grid.state())))
    line = {"kind": "round", "stage": "quantized", "round": 2}
    figures = [books.annotate(line) for books in (grid, other)]
    assert figures[0].pop("fates") == {"trained": 1}
    assert figures[0].pop("joules") > 0
    assert figures[0]["virtual_seconds"] > 9.0
    assert figures[0]["away"] == [1]
    assert figures[0]["class_accuracy"] == {"0.1 GFLOP/s": 75.0}
    assert {name: figures[1][name] for name in figures[0]} == figures[0]
    summaries = [books.annotate({"kind": "summary"}) for books in (grid, other)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["class_participation"]["0.1 GFLOP/s"] == {"trained": 2}


def test_two_runs_are_the_same() -> None:
    """Five rounds of devices that come, go, fail and wait: every figure, from the seed alone."""

    def run() -> list[dict[str, object]]:
        flaky = {
            "failure_rate": 0.3,
            "mean_delay_seconds": 2.0,
            "availability": Availability(probability=0.7, slot_seconds=5.0),
        }
        profiles = [profile(0.1 * (1 + i % 3), **flaky) for i in range(12)]
        grid, _ = make_grid(*profiles, **{"fleet.deadline": 8.0, "fleet.over-selection": 2.0})
        lines = []
        for index in range(5):
            there = set(grid.get_node_ids())
            messages = [m for m in train_messages(12, index) if m.metadata.dst_node_id in there]
            grid.send_and_receive(messages)
            for message in messages:
                partition_id = message.metadata.dst_node_id - FIRST_NODE_ID
                lines.append(grid.annotate({**device_line(partition_id), "round": index + 1}))
            lines.append(grid.annotate({"kind": "round", "stage": "quantized", "round": index + 1}))
        return [*lines, grid.annotate({"kind": "summary"})]

    first = run()
    assert first == run()
    fates = {str(line["fate"]) for line in first if "fate" in line}
    assert fates >= {"trained", "failed", "surplus"}


def test_devices_that_train_at_any_of_the_runs_bit_widths_are_there() -> None:
    """8 bits alone are none of 2 and 4."""
    grid, _ = make_grid(
        profile(1.0, weight_bits=(2,)),
        profile(1.0, weight_bits=(8,)),
        profile(1.0, weight_bits=(4, 8)),
        **{"federation.mixed-bits": "2,4"},
    )
    assert grid.get_node_ids() == [FIRST_NODE_ID, FIRST_NODE_ID + 2]
