"""Whole federations on the server's side, with devices that answer by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, MessageType, RecordDict

from common.checkpoints import content_hash, load_checkpoint, save_checkpoint
from common.config import Config
from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import load_dataset
from common.errors import UserError
from common.messages import EvaluateRequest, Reply, Stage, Status, TrainRequest
from common.models import create_model, model_state
from common.payloads.packed_model import load_packed_model
from common.payloads.updates import decode_state, encode_float
from server.app import app, run_federation
from server.model.evaluation import evaluate
from server.records import recorder
from tests.records import recorded, reproducible_lines, without_wall_clock
from tests.unit.fake_grid import Answer, FakeGrid, is_query, query_reply
from tests.unit.test_emulation_grid import make_grid, profile

pytest.importorskip("sklearn")

SHIFT = 0.125
"""Device k answers a train request with its last bias raised by (k + 1) SHIFT."""

BIAS = "fc.bias"


class SilentReporter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def start(self, config: Config, run_folder: Path) -> None:
        self.events.append(("start", run_folder))

    def stage(self, name: Stage, num_rounds: int) -> None:
        self.events.append(("stage", name, num_rounds))

    def round_done(self, stage: Stage, round_index: int, metrics: Any) -> None:
        self.events.append(("round", stage, round_index, metrics["skipped"]))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def finish(self, summary: Any) -> None:
        self.events.append(("finish", summary["final_accuracy"]))

    def notes(self) -> list[str]:
        return [event[1] for event in self.events if event[0] == "note"]


def answer(partition_id: int, message: Message) -> Reply:
    """A device that learns by raising its last bias and that always keeps the teacher."""
    if is_query(message):
        return query_reply(partition_id)
    if message.metadata.message_type == MessageType.EVALUATE:
        request = EvaluateRequest.from_record(message.content)
        metrics = {"num-examples": 4, "correct": 3, "correct-top5": 4, "loss-sum": 2.0}
        return Reply(partition_id=partition_id, round_index=request.round_index, metrics=metrics)
    return train_reply(partition_id, TrainRequest.from_record(message.content))


def train_reply(partition_id: int, request: TrainRequest) -> Reply:
    state = decode_state(request.model)
    metrics = {"num-examples": 10, "train-loss": 1.0, "train-seconds": 0.5, "coreset-size": 5}
    if request.stage is Stage.CALIBRATION:
        state = {
            name: np.full_like(values, partition_id + 1)
            for name, values in state.items()
            if "input_quantizer" in name
        }
        metrics = {"num-examples": 10}
    elif request.stage is Stage.STATISTICS:
        state = {n: np.full_like(v, partition_id + 1) for n, v in state.items() if "running" in n}
        metrics = {"num-examples": 5 * (partition_id + 1)}
    else:
        state[BIAS] = state[BIAS] + np.float32(SHIFT * (partition_id + 1))
    return Reply(
        partition_id=partition_id,
        round_index=request.round_index,
        update=encode_float(state, "float32", {}),
        teacher_hash=request.teacher_hash,
        metrics=metrics,
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def config_with(changes: dict[str, Any] | None = None) -> Config:
    flat = {
        "data.num-devices": 3,
        "warmup.num-rounds": 2,
        "federation.num-rounds": 3,
        "federation.round-timeout": 1.0,
        "evaluation.threads": 1,
        "evaluation.device-interval": 0,
    }
    return Config.from_flat({**flat, **(changes or {})})


def run(
    run_folder: Path, config: Config, device: Answer = answer
) -> tuple[dict[str, Any], FakeGrid, SilentReporter]:
    grid, reporter = FakeGrid(device), SilentReporter()
    summary = run_federation(grid, config, reporter, run_folder)
    return summary, grid, reporter


def requests_of(grid: FakeGrid) -> list[TrainRequest]:
    return [TrainRequest.from_record(m.content) for m in grid.sent_of(MessageType.TRAIN)]


def test_from_warm_up_to_summary(run_folder: Path) -> None:
    """Three devices raise the bias by 1, 2 and 3 SHIFT: the mean rises by 2 SHIFT in a round.

    Two warm-up rounds make the teacher's bias 4 SHIFT above the start, three rounds more the
    last model's 10 SHIFT.
    """
    summary, grid, reporter = run(run_folder, config_with())
    requests = requests_of(grid)
    assert [request.stage for request in requests] == [Stage.FLOAT] * 6 + [Stage.QUANTIZED] * 9
    assert [request.round_index for request in requests[::3]] == [0, 1, 0, 1, 2]
    start = decode_state(requests[0].model)[BIAS]

    teacher = load_checkpoint(run_folder / "teacher.safetensors", "resnet8", 10, 1)
    np.testing.assert_allclose(teacher[BIAS], start + 4 * SHIFT, rtol=1e-6)
    assert requests[0].teacher_hash == ""
    assert {request.teacher_hash for request in requests[6:]} == {content_hash(teacher)}
    assert summary["teacher_hash"] == content_hash(teacher)
    assert summary["data_fingerprint"] == data_fingerprint(load_dataset("digits"))
    sent_teachers = [request.teacher for request in requests[6:]]
    assert len(set(sent_teachers[:3])) == 1
    assert content_hash(decode_state(sent_teachers[0])) == content_hash(teacher)
    assert sent_teachers[3:] == [b""] * 6

    last = decode_state(requests[-1].model)[BIAS] + 2 * SHIFT
    np.testing.assert_allclose(last, start + 10 * SHIFT, rtol=1e-5)
    packed = load_packed_model(run_folder / "last.fqrc").network
    np.testing.assert_allclose(model_state(packed)[BIAS], last, rtol=1e-6)

    assert [event[:3] for event in reporter.events if event[0] != "note"] == [
        ("start", run_folder),
        ("stage", Stage.FLOAT, 2),
        ("round", Stage.FLOAT, 0),
        ("round", Stage.FLOAT, 1),
        ("stage", Stage.QUANTIZED, 3),
        ("round", Stage.QUANTIZED, 0),
        ("round", Stage.QUANTIZED, 1),
        ("round", Stage.QUANTIZED, 2),
        ("finish", summary["final_accuracy"]),
    ]
    assert json.loads((run_folder / "summary.json").read_text()) == summary
    assert summary["warmup_rounds"] == 2
    assert summary["train_seconds"] == 9 * 0.5


@pytest.mark.parametrize("resumes", [False, True])
def test_no_two_runs_write_into_one_folder(
    run_folder: Path, resumes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run with the same folder begins while the devices of the first train."""
    monkeypatch.setattr(recorder, "CLAIM_SECONDS", 0.01)
    config = config_with({"run.resume": str(run_folder)} if resumes else {})
    outcomes: list[str] = []

    def start_again(partition_id: int, message: Message) -> Reply:
        if not outcomes and not is_query(message):
            with pytest.raises(UserError) as refusal:
                run(run_folder, config)
            outcomes.append(str(refusal.value))
        return answer(partition_id, message)

    summary, _, _ = run(run_folder, config, start_again)
    expected = "another run is writing there" if resumes else "expected a new or empty folder"
    assert expected in outcomes[0]
    assert len(recorded(run_folder)) == 20
    assert json.loads((run_folder / "summary.json").read_text()) == summary
    assert not (run_folder / ".lock").exists()


def test_a_folder_that_another_run_filled_meanwhile_is_left_alone(run_folder: Path) -> None:
    """Both go on in a folder that is not there yet; the other one has its devices first."""
    config = config_with({"run.resume": str(run_folder)})
    is_first = True

    def start_before(partition_id: int, message: Message) -> Reply:
        nonlocal is_first
        if is_first:
            is_first = False
            run(run_folder, config)
        return answer(partition_id, message)

    with pytest.raises(UserError, match="expected a new or empty folder"):
        run(run_folder, config, start_before)
    assert len(recorded(run_folder)) == 20


def test_the_deployed_model_is_the_one_that_was_measured(run_folder: Path) -> None:
    """best.fqrc, measured again, has the best accuracy; last.fqrc the final one."""
    summary, _, _ = run(run_folder, config_with())
    data = load_dataset("digits")
    for name, expected in (("best", "best_accuracy"), ("last", "final_accuracy")):
        model = load_packed_model(run_folder / f"{name}.fqrc").network
        result = evaluate(model, data.test.images, data.test.labels, data.mean, data.std)
        assert result.accuracy == summary[expected]


def test_lines_of_rounds_and_devices(run_folder: Path) -> None:
    summary, grid, _ = run(run_folder, config_with({"evaluation.interval": 2}))
    lines = recorded(run_folder)
    assert [line["kind"] for line in lines] == (["device"] * 3 + ["round"]) * 5
    device = lines[13]
    assert (device["stage"], device["round"], device["partition_id"]) == ("quantized", 2, 1)
    assert (device["status"], device["task"], device["train_loss"]) == ("ok", "train", 1.0)
    rounds = [line for line in lines if line["kind"] == "round"]
    assert ["accuracy" in line for line in rounds] == [False, True, False, True, True]
    quantized = rounds[2:]
    assert summary["upload_bytes"] == sum(line["upload_bytes"] for line in quantized)
    # The updates are float32 here: the comparison must come out even but for a few bytes.
    assert summary["float32_upload_bytes"] == pytest.approx(summary["upload_bytes"], rel=1e-3)
    assert quantized[0]["teacher_bytes"] == sum(len(r.teacher) for r in requests_of(grid)) > 0
    assert quantized[1]["teacher_bytes"] == 0


def test_two_runs_differ_in_seconds_only(tmp_path: Path) -> None:
    config = config_with({"federation.fraction": 0.67})
    runs = [run(tmp_path / name, config)[0] for name in ("a", "b")]
    assert without_wall_clock(runs[0]) == without_wall_clock(runs[1])
    assert reproducible_lines(tmp_path / "a") == reproducible_lines(tmp_path / "b")
    for name in ("last.fqrc", "best.safetensors", "teacher.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_with_a_checkpoint_there_is_no_warm_up(tmp_path: Path, run_folder: Path) -> None:
    state = model_state(create_model("resnet8", num_classes=10, in_channels=1))
    save_checkpoint(tmp_path / "float.safetensors", state, {})
    config = config_with({"model.teacher": str(tmp_path / "float.safetensors")})
    summary, grid, _ = run(run_folder, config)
    assert {request.stage for request in requests_of(grid)} == {Stage.QUANTIZED}
    assert summary["teacher_hash"] == content_hash(state)
    assert not (run_folder / "teacher.safetensors").exists()


def test_activation_steps_come_from_the_devices(run_folder: Path) -> None:
    """Devices answer steps 1, 2 and 3 for the same number of images: the mean is 2."""
    _, grid, _ = run(run_folder, config_with({"quantization.activation-bits": 4}))
    requests = requests_of(grid)
    calibration = [r for r in requests if r.stage is Stage.CALIBRATION]
    assert (len(calibration), {r.teacher for r in calibration}) == (3, {b""})
    state = decode_state(next(r for r in requests if r.stage is Stage.QUANTIZED).model)
    steps = [v for name, v in state.items() if name.endswith("input_quantizer.step")]
    assert steps
    assert {float(step) for step in steps} == {2.0}


def test_statistics_come_from_the_devices_after_the_last_round(run_folder: Path) -> None:
    """Devices with 5, 10 and 15 images answer 1, 2 and 3: the mean is (5 + 20 + 45) / 30. Its
    bytes are no training's."""
    plain = run(run_folder.with_name("plain"), config_with())[0]
    summary, grid, _ = run(run_folder, config_with({"training.batch-norm-images": 8}))
    requests = requests_of(grid)
    assert [r.stage for r in requests[-6:]] == [Stage.QUANTIZED] * 3 + [Stage.STATISTICS] * 3
    trained = decode_state(requests[-1].model)
    assert len(requests[-1].model) < len(requests[-4].model) / 9  # codes: 2 bits of 32, and more
    last = load_packed_model(run_folder / "last.fqrc").network.state_dict()
    statistics = {name: values for name, values in last.items() if "running" in name}
    assert statistics
    for values in statistics.values():
        np.testing.assert_allclose(values, 70 / 30, rtol=1e-6)
    np.testing.assert_allclose(last[BIAS], trained[BIAS], rtol=1e-3)
    assert summary["upload_bytes"] == plain["upload_bytes"]
    assert 0 < summary["statistics_upload_bytes"] < plain["upload_bytes"] / 9
    added = summary["total_upload_bytes"] - plain["total_upload_bytes"]
    assert added == summary["statistics_upload_bytes"]
    asked = [line for line in recorded(run_folder) if line.get("task") == "statistics"]
    assert [(line["round"], line["status"]) for line in asked] == [(3, "ok")] * 3


def test_statistics_come_after_the_last_round_of_asynchronous_training(run_folder: Path) -> None:
    """From all three devices, whoever trained last: 70 / 30 as above."""
    asynchronous = {
        "strategy.name": "fedbuff",
        "strategy.buffer-size": 2,
        "strategy.concurrency": 2,
    }
    run(run_folder, config_with({**asynchronous, "training.batch-norm-images": 8}))
    for name, values in load_packed_model(run_folder / "last.fqrc").network.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(values, 70 / 30, rtol=1e-6)


def test_without_good_statistics_those_of_the_training_stay(run_folder: Path) -> None:
    """Negative variances from all but one device: fewer good replies than a round needs."""

    def device(partition_id: int, message: Message) -> Reply:
        reply = answer(partition_id, message)
        if message.metadata.message_type != MessageType.TRAIN or not partition_id:
            return reply
        if TrainRequest.from_record(message.content).stage is not Stage.STATISTICS:
            return reply
        state = {name: -values for name, values in decode_state(reply.update).items()}
        return replace(reply, update=encode_float(state, "float32", {}))

    config = config_with({"training.batch-norm-images": 8, "federation.min-devices": 2})
    _, grid, reporter = run(run_folder, config, device)
    sent = decode_state(requests_of(grid)[-1].model)
    last = load_packed_model(run_folder / "last.fqrc").network.state_dict()
    for name in sent:
        if "running" in name:
            np.testing.assert_allclose(last[name], sent[name], rtol=1e-2, atol=1e-3)
    assert "statistics of batch normalisation stay those of the training" in reporter.notes()
    (line,) = [x for x in recorded(run_folder) if "statistics_refused" in x]
    assert sum(line["statistics_refused"].values()) == 2


def test_devices_measure_the_model_when_they_are_asked(run_folder: Path) -> None:
    """Every second round, 3 of 4 right on each device."""
    summary, grid, _ = run(run_folder, config_with({"evaluation.device-interval": 2}))
    sent = grid.sent_of(MessageType.EVALUATE)
    assert [EvaluateRequest.from_record(m.content).round_index for m in sent] == [1, 1, 1]
    assert summary["device_accuracy"] == 75.0
    assert summary["evaluation_upload_bytes"] > 0
    evaluated = [line for line in recorded(run_folder) if line.get("task") == "evaluate"]
    assert [line["correct"] for line in evaluated] == [3, 3, 3]


def test_a_round_goes_on_without_the_devices_that_fail(run_folder: Path) -> None:
    """Device 1 diverges in every round, device 2's process dies in the last one."""

    def device(partition_id: int, message: Message) -> Reply | Error:
        if message.metadata.message_type != MessageType.TRAIN:
            return answer(partition_id, message)
        request = TrainRequest.from_record(message.content)
        if partition_id == 1:
            return Reply(
                partition_id=1,
                round_index=request.round_index,
                status=Status.DIVERGED,
                reason="loss is nan in step 0",
            )
        if partition_id == 2 and request.stage is Stage.QUANTIZED and request.round_index == 2:
            return Error(code=8, reason="process died")
        return train_reply(partition_id, request)

    summary, grid, reporter = run(run_folder, config_with({"federation.min-devices": 2}), device)
    assert summary["refused_replies"] == {"diverged": 5, "no-reply": 1}
    assert summary["skipped_rounds"] == 1
    lines = recorded(run_folder, "device")
    assert [line["status"] for line in lines[-3:]] == ["ok", "diverged", "no-reply"]
    assert lines[-1]["reason"] == "process died"
    assert any("device 1: loss is nan in step 0" in note for note in reporter.notes())
    # The skipped round left the model as it was before.
    packed = model_state(load_packed_model(run_folder / "last.fqrc").network)[BIAS]
    np.testing.assert_array_equal(packed, decode_state(requests_of(grid)[-1].model)[BIAS])


def test_a_federation_without_a_good_round_fails(run_folder: Path) -> None:
    def device(partition_id: int, message: Message) -> Reply | None:
        return answer(partition_id, message) if is_query(message) else None

    with pytest.raises(UserError, match=r"stage float: no round of 2 .*no reply within 1 s"):
        run(run_folder, config_with(), device)
    assert not (run_folder / "summary.json").exists()


def test_the_split_is_drawn_when_devices_are_emulated(run_folder: Path) -> None:
    pytest.importorskip("flwr_datasets")
    pytest.importorskip("matplotlib")

    def device(partition_id: int, message: Message) -> Reply:
        if is_query(message):
            return query_reply(partition_id, emulated=1)
        return answer(partition_id, message)

    run(run_folder, config_with({"data.partition": "iid"}), device)
    assert (run_folder / "split.png").read_bytes().startswith(b"\x89PNG")
    assert (run_folder / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.teacher": "none.safetensors"}, "none.safetensors"),
        ({"data.dataset": "folder", "data.root": "/does/not/exist"}, "/does/not/exist"),
        ({"strategy.name": "krum", "strategy.num-malicious": 1}, "krum needs at least 5"),
        ({"data.num-devices": 9, "federation.min-devices": 4}, "expected at least 4"),
        ({"fleet.name": "pi-lab"}, "fleet.name = 'pi-lab': expected none"),
        ({"fleet.over-selection": 1.5}, "over-selection = 1.5: expected 1 without fleet.name"),
        ({"fleet.deadline": 30}, "deadline = 30: expected 0 without fleet.name"),
    ],
    ids=["teacher", "data", "strategy", "devices", "fleet", "over-selection", "deadline"],
)
def test_bad_input_is_named_before_anything_is_written(
    run_folder: Path, changes: dict[str, Any], message: str
) -> None:
    config = config_with({**changes, "federation.round-timeout": 0.01})
    with pytest.raises(UserError, match=message):
        run(run_folder, config)
    assert not run_folder.exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, run_folder: Path) -> None:
    state = model_state(create_model("resnet20", num_classes=10, in_channels=1))
    save_checkpoint(tmp_path / "other.safetensors", state, {})
    config = config_with({"model.teacher": str(tmp_path / "other.safetensors")})
    with pytest.raises(UserError, match=r"other\.safetensors is not a resnet8"):
        run(run_folder, config)
    assert not run_folder.exists()


def test_a_run_does_not_go_on_with_other_images(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(partition_id: int, message: Message) -> Reply:
        if message.metadata.message_type == MessageType.TRAIN:
            request = TrainRequest.from_record(message.content)
            if request.stage is Stage.QUANTIZED and request.round_index == 1:
                raise KeyboardInterrupt
        return answer(partition_id, message)

    with pytest.raises(KeyboardInterrupt):
        run(run_folder, config_with(), killed)
    digits = load_dataset("digits")
    monkeypatch.setattr(
        "server.app.configured_dataset", lambda *_: replace(digits, train=digits.test)
    )
    with pytest.raises(UserError, match=r"the data set is not the one that the run in .* began"):
        run(run_folder, config_with({"run.resume": str(run_folder)}))


def test_a_fleets_deadline_may_be_later_than_the_servers_timeout(run_folder: Path) -> None:
    """Device 0 takes at least 1.6 s, 0.8 s of latency each way, device 1 at least 5 s: it is the
    fourth to answer, with fleet.deadline 60, although device 0's second answer comes when
    federation.round-timeout, 1 s, is long over."""
    links = {"uplink_mbits": 8000.0, "downlink_mbits": 8000.0}
    quick, slow = (profile(100.0, **links, latency_seconds=seconds) for seconds in (0.8, 2.5))
    fedbuff = {"strategy.name": "fedbuff", "strategy.concurrency": 2, "strategy.buffer-size": 1}
    settings = {**fedbuff, "fleet.name": "made", "fleet.deadline": 60.0, "data.num-devices": 2}
    config = config_with({**settings, "federation.num-rounds": 4, "federation.min-devices": 1})
    grid, nodes = make_grid(quick, slow, **config.to_flat())
    nodes.answer = answer
    run_federation(
        grid,
        config,
        SilentReporter(),
        run_folder,
        clock=grid.clock,
        annotate=grid.annotate,
        harness=grid,
    )
    lines = recorded(run_folder, "device")
    trained = [line for line in lines if line["stage"] == "quantized" and line["task"] == "train"]
    assert [line["partition_id"] for line in trained] == [0, 0, 0, 1]
    assert {line["fate"] for line in trained} == {"trained"}


def context_with(run_config: dict[str, Any]) -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)


def test_the_server_app_reads_the_run_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app(FakeGrid(answer), context_with(config_with().to_flat()))
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-resnet8-2w32a-")
    assert (folder / "summary.json").exists()


def test_an_attack_that_nobody_would_make_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices of Flower's engines and real ones are honest: a strategy would seem to resist."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"attack\.name = 'scale': expected 'none'"):
        app(FakeGrid(answer), context_with(config_with({"attack.name": "scale"}).to_flat()))
    assert not list(tmp_path.iterdir())


def test_a_bad_run_config_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="weight-bitz"):
        app(FakeGrid(answer), context_with({"quantization.weight-bitz": 2}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (
            {"model.teacher": "none.safetensors"},
            [0, 1, 2],
            r"^the run is refused: model\.teacher = 'none\.safetensors'",
        ),
        ({"data.dataset": "folder", "data.root": "none"}, [0, 1, 2], "^the run is refused: cannot"),
        # They may be there when it is started again.
        ({"federation.round-timeout": 0.1}, [], "^0 of 0 device"),
    ],
)
def test_a_run_that_cannot_begin_is_refused(
    settings: dict[str, Any],
    nodes: list[int],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        app(FakeGrid(answer, nodes), context_with(config_with(settings).to_flat()))
    assert not list(tmp_path.iterdir())
