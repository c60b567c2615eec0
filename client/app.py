"""The device's Flower app: decode -> select -> train -> encode."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import lru_cache

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from torch.nn import functional

from client.batch_norm import TooFewImagesError
from client.deadline import Pace
from client.device import Device, emulated_device, float_model, quantized_model
from client.health import read_health
from client.local_device import DataFolderError, local_device
from client.memory import give_back_freed
from client.node import NodeSettings
from client.received_model import decode_model
from client.rounds import (
    calibration_round,
    float_round,
    part_size,
    quantized_round,
    refusal,
    statistics_round,
)
from client.state import load_inputs, save_inputs
from client.task import scoring_batch
from client.throttle import PausedTooLongError, Throttle, ThrottleLimits
from client.working_model import working_model
from common.bit_widths import choose_bits
from common.config import Config
from common.events import bound_fields, log_event, print_events_of_a_service
from common.inference import predict_logits
from common.messages import (
    NUM_EXAMPLES,
    WEIGHT_BITS,
    EvaluateRequest,
    QueryRequest,
    Reply,
    Stage,
    Status,
    TrainRequest,
)
from common.models import load_state
from common.settings import Scalar

PAUSED_SHARE = 0.9
"""Of the time that the server waits: a device that still pauses then says so. The rest is for the
messages' ways and the start of this process: what comes later nobody hears."""

logger = logging.getLogger(__name__)
print_events_of_a_service()


class DeviceError(RuntimeError):
    """What a real device says of an error: nothing about its files."""


class NoInputSpecError(RuntimeError):
    """The server has not told this device, or not since it started, what the images are like."""


def keep_errors_private(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """A Flower mod: the details of what went wrong with a device's own images stay in its log.

    Flower would send the text of an exception, and with it names of files and classes.
    """
    node = NodeSettings.from_node_config(context.node_config, context.node_id)
    if not node.data_dir:
        return call_next(message, context)
    with bound_fields(run_id=str(context.run_id), device=node.partition_id):
        try:
            return call_next(message, context)
        except DataFolderError as error:
            logger.error("%s", error)
            log_event("device-declined", error.summary, level=logging.ERROR)
            return _decline(message, node, Status.NO_DATA, error.summary)
        except NoInputSpecError:
            reason = "it was started anew"
            log_event("device-declined", reason, level=logging.WARNING)
            return _decline(message, node, Status.NO_INPUT_SPEC, reason)
        except Exception as error:
            logger.exception("this device could not do what the server asked for")
            log_event("device-failed", level=logging.ERROR, error=type(error).__name__)
            raise DeviceError("the device failed; its own log says why") from None


app = ClientApp(mods=[keep_errors_private])

ROUNDS = {
    Stage.FLOAT: float_round,
    Stage.CALIBRATION: calibration_round,
    Stage.QUANTIZED: quantized_round,
    Stage.STATISTICS: statistics_round,
}


@app.query()
def query(message: Message, context: Context) -> Message:
    """Who this device is; nothing about its images leaves it but their number."""
    node = NodeSettings.from_node_config(context.node_config, context.node_id)
    if node.data_dir:
        save_inputs(context.state, QueryRequest.from_record(message.content).inputs)
    config, device = _setup(context)
    bits = choose_bits(config.device_bits, node.weight_bits, device.partition_id)
    if bits is None:
        reason = f"it trains at {_listed(node.weight_bits)} bits, not {_listed(config.device_bits)}"
        return _decline(message, node, Status.NO_BITS, reason)
    metrics = {"num-samples": len(device.train), "emulated": int(device.emulated)}
    if config.federation.mixed_bits:
        metrics[WEIGHT_BITS] = bits
    return _answer(message, Reply(partition_id=device.partition_id, metrics=metrics))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of training: float, calibration or quantization-aware."""
    config, device = _setup(context)
    request = TrainRequest.from_record(message.content)
    if request.weight_bits:
        config = config.at_bits(request.weight_bits)
    throttle = None if device.emulated else _throttle(config, context)
    fields = {
        "run_id": str(context.run_id),
        "stage": request.stage.value,
        "round": request.round_index + 1,
        "device": device.partition_id,
    }
    with bound_fields(**fields):
        log_event("round-started", task="train")
        reply = _train(config, device, request, context, throttle)
        log_event("reply-sent", reply.reason, task="train", status=reply.status.value)
    if device.max_memory_bytes:
        give_back_freed()  # the SuperNode, which takes the reply, is within the same limit
    return _answer(message, reply)


def _train(
    config: Config,
    device: Device,
    request: TrainRequest,
    context: Context,
    throttle: Throttle | None,
) -> Reply:
    started = time.perf_counter()
    try:
        reply = ROUNDS[request.stage](config, device, request, context.state, throttle)
    except PausedTooLongError as error:
        reply = refusal(device, request, Status.PAUSED, str(error))
    except TooFewImagesError as error:
        reply = refusal(device, request, Status.NO_DATA, str(error))
    metrics = {**reply.metrics, "round-seconds": time.perf_counter() - started}
    if throttle is not None:
        metrics |= throttle.metrics()
    return replace(reply, metrics=metrics)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global model, as deployed, on the device's own held-out images."""
    config, device = _setup(context)
    request = EvaluateRequest.from_record(message.content)
    if request.weight_bits:
        config = config.at_bits(request.weight_bits)
    build = float_model if request.stage is Stage.FLOAT else quantized_model
    metrics = {
        NUM_EXAMPLES: len(device.holdout),
        "correct": 0,
        "correct-top5": 0,
        "loss-sum": 0.0,
    }
    with working_model(build, config, device) as model:
        load_state(model, decode_model(request.model))
        if len(device.holdout):
            whole = config.evaluation.batch_size
            max_part_size = part_size(device, model, whole, corrected=False)
            logits = predict_logits(
                model,
                device.holdout.images,
                device.dataset,
                batch_size=scoring_batch(max_part_size, whole),
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
    config = _config(tuple((key, type(value), value) for key, value in context.run_config.items()))
    node = NodeSettings.from_node_config(context.node_config, context.node_id)
    threads = node.threads or config.run.threads
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if node.data_dir:
        device = _local_device(config, node, context.state)
    else:
        device = emulated_device(config, node.partition_id, node.data_share)
    return config, replace(
        device,
        pace=Pace.from_figures(context.node_config),
        max_memory_bytes=node.max_memory,
        used_memory_bytes=node.used_memory or None,
    )


@lru_cache(maxsize=2)
def _config(settings: tuple[tuple[str, type, Scalar], ...]) -> Config:
    """The settings of a run config, with types: 1 and True are equal.

    Kept: the emulated devices of one process are sent the same, and checking it takes a while.
    """
    return Config.from_flat({key: value for key, _, value in settings})


def _local_device(config: Config, node: NodeSettings, records: RecordDict) -> Device:
    inputs = load_inputs(records)
    if inputs is None:
        raise NoInputSpecError
    return local_device(
        node.data_dir,
        inputs,
        partition_id=node.partition_id,
        holdout_fraction=config.data.holdout_fraction,
        seed=config.run.seed,
    )


def _throttle(config: Config, context: Context) -> Throttle:
    node = NodeSettings.from_node_config(context.node_config, context.node_id)
    return Throttle(
        ThrottleLimits(
            max_celsius=node.max_temperature,
            min_battery_percent=node.min_battery,
            max_round_seconds=PAUSED_SHARE * config.federation.round_timeout,
        ),
        read_health,
    )


def _decline(message: Message, node: NodeSettings, status: Status, reason: str) -> Message:
    return _answer(message, Reply(partition_id=node.partition_id, status=status, reason=reason))


def _listed(bits: tuple[int, ...]) -> str:
    return " or ".join(map(str, bits))


def _answer(message: Message, reply: Reply) -> Message:
    return Message(content=reply.to_record(), reply_to=message)
