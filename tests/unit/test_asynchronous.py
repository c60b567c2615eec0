"""Asynchronous stages: two devices of known speed, who is asked when and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType

from common.config import Config
from common.errors import UserError
from common.messages import Reply, Stage, Status, TrainRequest, message_bytes
from common.payloads.updates import Metadata, decode_state, encode_delta, encode_float
from server.checkpoints.resumption import Checkpoints
from server.exchange.courier import Courier
from server.exchange.registry import DeviceRegistry
from server.model.aggregation import State
from server.records.recorder import Recorder
from server.rounds.asynchronous import run_asynchronous_stage
from server.rounds.session import Session
from server.strategies.stage_plan import StagePlan
from simulations.emulation.clock import VirtualClock
from tests.records import recorded
from tests.unit.fake_grid import FakeGrid, is_query, node_id_of, query_reply
from tests.unit.test_server_app import SilentReporter

SECONDS = {0: 1.0, 1: 2.5}
CHANGE = {0: 1.0, 1: 4.0}
"""What a device adds to every weight."""

Train = Callable[[int, TrainRequest], Reply | Error]


class TimedGrid(FakeGrid):
    """Device k answers a pushed message after ``SECONDS[k]``; pulling waits for the next answer."""

    def __init__(self, train: Train, partition_ids: Iterable[int], clock: VirtualClock) -> None:
        super().__init__(self._respond, list(partition_ids))
        self.train = train
        self.clock = clock
        self.ends: dict[str, tuple[float, int]] = {}

    def _respond(self, partition_id: int, message: Message) -> Reply | Error:
        if is_query(message):
            return query_reply(partition_id)
        return self.train(partition_id, TrainRequest.from_record(message.content))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        message_ids = list(super().push_messages(messages))
        for message, message_id in zip(messages, message_ids, strict=True):
            partition_id = self.partition_of(message.metadata.dst_node_id)
            self.ends[message_id] = (self.clock.now() + SECONDS[partition_id], partition_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        first = min(message_ids, key=lambda message_id: self.ends[message_id])
        self.clock.sleep(self.ends[first][0] - self.clock.now())
        return super().pull_messages([first])


def trained(partition_id: int, request: TrainRequest) -> Reply:
    state = {name: v + np.float32(CHANGE[partition_id]) for name, v in base_of(request).items()}
    return reply(partition_id, request, encode_float(state, "float32", {}))


def base_of(request: TrainRequest) -> State:
    return decode_state(request.model)


def reply(partition_id: int, request: TrainRequest, update: bytes) -> Reply:
    return Reply(
        partition_id=partition_id,
        round_index=request.round_index,
        update=update,
        metrics={"num-examples": 10, "train-loss": 1.0},
    )


class Run:
    """A stage of three rounds with two updates each, unless the settings say otherwise."""

    def __init__(
        self,
        folder: Path,
        train: Train = trained,
        partition_ids: Iterable[int] = (0, 1),
        *,
        num_rounds: int = 3,
        renews_statistics: bool = False,
        device_interval: int = 0,
        **settings: Any,
    ) -> None:
        flat: dict[str, Any] = {
            "data.num-devices": 2,
            "federation.min-devices": 1,
            "federation.round-timeout": 60.0,
            "strategy.name": "fedbuff",
            "strategy.concurrency": 2,
            "strategy.buffer-size": 2,
        }
        keys = {name.replace("__", ".").replace("_", "-"): v for name, v in settings.items()}
        config = Config.from_flat({**flat, **keys})
        clock = VirtualClock()
        self.grid = TimedGrid(train, partition_ids, clock)
        self.reporter = SilentReporter()
        courier = Courier(self.grid, timeout_seconds=60.0, clock=clock)
        plan = StagePlan(
            stage=Stage.QUANTIZED,
            num_rounds=num_rounds,
            downlink_format="float32",
            min_replies=1,
            update_shapes={"w": (2,)},
            renews_statistics=renews_statistics,
        )
        with Recorder(folder, config) as recorder:
            session = Session(
                config=config,
                courier=courier,
                registry=DeviceRegistry(courier, self.reporter.note),
                recorder=recorder,
                reporter=self.reporter,
                checkpoints=Checkpoints(folder, config, note=self.reporter.note),
                started=0.0,
            )
            start: State = {"w": np.zeros(2, np.float32)}
            self.state = run_asynchronous_stage(
                session, plan, start, device_interval=device_interval
            )
        self.lines = recorded(folder)

    def devices(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(line[n] for n in names) for line in self.lines if line["kind"] == "device"]

    def rounds(self, name: str) -> list[Any]:
        return [line[name] for line in self.lines if line["kind"] == "round"]

    def asked(self) -> list[int]:
        """Partition ids, message by message."""
        sent = self.grid.sent_of(MessageType.TRAIN)
        return [self.grid.partition_of(message.metadata.dst_node_id) for message in sent]

    def requests(self) -> list[TrainRequest]:
        return [TrainRequest.from_record(m.content) for m in self.grid.sent_of(MessageType.TRAIN)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_three_rounds_by_hand(folder: Path) -> None:
    """Device 0 answers every second, device 1 every 2.5 s; both add to the version they had.

    1 s, 2 s: device 0, both from version 0: step 1, w = 1.
    2.5 s: device 1, from version 0, one step old: 4 / sqrt(2); 3 s: device 0, from version 1: 1.
    Step 2: w = 1 + (2 sqrt(2) + 1) / 2.
    4 s: device 0, from version 2. 5 s: device 0, from version 2, and device 1, which comes second
    at the same moment. Step 3: w = 1 + sqrt(2) + 1/2 + 1.
    """
    run = Run(folder)
    assert run.devices("round", "partition_id", "staleness", "status") == [
        (1, 0, 0, "ok"),
        (1, 0, 0, "ok"),
        (2, 1, 1, "ok"),
        (2, 0, 0, "ok"),
        (3, 0, 0, "ok"),
        (3, 0, 0, "ok"),
    ]
    assert run.rounds("mean_staleness") == [0.0, 0.5, 0.0]
    assert run.rounds("max_staleness") == [0, 1, 0]
    assert run.rounds("num_accepted") == [2, 2, 2]
    np.testing.assert_allclose(run.state["w"], 2.5 + math.sqrt(2), rtol=1e-6)
    assert run.grid.clock.now() == 5.0


def test_who_is_still_training_at_the_end(folder: Path) -> None:
    """Device 1 from 2.5 to 5 s, where its answer comes second: round 3 is over by then. It was sent
    one message since its last answer. Earlier rounds say nothing of the kind."""
    run = Run(folder)
    *earlier, last = [line for line in run.lines if line["kind"] == "round"]
    train_messages = run.grid.sent_of(MessageType.TRAIN)
    sent = [m for m in train_messages if m.metadata.dst_node_id == node_id_of(1)]
    assert last["unfinished_devices"] == 1
    assert last["unfinished_download_bytes"] == message_bytes(sent[-1])
    assert not any(name.startswith("unfinished") for line in earlier for name in line)


def test_what_devices_are_sent(folder: Path) -> None:
    """Both version 0 at 0 s; device 0 again at 1 s; version 1 to device 0 at 2 s and to device 1 at
    2.5 s; version 2 to device 0 at 3 s and 4 s. Version 3 is the result: nobody is sent it."""
    run = Run(folder)
    sent = [
        (partition_id, request.round_index, request.repetition)
        for partition_id, request in zip(run.asked(), run.requests(), strict=True)
    ]
    assert sorted(sent[:2]) == [(0, 0, 0), (1, 0, 0)]
    assert sent[2:] == [(0, 0, 1), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 2, 1)]
    version_1 = decode_state(run.requests()[3].model)
    np.testing.assert_allclose(version_1["w"], 1.0)


def test_the_servers_learning_rate(folder: Path) -> None:
    run = Run(folder, strategy__server_learning_rate=0.5)
    np.testing.assert_allclose(run.state["w"], (2.5 + math.sqrt(2)) / 2, rtol=1e-6)


def test_a_delta_is_relative_to_the_version_that_it_began_from(folder: Path) -> None:
    """All values of a change are equal and so exact in 4 bits of their largest."""

    def train(partition_id: int, request: TrainRequest) -> Reply:
        base = base_of(request)
        state = {name: v + np.float32(CHANGE[partition_id]) for name, v in base.items()}
        metadata: Metadata = {"round": request.round_index, "base-hash": request.model_hash}
        update, _ = encode_delta(state, base, 4, None, np.random.default_rng(0), metadata)
        return reply(partition_id, request, update)

    run = Run(folder, train)
    assert run.rounds("num_accepted") == [2, 2, 2]
    np.testing.assert_allclose(run.state["w"], 2.5 + math.sqrt(2), rtol=1e-3)


def test_updates_that_are_too_old_are_refused_and_counted(folder: Path) -> None:
    """Device 1 is one step old at 2.5 s and at 5 s: after device 0's of 4 s and, first at that
    moment, of 5 s, round 3 is over. Device 0 alone makes the rounds: at 2, 4 and 6 s."""
    run = Run(folder, strategy__max_staleness=0)
    assert run.devices("round", "partition_id", "staleness", "status") == [
        (1, 0, 0, "ok"),
        (1, 0, 0, "ok"),
        (2, 1, 1, "stale"),
        (2, 0, 0, "ok"),
        (2, 0, 0, "ok"),
        (3, 0, 0, "ok"),
        (3, 1, 1, "stale"),
        (3, 0, 0, "ok"),
    ]
    assert run.rounds("refused") == [{}, {"stale": 1}, {"stale": 1}]
    np.testing.assert_allclose(run.state["w"], 3.0)
    reasons = [line["reason"] for line in run.lines if line.get("status") == "stale"]
    assert reasons == ["1 round(s) behind: expected at most 0"] * 2


def test_a_device_that_fails_is_asked_again_in_the_next_round(folder: Path) -> None:
    """Device 1 breaks at 2.5 s, in round 2, and is asked again at 3 s, when that round is over.
    Round 3 is over at 5 s, before it breaks again."""

    def train(partition_id: int, request: TrainRequest) -> Reply | Error:
        return Error(0, "broken") if partition_id == 1 else trained(partition_id, request)

    run = Run(folder, train)
    assert run.rounds("refused") == [{}, {"no-reply": 1}, {}]
    assert run.rounds("num_asked") == [2, 3, 2]
    assert run.asked().count(1) == 2
    np.testing.assert_allclose(run.state["w"], 3.0)


def test_a_round_with_nobody_left_is_skipped_and_its_updates_are_kept(folder: Path) -> None:
    """The second of four tasks of the only device fails: round 1 has one update. Round 2 adds the
    third, the buffer is full: w = 1. Round 3: the fourth, and a fifth: w = 2."""
    tasks: list[int] = []

    def train(partition_id: int, request: TrainRequest) -> Reply:
        tasks.append(request.round_index)
        if len(tasks) == 2:
            return Reply(partition_id=0, status=Status.DIVERGED, reason="the loss is nan")
        return trained(partition_id, request)

    run = Run(folder, train, partition_ids=[0], strategy__concurrency=1)
    assert tasks == [0, 0, 1, 2, 2]
    assert run.rounds("skipped") == [True, False, False]
    assert run.rounds("refused") == [{"diverged": 1}, {}, {}]
    assert run.devices("staleness") == [(0,)] * 5
    np.testing.assert_allclose(run.state["w"], 2.0)


def test_nobody_is_asked_where_all_have_left(folder: Path) -> None:
    """From 2 s, the end of round 1, the network is cut: the last round has no update, and nobody
    evaluates or measures what round 1 gave, w = 1."""
    there = [0, 1]

    def train(partition_id: int, request: TrainRequest) -> Reply | Error:
        if request.round_index == 0:
            return trained(partition_id, request)
        there.clear()
        return Error(5, "Node unavailable")

    def present(grid: TimedGrid) -> list[int]:
        return [node_id_of(partition_id) for partition_id in there]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedGrid, "get_node_ids", present)
        run = Run(folder, train, num_rounds=2, renews_statistics=True, device_interval=2)
    assert run.rounds("skipped") == [False, True]
    notes = run.reporter.notes()
    assert "quantized round 2: no device is there to evaluate on" in notes
    assert "statistics of batch normalisation stay those of the training" in notes
    assert not run.grid.sent_of(MessageType.EVALUATE)
    np.testing.assert_allclose(run.state["w"], 1.0)


def test_a_stage_without_a_step_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no round of 3 had 2 good .* devices 0, 1: broken"):
        Run(folder, lambda *_: Error(0, "broken"))


def test_nobody_trains_twice_at_a_time(folder: Path) -> None:
    """Concurrency 2, one device there: it alone is asked, once at a time."""
    run = Run(folder, partition_ids=[1])
    assert run.grid.clock.now() == 6 * SECONDS[1]
    assert run.rounds("max_staleness") == [0, 0, 0]


def test_a_node_that_returns_as_another_device_is_not_asked_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device 1 trains until 2.5 s. Its node is away when the server looks at 1 s, and at 2 s says
    that it is device 5: first it is to answer what device 1 was asked."""
    said: dict[int, int] = {}

    def present(grid: TimedGrid) -> list[int]:
        is_away = 1.0 <= grid.clock.now() < 2.0
        return [node_id_of(0)] if is_away else [node_id_of(0), node_id_of(1)]

    def say(partition_id: int) -> Reply:
        said[partition_id] = 5 if partition_id in said else partition_id
        return Reply(partition_id=said[partition_id], metrics={"num-samples": 10})

    def train(partition_id: int, request: TrainRequest) -> Reply:
        return replace(trained(partition_id, request), partition_id=said[partition_id])

    monkeypatch.setattr(TimedGrid, "get_node_ids", present)
    monkeypatch.setattr("tests.unit.test_asynchronous.query_reply", say)
    run = Run(folder, train)
    assert said == {0: 0, 1: 5}
    assert run.devices("partition_id")[:4] == [(0,), (0,), (1,), (0,)]
    assert run.rounds("refused") == [{}, {}, {}]


def test_one_seed_is_one_run(tmp_path: Path) -> None:
    first, second = (Run(tmp_path / name) for name in ("a", "b"))
    np.testing.assert_array_equal(first.state["w"], second.state["w"])
    assert first.devices("round", "partition_id") == second.devices("round", "partition_id")
