"""Who is there, and the seeded choice among them."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from common.errors import UserError
from common.messages import Reply, Status
from server.exchange.courier import Courier
from server.exchange.registry import DeviceRegistry, SampledGrid
from server.exchange.replies import Refusal, RefusalKind
from simulations.emulation.clock import VirtualClock
from tests.unit.fake_grid import Answer, FakeGrid, node_id_of, query_reply


def make_registry(
    answer: Answer = lambda k, _: query_reply(k), partition_ids: tuple[int, ...] = (2, 0, 1)
) -> tuple[DeviceRegistry, FakeGrid, list[str]]:
    notes: list[str] = []
    grid = FakeGrid(answer, partition_ids)
    courier = Courier(grid, timeout_seconds=1.0, clock=VirtualClock())
    return DeviceRegistry(courier, notes.append), grid, notes


def partition_ids_of(registry: DeviceRegistry) -> list[int]:
    return [device.partition_id for device in registry.devices]


def test_devices_are_known_by_partition_id() -> None:
    registry, _, notes = make_registry()
    registry.refresh()
    assert [(d.partition_id, d.node_id, d.num_samples) for d in registry.devices] == [
        (k, node_id_of(k), 10) for k in range(3)
    ]
    assert not notes
    assert registry.traffic.upload_bytes > 0


def test_only_new_devices_are_asked() -> None:
    registry, grid, _ = make_registry()
    registry.refresh()
    grid.partition_ids += [5]
    registry.refresh()
    assert [m.metadata.dst_node_id for m in grid.sent[3:]] == [node_id_of(5)]
    assert partition_ids_of(registry) == [0, 1, 2, 5]


def test_devices_that_left_are_forgotten_and_asked_again_when_they_return() -> None:
    registry, grid, _ = make_registry()
    registry.refresh()
    grid.partition_ids.remove(1)
    registry.refresh()
    assert partition_ids_of(registry) == [0, 2]
    grid.partition_ids.append(1)
    registry.refresh()
    assert partition_ids_of(registry) == [0, 1, 2]
    assert len(grid.sent) == 4


def test_holders_of_the_teacher_are_known_when_they_come_and_after_they_left() -> None:
    """1 is there, 5 is yet to come: both hold it, then both are away, and it stays so."""
    registry, grid, _ = make_registry()
    registry.refresh()
    registry.believe_teacher_at([1, 5])
    assert registry.courier.teacher_nodes == {node_id_of(1)}
    assert registry.teacher_partitions == [1, 5]
    grid.partition_ids += [5]
    registry.refresh()
    assert registry.courier.teacher_nodes == {node_id_of(1), node_id_of(5)}
    grid.partition_ids[:] = [0, 2]
    registry.refresh()
    assert registry.teacher_partitions == [1, 5]


def test_which_models_devices_hold_is_known_when_they_come_and_after_they_left() -> None:
    """1 is there, 5 is yet to come; 2 has said so itself, and a stranger, who counts for nobody."""
    registry, grid, _ = make_registry()
    registry.refresh()
    registry.believe_model_at({1: "m1", 5: "m0"})
    assert dict(registry.courier.model_at) == {node_id_of(1): "m1"}
    registry.courier.believe_model_at(node_id_of(2), "m2")
    registry.courier.believe_model_at(node_id_of(9), "m2")
    assert registry.model_at == {1: "m1", 2: "m2", 5: "m0"}
    grid.partition_ids += [5]
    registry.refresh()
    assert registry.courier.model_at[node_id_of(5)] == "m0"
    grid.partition_ids[:] = [0]
    registry.refresh()
    assert registry.model_at == {1: "m1", 2: "m2", 5: "m0"}
    registry.courier.believe_model_at(node_id_of(5), "m3")
    grid.partition_ids += [5]
    registry.refresh()
    assert registry.model_at[5] == "m3"


def test_a_device_that_is_refused_does_not_hold_the_teacher() -> None:
    """Device 1 knows the teacher's hash, but not who it is itself."""
    claim = Reply(partition_id=-1, teacher_hash="t1", metrics={"num-samples": 10})
    registry, _, _ = make_registry(lambda k, _: claim if k == 1 else query_reply(k))
    registry.courier.set_teacher("t1", b"teacher")
    registry.refresh()
    registry.courier.believe_teacher_at([node_id_of(2)])
    assert registry.teacher_partitions == [2]


def test_devices_say_which_of_several_bit_widths_is_theirs() -> None:
    """Device 2 says nothing, device 3 one that the run does not have."""
    said: dict[int, dict[str, int]] = {0: {"weight-bits": 2}, 1: {"weight-bits": 4}, 2: {}}

    def answer(partition_id: int, _: Message) -> Reply:
        metrics = {"num-samples": 10, **said.get(partition_id, {"weight-bits": 3})}
        return Reply(partition_id=partition_id, metrics=metrics)

    notes: list[str] = []
    grid = FakeGrid(answer, range(4))
    registry = DeviceRegistry(Courier(grid, timeout_seconds=1.0), notes.append, mixed_bits=(2, 4))
    registry.refresh()
    assert [(d.partition_id, d.weight_bits) for d in registry.devices] == [(0, 2), (1, 4)]
    assert sorted(notes) == [f"device {k} says none of the run's bit-widths" for k in (2, 3)]


def test_a_second_device_of_one_partition_is_ignored() -> None:
    registry, _, notes = make_registry(lambda *_: query_reply(7), (0, 1))
    registry.refresh()
    assert partition_ids_of(registry) == [7]
    assert notes == ["a second device with partition id 7 is ignored"]


def test_who_was_there_first_has_its_partition_when_it_is_back() -> None:
    """While device 1 is away, device 0 says that it forgot the run, and that it is device 1."""
    claims = {0: 0}
    registry, grid, notes = make_registry(lambda k, _: query_reply(claims.get(k, k)), (0, 1))
    registry.refresh()
    grid.partition_ids.remove(1)
    claims[0] = 1
    registry.courier.forgetful_nodes.add(node_id_of(0))
    registry.refresh()
    assert [(d.partition_id, d.node_id) for d in registry.devices] == [(1, node_id_of(0))]
    grid.partition_ids.append(1)
    for _ in range(3):
        registry.give_turn()
        registry.refresh()
        assert [(d.partition_id, d.node_id) for d in registry.devices] == [(1, node_id_of(1))]
    assert notes == ["a second device with partition id 1 is ignored"]


def test_devices_that_cannot_take_part_are_named() -> None:
    answers: dict[int, Reply | RecordDict] = {
        0: query_reply(0),
        1: Reply(partition_id=1, status=Status.NO_DATA, reason="no images in train/"),
        2: RecordDict({"other": ConfigRecord({"protocol": 1})}),
    }
    registry, grid, notes = make_registry(lambda k, _: answers[k])
    registry.refresh()
    registry.refresh()
    assert partition_ids_of(registry) == [0]
    assert len(grid.sent) == 3
    assert "device 1 can't take part: no images in train/" in notes
    assert any("does not speak this protocol" in note for note in notes)


def test_figures_that_no_device_has_are_refused() -> None:
    """Ten million images are believed, not one more; devices are counted from 0."""
    most = 10_000_000
    said = [(0, most), (1, most + 1), (2, -1), (3, 2.5), (-1, 10)]
    registry, _, notes = make_registry(
        lambda k, _: Reply(partition_id=said[k][0], metrics={"num-samples": said[k][1]}),
        (0, 1, 2, 3, 4),
    )
    registry.refresh()
    assert [(d.partition_id, d.num_samples) for d in registry.devices] == [(0, most)]
    assert sorted(notes) == [
        "a device with the partition id -1 is ignored",
        *(f"device {k} says an impossible number of images" for k in (1, 2, 3)),
    ]


def test_a_device_whose_figures_were_refused_is_asked_anew() -> None:
    """It may have gained images. Others that were refused, or that have left, are not asked.
    One that does not say that it is emulated is real."""
    sizes = {0: 10, 1: 10, 2: 10}
    emulated = {0: {}, 1: {"emulated": 0}, 2: {"emulated": 1}}
    registry, grid, _ = make_registry(
        lambda k, _: Reply(partition_id=k, metrics={"num-samples": sizes[k], **emulated[k]})
    )
    registry.refresh()
    sizes.update({0: 30, 1: 40})
    kinds = {0: RefusalKind.BAD_METRICS, 1: RefusalKind.DIVERGED, 9: RefusalKind.BAD_METRICS}
    registry.ask_again(
        Refusal(partition_id=k, kind=kind, reason="why") for k, kind in kinds.items()
    )
    for _ in range(2):
        registry.refresh()
        assert [d.num_samples for d in registry.devices] == [30, 10, 10]
    assert [d.emulated for d in registry.devices] == [False, False, True]
    assert len(grid.sent) == 4


def test_a_device_that_was_refused_is_asked_again_in_the_next_wait() -> None:
    """Its folder was empty, and is filled; the same reason is told once."""
    answers: list[Reply] = [Reply(partition_id=1, status=Status.NO_DATA, reason="no images")] * 2
    registry, grid, notes = make_registry(
        lambda k, _: answers.pop() if k == 1 and answers else query_reply(k), (0, 1)
    )
    for expected in ([0], [0], [0, 1]):
        registry.wait_for(1, timeout_seconds=1.0)
        registry.refresh()
        assert partition_ids_of(registry) == expected
    assert notes == ["device 1 can't take part: no images"]
    assert len(grid.sent) == 4


def test_a_device_that_goes_on_failing_is_asked_ever_more_rarely() -> None:
    """Three attempts, the third in the third wait; then in the wait 2^3 later and 2^4 after it."""
    registry, grid, notes = make_registry(
        lambda k, _: Error(code=1, reason="stalls") if k == 1 else query_reply(k), (0, 1)
    )
    asked = []
    for wait in range(1, 40):
        before = len(grid.sent)
        registry.wait_for(1, timeout_seconds=1.0)
        asked += [wait] * (len(grid.sent) > before)
    assert asked == [1, 2, 3, 11, 27]
    assert notes == ["a device can't be asked who it is: stalls"]


def test_a_device_that_fails_is_asked_again() -> None:
    failures = iter([Error(code=1, reason="starting up"), Error(code=1, reason="starting up")])
    registry, grid, notes = make_registry(lambda k, _: next(failures, query_reply(k)), (0,))
    for _ in range(3):
        registry.refresh()
    assert partition_ids_of(registry) == [0]
    assert (len(grid.sent), notes) == (3, [])


def test_failures_before_an_answer_do_not_count() -> None:
    """Two and two: three in a row would be the end."""
    error = Error(code=1, reason="busy")
    answers: list[Reply | Error] = [error, error, query_reply(0)] * 2
    registry, grid, notes = make_registry(lambda *_: answers.pop(0), (0,))
    for _ in range(2):
        registry.courier.forgetful_nodes.add(node_id_of(0))
        for _ in range(3):
            registry.refresh()
        assert partition_ids_of(registry) == [0]
    assert (len(grid.sent), notes) == (6, [])


def test_a_device_that_takes_part_after_all_does_not_count_as_refused() -> None:
    """Device 1 was refused, and is there. So it is not hopeless to wait for 2, which starts up."""
    answers: dict[int, list[Reply | Error]] = {
        1: [Reply(partition_id=1, status=Status.NO_DATA, reason="no images")],
        2: [Error(code=1, reason="starting up")],
    }
    registry, grid, _ = make_registry(
        lambda k, _: answers[k].pop() if answers.get(k) else query_reply(k), (0, 1)
    )
    for num_devices in (1, 2, 3):
        registry.wait_for(num_devices, timeout_seconds=5.0)
        assert partition_ids_of(registry) == list(range(num_devices))
        if num_devices == 2:
            grid.partition_ids.append(2)


def test_failures_of_an_earlier_presence_do_not_count() -> None:
    """Given up after three failures; when it returns it has three attempts again, not endless
    ones, for each of which a round would wait. The other one fails twice, answers, is away, and
    fails twice again before it answers."""
    error = Error(code=1, reason="starting up")
    second: list[Reply | Error] = [error, error, query_reply(1)] * 2

    def answer(partition_id: int, _: Message) -> Reply | Error:
        return second.pop(0) if partition_id == 1 else error

    registry, grid, notes = make_registry(answer, (0, 1))
    for _ in range(2):
        grid.partition_ids[:] = [0, 1]
        for _ in range(5):
            registry.refresh()
        assert partition_ids_of(registry) == [1]
        grid.partition_ids.clear()
        registry.refresh()
    assert [m.metadata.dst_node_id for m in grid.sent].count(node_id_of(0)) == 6
    assert notes == ["a device can't be asked who it is: starting up"] * 2


def test_waiting_ends_when_enough_are_there() -> None:
    registry, _, _ = make_registry()
    registry.wait_for(3, timeout_seconds=0.0)
    assert len(registry.devices) == 3


def test_waiting_for_devices_that_never_come_ends_with_the_timeout() -> None:
    registry, _, notes = make_registry()
    with pytest.raises(UserError, match=r"3 of 3 device\(s\) can take part: expected at least 4"):
        registry.wait_for(4, timeout_seconds=60.0)
    assert registry.courier.clock.now() == pytest.approx(60.0)
    assert notes == ["waiting for devices: 3 of at least 4 are there"]


def test_waiting_for_devices_that_refuse_ends_at_once() -> None:
    """Enough nodes are there, but only one can be asked: no use to wait an hour."""
    registry, grid, _ = make_registry(
        lambda k, _: Error(code=1, reason="no data set") if k else query_reply(k), (0, 1, 2)
    )
    with pytest.raises(UserError, match=r"1 of 3 device\(s\).*no data set"):
        registry.wait_for(2, timeout_seconds=3600.0)
    assert len(grid.sent) == 1 + 3 * 2
    assert registry.courier.clock.now() < 60.0


def test_samples_depend_on_seed_purpose_and_round_alone() -> None:
    """Not on node ids or on the order in which devices appeared."""

    def sample(
        order: tuple[int, ...], seed: int = 1, purpose: str = "a", round_index: int = 0
    ) -> list[int]:
        registry, _, _ = make_registry(partition_ids=order)
        registry.refresh()
        devices = registry.sample(seed, purpose, round_index, fraction=0.3, minimum=1)
        return [device.partition_id for device in devices]

    forward, backward = tuple(range(20)), tuple(reversed(range(20)))
    chosen = sample(forward)
    assert len(chosen) == 6
    assert chosen == sorted(set(chosen))
    assert sample(backward) == chosen
    others = [sample(forward, 2), sample(forward, 1, "b"), sample(forward, 1, "a", 1)]
    assert all(other != chosen for other in others)


@pytest.mark.parametrize(
    ("fraction", "minimum", "expected"), [(0.5, 1, 2), (0.01, 2, 2), (1.0, 1, 3), (0.1, 9, 3)]
)
def test_size_of_a_sample(fraction: float, minimum: int, expected: int) -> None:
    """Of three devices: 1.5 rounds to 2 (half to even), never below the minimum or above 3."""
    registry, _, _ = make_registry()
    registry.refresh()
    assert len(registry.sample(0, "a", 0, fraction=fraction, minimum=minimum)) == expected


def test_a_sampled_grid_shows_its_sample_alone() -> None:
    registry, grid, _ = make_registry(partition_ids=(0, 1, 2, 3))
    registry.refresh()
    view = SampledGrid(grid, registry.devices[1:3])
    assert list(view.get_node_ids()) == [node_id_of(1), node_id_of(2)]
    assert [node.node_id for node in view.get_nodes()] == [node_id_of(1), node_id_of(2)]
    assert view.partition_of == {node_id_of(1): 1, node_id_of(2): 2}
    message = Message(RecordDict(), dst_node_id=node_id_of(1), message_type="query")
    assert len(list(view.send_and_receive([message]))) == 1
