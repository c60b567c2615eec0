"""The device's Flower app: decode -> select -> train -> encode."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch.nn import functional

from client.device import Device, emulated_device, float_model, quantized_model
from client.rounds import calibration_round, float_round, quantized_round
from common.config import Config
from common.inference import predict_logits
from common.messages import NUM_EXAMPLES, EvaluateRequest, Reply, Stage, TrainRequest
from common.models import load_state
from common.updates import decode_state

app = ClientApp()

ROUNDS = {
    Stage.FLOAT: float_round,
    Stage.CALIBRATION: calibration_round,
    Stage.QUANTIZED: quantized_round,
}


@app.query()
def query(message: Message, context: Context) -> Message:
    """Who this device is; nothing about its images leaves it but their number."""
    _, device = _setup(context)
    metrics = {"num-samples": len(device.train), "emulated": 1}
    return _answer(message, Reply(partition_id=device.partition_id, metrics=metrics))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of training: float, calibration or quantization-aware."""
    config, device = _setup(context)
    request = TrainRequest.from_record(message.content)
    started = time.perf_counter()
    reply = ROUNDS[request.stage](config, device, request, context.state)
    metrics = {**reply.metrics, "round-seconds": time.perf_counter() - started}
    return _answer(message, replace(reply, metrics=metrics))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global model, as deployed, on the device's own held-out images."""
    config, device = _setup(context)
    request = EvaluateRequest.from_record(message.content)
    build = float_model if request.stage is Stage.FLOAT else quantized_model
    model = build(config, device)
    load_state(model, decode_state(request.model))
    metrics = {
        NUM_EXAMPLES: len(device.holdout),
        "correct": 0,
        "correct-top5": 0,
        "loss-sum": 0.0,
    }
    if len(device.holdout):
        logits = predict_logits(
            model, device.holdout.images, device.dataset, batch_size=config.evaluation.batch_size
        )
        labels = device.holdout.labels
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
        metrics["correct"] = int((top5[:, 0] == labels).sum())
        metrics["correct-top5"] = int((top5 == labels[:, None]).sum())
        metrics["loss-sum"] = float(functional.cross_entropy(logits, labels, reduction="sum"))
    reply = Reply(
        partition_id=device.partition_id, round_index=request.round_index, metrics=metrics
    )
    return _answer(message, reply)


def _setup(context: Context) -> tuple[Config, Device]:
    config = Config.from_flat(context.run_config)
    if torch.get_num_threads() != config.run.threads:
        torch.set_num_threads(config.run.threads)
    return config, emulated_device(config, int(context.node_config["partition-id"]))


def _answer(message: Message, reply: Reply) -> Message:
    return Message(content=reply.to_record(), reply_to=message)
