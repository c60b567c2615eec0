"""Tests of client.app: Flower messages in, Flower messages out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from torch import Tensor, nn
from torch.nn import functional

from client.app import app
from client.device import Device, emulated_device, float_model, quantized_model
from client.rounds import quantized_round
from common.checkpoints import content_hash
from common.config import Config
from common.data.datasets import Dataset
from common.events import EventFile
from common.inference import predict_logits
from common.messages import (
    NUM_EXAMPLES,
    EvaluateRequest,
    Reply,
    Stage,
    Status,
    TrainRequest,
)
from common.models import load_state, model_state
from common.payloads import wire
from common.payloads.updates import decode_state, encode_float
from common.qat import prepare
from tests.unit.fake_grid import identify_as_server

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("flwr_datasets", reason="the split comes with flwr-datasets")

FLAT: dict[str, Any] = {
    "data.num-devices": 20,
    "data.partition": "iid",
    "warmup.local-epochs": 1,
    "federation.update-format": "codes",
}
PARTITION_ID = 4


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDQUARC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_context(flat: dict[str, Any] = FLAT) -> Context:
    return Context(
        run_id=1,
        node_id=77,
        node_config={"partition-id": PARTITION_ID, "num-partitions": 20},
        state=RecordDict(),
        run_config=dict(flat),
    )


def call(record: RecordDict, message_type: str, context: Context) -> Reply:
    identify_as_server()
    message = Message(record, dst_node_id=77, message_type=message_type)
    answer = app(message, context)
    assert answer.metadata.dst_node_id == message.metadata.src_node_id
    return Reply.from_record(answer.content)


def make_device(config: Config) -> Device:
    return emulated_device(config, PARTITION_ID)


def train_request(config: Config, stage: Stage, **changes: Any) -> TrainRequest:
    teacher = float_model(config, make_device(config))
    model = teacher if stage is Stage.FLOAT else prepare(teacher, config.quantization)
    fields: dict[str, Any] = {
        "stage": stage,
        "round_index": 1,
        "num_rounds": 3,
        "model": encode_float(model_state(model), "float32", {}),
        "model_hash": "base",
    }
    return TrainRequest(**{**fields, **changes})


def test_query_says_who_the_device_is_and_no_more() -> None:
    """1,438 training digits over 20 devices: 72 or 71, of which a tenth is held out."""
    reply = call(RecordDict(), MessageType.QUERY, make_context())
    assert (reply.partition_id, reply.status) == (PARTITION_ID, Status.OK)
    assert reply.metrics["num-samples"] in range(60, 68)
    assert reply.metrics.keys() == {NUM_EXAMPLES, "num-samples", "emulated"}
    assert reply.metrics["emulated"] == 1


def test_a_device_says_its_bit_width_where_there_are_several() -> None:
    """Partition 4 of (2, 4, 8) without a node config takes number 4 mod 3 = 1, 4 bits."""
    context = make_context({**FLAT, "federation.mixed-bits": "2,4,8"})
    assert call(RecordDict(), MessageType.QUERY, context).metrics["weight-bits"] == 4
    context.node_config["weight-bits"] = "2,3"
    assert call(RecordDict(), MessageType.QUERY, context).metrics["weight-bits"] == 2


@pytest.mark.parametrize("mixed_bits", ["", "2,8"])
def test_a_device_without_a_bit_width_of_the_runs_declines(mixed_bits: str) -> None:
    context = make_context({**FLAT, "federation.mixed-bits": mixed_bits})
    context.node_config["weight-bits"] = 4
    reply = call(RecordDict(), MessageType.QUERY, context)
    assert reply.status is Status.NO_BITS
    assert reply.reason == f"it trains at 4 bits, not {'2 or 8' if mixed_bits else '2'}"


def test_a_device_trains_at_the_bits_that_it_is_asked_for() -> None:
    """Its answer in codes has 4-bit codes in the inner layers, 8-bit ones in the first."""
    flat = {**FLAT, "federation.mixed-bits": "2,4"}
    config = Config.from_flat(flat).at_bits(4)
    teacher = model_state(float_model(config, make_device(config)))
    teacher["fc.bias"] = teacher["fc.bias"] + 1  # one that no other test has sent
    request = train_request(
        config,
        Stage.QUANTIZED,
        teacher_hash=content_hash(teacher),
        teacher=encode_float(teacher, "float32", {}),
        weight_bits=4,
    )
    reply = call(request.to_record(), MessageType.TRAIN, make_context(flat))
    assert reply.status is Status.OK
    tensors, _ = wire.decode(reply.update)
    bits = {name: t.bits for name, t in tensors.items() if isinstance(t, wire.Codes)}
    assert bits.pop("conv1.weight") == bits.pop("fc.weight") == 8
    assert set(bits.values()) == {4}


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.CALIBRATION])
def test_train(stage: Stage) -> None:
    flat = {**FLAT, "quantization.activation-bits": 4}
    config = Config.from_flat(flat)
    record = train_request(config, stage).to_record()
    started = time.perf_counter()
    reply = call(record, MessageType.TRAIN, make_context(flat))
    elapsed = time.perf_counter() - started
    assert (reply.status, reply.round_index) == (Status.OK, 1)
    assert 0 < reply.metrics["round-seconds"] < elapsed
    # Of an emulated device's sensors nothing is said: they are this machine's.
    assert "paused-seconds" not in reply.metrics
    assert reply.metrics[NUM_EXAMPLES] == len(make_device(config).train)
    names = set(decode_state(reply.update))
    is_step = {name.endswith(".input_quantizer.step") for name in names}
    assert is_step == ({False} if stage is Stage.FLOAT else {True})


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QUANTIZED, Stage.STATISTICS])
def test_a_device_says_why_one_image_is_too_few(stage: Stage) -> None:
    """Digits of 8x8 are halved three times: batch normalisation gets one value a channel."""
    flat = {
        **FLAT,
        "model.name": "mobilenetv2-cifar",
        "warmup.batch-size": 1,
        "training.batch-size": 1,
        "training.batch-norm-images": 1,
    }
    config = Config.from_flat(flat)
    teacher = model_state(float_model(config, make_device(config)))
    changes: dict[str, Any] = {}
    if stage is Stage.QUANTIZED:
        payload = encode_float(teacher, "float32", {})
        changes = {"teacher_hash": content_hash(teacher), "teacher": payload}
    request = train_request(config, stage, **changes)
    reply = call(request.to_record(), MessageType.TRAIN, make_context(flat))
    assert (reply.status, reply.update) == (Status.NO_DATA, b"")
    assert reply.reason.startswith("a pass of one image: ")


def test_a_device_logs_the_rounds_that_it_is_asked_for(tmp_path: Path) -> None:
    """A float one, its second, and a quantized one that it has no teacher for."""
    config, context = Config.from_flat(FLAT), make_context()
    with EventFile(tmp_path / "events.jsonl") as file:
        file.open()
        for stage in (Stage.FLOAT, Stage.QUANTIZED):
            request = train_request(config, stage, teacher_hash="ab")
            call(request.to_record(), MessageType.TRAIN, context)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert all(
        (event["run_id"], event["round"], event["device"], event["task"])
        == ("1", 2, PARTITION_ID, "train")
        for event in events
    )
    assert [(event["event"], event["stage"], event.get("status")) for event in events] == [
        ("round-started", "float", None),
        ("reply-sent", "float", "ok"),
        ("round-started", "quantized", None),
        ("reply-sent", "quantized", "teacher-missing"),
    ]
    assert events[-1]["message"] == "no teacher of this hash is kept"


def test_a_device_keeps_to_the_pace_that_it_is_told() -> None:
    """Of 21 s 5 % are a margin: 19.95 images at 1 s, half an image less for rounding."""
    flat = {
        **FLAT,
        "coreset.selection": "random",
        "coreset.balanced": False,
        "coreset.adaptive": True,
        "federation.round-timeout": 21.0,
        "training.local-epochs": 1,
    }
    config, context = Config.from_flat(flat), make_context(flat)
    state = model_state(float_model(config, make_device(config)))
    state["fc.bias"] = state["fc.bias"] + 2  # one that no other test has sent
    request = train_request(
        config,
        Stage.QUANTIZED,
        teacher_hash=content_hash(state),
        teacher=encode_float(state, "float32", {}),
    )
    context.node_config["seconds-per-sample"] = 1.0
    assert call(request.to_record(), MessageType.TRAIN, context).metrics["coreset-size"] == 19


@pytest.mark.parametrize("max_memory", [0, 10**9])
def test_freed_memory_is_given_back_where_it_is_limited(
    max_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr("client.app.give_back_freed", lambda: given_back.append(True))
    record = train_request(Config.from_flat(FLAT), Stage.CALIBRATION).to_record()
    context = make_context()
    context.node_config["max-memory"] = max_memory
    call(record, MessageType.TRAIN, context)
    assert bool(given_back) == bool(max_memory)


def test_train_keeps_its_state_in_the_context() -> None:
    """A round of QuaRC without its teacher is declined; with it, the coreset is remembered."""
    config, context = Config.from_flat(FLAT), make_context()
    state = model_state(float_model(config, make_device(config)))
    payload = encode_float(state, "float32", {})
    request = train_request(config, Stage.QUANTIZED, teacher_hash=content_hash(state))
    reply = call(request.to_record(), MessageType.TRAIN, context)
    assert reply.status is Status.TEACHER_MISSING
    assert not context.state.array_records
    request = train_request(
        config, Stage.QUANTIZED, teacher_hash=content_hash(state), teacher=payload
    )
    reply = call(request.to_record(), MessageType.TRAIN, context)
    assert reply.status is Status.OK
    assert reply.teacher_hash == content_hash(state)
    assert "coreset" in context.state.array_records


def test_a_teachers_outputs_are_those_of_the_runs_normalisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device's images stay the same, what they are normalised by is up to each run: two runs of
    one normalisation share the teacher's outputs, a third computes its own."""
    config = Config.from_flat({**FLAT, "coreset.selection": "el2n"})
    device = make_device(config)
    state = model_state(float_model(config, device))
    request = train_request(
        config,
        Stage.QUANTIZED,
        teacher_hash=content_hash(state),
        teacher=encode_float(state, "float32", {}),
    )
    seen: list[tuple[float, ...]] = []

    def predict(model: nn.Module, images: Tensor, dataset: Dataset, **settings: Any) -> Tensor:
        seen.append(dataset.mean)
        return predict_logits(model, images, dataset, **settings)

    monkeypatch.setattr("client.rounds.predict_logits", predict)
    means = device.dataset.mean, device.dataset.mean, (0.125,)
    for mean in means:
        of_run = replace(device, dataset=replace(device.dataset, mean=mean))
        quantized_round(config, of_run, request, RecordDict())
    assert seen == [means[0], means[2]]


def test_a_reply_is_the_same_every_time() -> None:
    config = Config.from_flat(FLAT)
    record = train_request(config, Stage.FLOAT).to_record()
    updates = {call(record, MessageType.TRAIN, make_context()).update for _ in range(2)}
    assert len(updates) == 1


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QUANTIZED])
def test_evaluate_measures_the_held_out_images(stage: Stage) -> None:
    """Sums over the images, so that a mean over devices can be taken once, at the end."""
    config = Config.from_flat(FLAT)
    device = make_device(config)
    sent = train_request(config, stage).model
    request = EvaluateRequest(stage=stage, round_index=2, model=sent)
    reply = call(request.to_record(), MessageType.EVALUATE, make_context())

    model = (float_model if stage is Stage.FLOAT else quantized_model)(config, device)
    load_state(model, decode_state(sent))
    logits = predict_logits(model, device.holdout.images, device.dataset)
    ranks = (logits > logits.gather(1, device.holdout.labels[:, None])).sum(1)
    loss = functional.cross_entropy(logits, device.holdout.labels, reduction="sum")
    assert len(device.holdout) > 3
    assert reply.round_index == 2
    assert reply.metrics[NUM_EXAMPLES] == len(device.holdout)
    assert reply.metrics["correct"] == int((ranks == 0).sum())
    assert reply.metrics["correct-top5"] == int((ranks < 5).sum())
    assert reply.metrics["loss-sum"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("max_memory", "used_memory", "batch_size"),
    [(0, 10**6, 64), (10**8, 10**6, 64), (10**6, 10**6, 8), (10**8, 0, 8)],
)
def test_evaluate_keeps_to_the_devices_memory(
    max_memory: int, used_memory: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No limit, one with room for all, and one that is used up: the smallest batch that scores.
    Where nobody says what is used, it is what this process holds, more than 100 MB."""
    seen: list[int] = []

    def predict(*arguments: Any, batch_size: int) -> Tensor:
        seen.append(batch_size)
        return predict_logits(*arguments, batch_size=batch_size)

    monkeypatch.setattr("client.app.predict_logits", predict)
    sent = train_request(Config.from_flat(FLAT), Stage.QUANTIZED).model
    request = EvaluateRequest(stage=Stage.QUANTIZED, round_index=2, model=sent)
    context = make_context()
    context.node_config |= {"max-memory": max_memory, "used-memory": used_memory}
    call(request.to_record(), MessageType.EVALUATE, context)
    assert seen == [batch_size]


def test_evaluate_without_held_out_images() -> None:
    flat = {**FLAT, "data.holdout-fraction": 0.0}
    request = EvaluateRequest(
        stage=Stage.FLOAT,
        round_index=0,
        model=train_request(Config.from_flat(flat), Stage.FLOAT).model,
    )
    reply = call(request.to_record(), MessageType.EVALUATE, make_context(flat))
    assert reply.metrics == {NUM_EXAMPLES: 0, "correct": 0, "correct-top5": 0, "loss-sum": 0.0}


def test_threads_are_those_of_the_run() -> None:
    torch.set_num_threads(1)
    call(RecordDict(), MessageType.QUERY, make_context({**FLAT, "run.threads": 2}))
    assert torch.get_num_threads() == 2


def test_a_bad_run_config_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'training\.epochs'"):
        call(RecordDict(), MessageType.QUERY, make_context({**FLAT, "training.epochs": 1}))


def test_the_split_is_the_configured_one() -> None:
    """Devices hold disjoint images; what is held out is not trained on."""
    config = Config.from_flat(FLAT)
    parts = []
    for partition_id in range(20):
        device = emulated_device(config, partition_id)
        parts += [device.train.images, device.holdout.images]
    assert sum(map(len, parts)) == len(make_device(config).dataset.train)
    unique = np.unique(torch.cat(parts).flatten(1).numpy(), axis=0)
    everything = np.unique(make_device(config).dataset.train.images.flatten(1).numpy(), axis=0)
    assert np.array_equal(unique, everything)
