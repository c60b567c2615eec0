"""What a device does for each stage of a federation: request in, reply out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from client.batch_fit import fitting_part_size
from client.batch_norm import renew_statistics
from client.device import Device, float_model, quantized_model
from client.effort import Effort, measured_pace, round_effort
from client.quarc import QuarcResult, calibrate_steps, train_on_coresets
from client.received_model import decode_model, receive_model
from client.state import (
    State,
    TeacherStore,
    load_coreset,
    load_pace,
    load_residual,
    load_teacher_views,
    save_coreset,
    save_pace,
    save_residual,
    save_teacher_views,
)
from client.task import TrainingTask, training_task
from client.teacher_views import TeacherViews
from client.trainer import DivergedError, TrainingResult, train
from client.working_model import frozen_teacher, working_model
from common.config import ONLINE, Config
from common.inference import predict_logits
from common.messages import NUM_EXAMPLES, Reply, Status, TrainRequest
from common.models import is_statistic, load_state, model_state
from common.payloads.update_choice import encode_update
from common.payloads.updates import encode_float
from common.qat import activation_step_names
from common.seeding import numpy_generator, torch_generator

OnProgress = Callable[[float], None]
"""Called in every step of a training with the share of all epochs that is done."""


def float_round(
    config: Config,
    device: Device,
    request: TrainRequest,
    records: RecordDict,
    on_progress: OnProgress | None = None,
) -> Reply:
    """A warm-up round: float training with the labels on all local images."""
    with working_model(float_model, config, device) as model:
        load_state(model, decode_model(request.model))
        epochs = config.warmup.local_epochs
        task = replace(
            _task(config, request, epochs=epochs),
            max_part_size=part_size(device, model, config.warmup.batch_size, corrected=False),
            batch_size=config.warmup.batch_size,
            learning_rate=config.warmup.learning_rate,
            schedule="cosine",
            loss="ce",
            correction="none",
        )
        started = time.perf_counter()
        everything = torch.arange(len(device.train))
        generator = torch_generator(
            config.run.seed, "train-float", request.round_index, device.partition_id
        )
        try:
            result = train(
                model,
                None,
                device.dataset,
                device.train,
                everything,
                task,
                generator,
                on_progress=on_progress,
            )
        except DivergedError as error:
            return refusal(device, request, Status.DIVERGED, str(error))
        return Reply(
            partition_id=device.partition_id,
            round_index=request.round_index,
            update=encode_float(model_state(model), "float32", {"round": request.round_index}),
            metrics=_metrics(result, len(device.train), time.perf_counter() - started),
        )


def calibration_round(
    config: Config,
    device: Device,
    request: TrainRequest,
    records: RecordDict,
    on_progress: OnProgress | None = None,
) -> Reply:
    """Activation steps from the device's own images; only these entries are answered."""
    with working_model(quantized_model, config, device) as model:
        load_state(model, decode_model(request.model))
        generator = torch_generator(config.run.seed, "calibrate", device.partition_id)
        calibrate_steps(model, config, device.train, device.dataset, generator)
        state = model_state(model)
        steps = {name: state[name] for name in activation_step_names(model)}
        return _measured(device, request, steps)


def statistics_round(
    config: Config,
    device: Device,
    request: TrainRequest,
    records: RecordDict,
    on_progress: OnProgress | None = None,
) -> Reply:
    """Batch normalisation's statistics of the trained model; only these entries are answered."""
    with working_model(quantized_model, config, device) as model:
        load_state(model, decode_model(request.model))
        batch_size = config.training.batch_size
        task = replace(
            _task(config, request, epochs=config.training.local_epochs),
            max_part_size=part_size(device, model, batch_size, corrected=False),
        )
        generator = torch_generator(config.run.seed, "statistics", device.partition_id)
        num_images = config.training.batch_norm_images
        renew_statistics(
            model, device.dataset, device.train, task, generator, num_images=num_images
        )
        statistics = {
            name: values for name, values in model_state(model).items() if is_statistic(name)
        }
        return _measured(device, request, statistics)


def quantized_round(
    config: Config,
    device: Device,
    request: TrainRequest,
    records: RecordDict,
    on_progress: OnProgress | None = None,
) -> Reply:
    """A QuaRC round: coreset by relative entropy, quantization-aware epochs, packed update."""
    base = receive_model(config, request, records)
    if base is None:
        return refusal(device, request, Status.MODEL_MISSING, "no model is held to change")
    teacher = frozen_teacher(config, device, request)
    if teacher is None:
        return refusal(device, request, Status.TEACHER_MISSING, "no teacher of this hash is kept")
    with working_model(quantized_model, config, device) as student:
        load_state(student, base)
        try:
            effort = round_effort(config, device, request, records)
            outcome = _train_on_coresets(
                config, device, request, records, effort, student, teacher, on_progress
            )
        except DivergedError as error:
            return refusal(device, request, Status.DIVERGED, str(error))
        update, residual = encode_update(
            config.federation,
            student,
            base,
            load_residual(records),
            numpy_generator(config.run.seed, "rounding", *_position(request, device)),
            {"round": request.round_index, "base-hash": request.model_hash},
        )
        save_residual(records, residual)
        if config.is_paced and device.pace is None:
            save_pace(records, measured_pace(outcome, load_pace(records)))
        coreset_size = len(outcome.coreset.indices)
        optional = {}
        if config.training.teacher_views:
            optional["num-teacher-kept"] = outcome.training.num_kept
        metrics = _metrics(outcome.training, coreset_size, outcome.train_seconds)
        is_kept = TeacherStore().version(request.teacher_hash) is not None
        return Reply(
            partition_id=device.partition_id,
            round_index=request.round_index,
            update=update,
            teacher_hash=request.teacher_hash if is_kept else "",
            model_hash=request.model_hash if config.sends_changes else "",
            metrics={
                **metrics,
                "select-seconds": outcome.select_seconds,
                "num-scored": outcome.num_scored,
                "num-teacher-scored": outcome.num_teacher_scored,
                **optional,
            },
        )


def _train_on_coresets(
    config: Config,
    device: Device,
    request: TrainRequest,
    records: RecordDict,
    effort: Effort,
    student: nn.Module,
    teacher: nn.Module,
    on_progress: OnProgress | None,
) -> QuarcResult:
    """All local epochs; the coreset outlives the round."""
    seed, partition_id = config.run.seed, device.partition_id
    images = device.train
    coreset_config, num_epochs = effort
    task = _task(config, request, epochs=config.training.local_epochs)
    max_part_size = part_size(device, student, task.batch_size, corrected=task.is_corrected)
    task = replace(task, num_epochs=num_epochs, max_part_size=max_part_size)

    def teacher_outputs(candidates: Tensor | None) -> Tensor:
        def compute() -> Tensor:
            logits = predict_logits(
                teacher,
                images.images,
                device.dataset,
                batch_size=task.scoring_batch,
                indices=candidates,
                precision=task.precision,
            )
            return logits.softmax(1)

        # A pool is drawn anew for every selection: keeping its outputs would serve nobody.
        if candidates is not None:
            return compute()
        conditions = (config.model.name, device.dataset.mean, device.dataset.std, task.precision)
        return TeacherStore().outputs(request.teacher_hash, images.digest, compute, *conditions)

    views = None
    if config.training.teacher_views:
        views = TeacherViews(
            config.training.teacher_views,
            lambda epoch, view: torch_generator(seed, "views", epoch, view, partition_id),
            load_teacher_views(records, images.digest),
        )
    outcome = train_on_coresets(
        coreset_config,
        task,
        images,
        device.dataset,
        student=student,
        teacher=teacher,
        teacher_outputs=teacher_outputs,
        coreset=load_coreset(records, images.digest),
        generator=torch_generator(seed, "train-quantized", *_position(request, device)),
        selection_generator=lambda epoch: torch_generator(seed, "select", epoch, partition_id),
        views=views,
        on_coreset=lambda coreset: save_coreset(records, coreset, images.digest),
        on_progress=on_progress,
    )
    if coreset_config.selection == ONLINE:
        # Again: training has changed its scores.
        save_coreset(records, outcome.coreset, images.digest)
    if views is not None:
        save_teacher_views(records, views.to_keep())
    return outcome


def _position(request: TrainRequest, device: Device) -> tuple[int, ...]:
    """Where a random stream of this request begins; asked again with one model, elsewhere."""
    again = (request.repetition,) if request.repetition else ()
    return request.round_index, device.partition_id, *again


def _task(config: Config, request: TrainRequest, *, epochs: int) -> TrainingTask:
    return training_task(
        config,
        first_epoch=request.round_index * epochs,
        num_epochs=epochs,
        total_epochs=request.num_rounds * epochs,
        proximal_mu=request.proximal_mu,
    )


def part_size(device: Device, model: nn.Module, batch_size: int, *, corrected: bool) -> int:
    """Most images that this device can pass at a time in training; 0: whole batches."""
    _, channels, height, width = device.train.images.shape
    return fitting_part_size(
        model,
        (channels, height, width),
        batch_size,
        device.max_memory_bytes,
        device.used_memory_bytes,
        corrected=corrected,
    )


def _measured(device: Device, request: TrainRequest, entries: State) -> Reply:
    """Entries that come of a look at the device's images, without training."""
    return Reply(
        partition_id=device.partition_id,
        round_index=request.round_index,
        update=encode_float(entries, "float32", {"round": request.round_index}),
        metrics={NUM_EXAMPLES: len(device.train)},
    )


def _metrics(result: TrainingResult, num_examples: int, seconds: float) -> dict[str, int | float]:
    return {
        NUM_EXAMPLES: num_examples,
        "coreset-size": num_examples,
        "train-loss": result.mean_loss,
        "num-steps": result.num_steps,
        "num-seen": result.num_seen,
        "train-seconds": seconds,
        "select-seconds": 0.0,
    }


def refusal(device: Device, request: TrainRequest, status: Status, reason: str) -> Reply:
    """The reply of a device that has no update to give."""
    return Reply(
        partition_id=device.partition_id,
        round_index=request.round_index,
        status=status,
        reason=reason,
    )
