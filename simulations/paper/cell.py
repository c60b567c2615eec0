"""One cell: QuaRC on one device with all training images, as a client would do it alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.quarc import QuarcResult, calibrate_steps, train_on_coresets
from client.selection import draw_pool, needs_teacher_outputs
from client.task import training_task
from client.teacher_views import TeacherViews
from client.trainer import DivergedError
from common.checkpoints import content_hash, load_checkpoint, resolve_teacher
from common.config import Config, DataConfig, ModelConfig
from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import Dataset, ImageSet, configured_dataset
from common.errors import UserError
from common.folding import fold_batch_norm
from common.inference import predict_logits, top1
from common.models import create_model, load_state
from common.qat import prepare
from common.seeding import torch_generator
from server.model.evaluation import torch_threads
from server.records.summary import versions
from simulations.paper.folder import CellResult

PARTITION = 0
"""The one device's place in the random streams: those of the first device of a federation."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A float model that students start from and learn from."""

    model: nn.Module
    """In eval mode, on the workbench's torch device."""
    state: dict[str, NDArray[np.float32]]
    accuracy: float
    """Top-1 in percent."""
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """The teacher's softmax outputs on all training images, and what they cost."""

    values: Tensor
    """[n, classes], on the CPU."""
    seconds: float
    cpu_seconds: float


class Workbench:
    """What cells share: the data set, the teacher and its outputs.

    Args:
        device: where models run. Images stay on the CPU and are augmented there; batches are moved.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dataset = lru_cache(maxsize=1)(configured_dataset)
        self.data_fingerprint = lru_cache(maxsize=1)(self._data_fingerprint)
        self.teacher = lru_cache(maxsize=1)(self._teacher)
        self.teacher_outputs = lru_cache(maxsize=1)(self._teacher_outputs)

    @property
    def device_name(self) -> str:
        """ "cpu", or the GPU's name."""
        is_gpu = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if is_gpu else str(self.device)

    def _data_fingerprint(self, data: DataConfig) -> str:
        return data_fingerprint(self.dataset(data))

    def _teacher(self, data: DataConfig, config: ModelConfig) -> Teacher:
        path = find_teacher(data, config)
        dataset = self.dataset(data)
        state = load_checkpoint(
            path, config.name, dataset.train.num_classes, dataset.train.images.shape[1]
        )
        model = float_model(config.name, dataset).to(self.device)
        load_state(model, state)
        folded = fold_batch_norm(model)
        return Teacher(
            model=folded,
            state=state,
            accuracy=top1(folded, dataset.test, dataset),
            content_hash=content_hash(state),
        )

    def _teacher_outputs(
        self, data: DataConfig, config: ModelConfig, precision: str
    ) -> TeacherOutputs:
        teacher = self.teacher(data, config)
        dataset = self.dataset(data)
        started, cpu_started = time.perf_counter(), time.process_time()
        logits = predict_logits(teacher.model, dataset.train.images, dataset, precision=precision)
        values = logits.softmax(1)
        return TeacherOutputs(
            values=values,
            seconds=time.perf_counter() - started,
            cpu_seconds=time.process_time() - cpu_started,
        )


def find_teacher(data: DataConfig, model: ModelConfig) -> Path:
    """The teacher's checkpoint.

    Raises:
        UserError: the setting is empty, or there is no such file.
    """
    path = resolve_teacher(model.teacher, model.name, data.dataset)
    if path is None:
        raise UserError(
            "model.teacher is empty: expected 'shipped' or a checkpoint of the float model "
            "(python -m simulations pretrain makes one)"
        )
    return path


def run_cell(
    config: Config,
    workbench: Workbench,
    on_progress: Callable[[float], None] | None = None,
) -> CellResult:
    """Train and measure one quantized model.

    Args:
        config: settings; ``training.local-epochs`` are all epochs, ``run.seed`` fixes the cell.
        workbench: what cells share.
        on_progress: called in every training step with the share of the epochs that is done.

    Raises:
        UserError: the data or the teacher are missing or damaged.
    """
    with torch_threads(config.run.threads):
        dataset = workbench.dataset(config.data)
        teacher = workbench.teacher(config.data, config.model)
        student = _student(config, dataset, teacher).to(workbench.device)
        result = partial(
            CellResult,
            teacher_accuracy=teacher.accuracy,
            teacher_hash=teacher.content_hash,
            device=workbench.device_name,
            versions=versions(),
            data_fingerprint=workbench.data_fingerprint(config.data),
        )
        try:
            outcome = _train(config, workbench, student, on_progress)
        except DivergedError as error:
            return result(
                accuracy=None,
                diverged=str(error),
                mean_loss=None,
                coreset_size=0,
                num_selections=0,
                num_seen=0,
                select_seconds=0.0,
                train_seconds=0.0,
                select_cpu_seconds=0.0,
                train_cpu_seconds=0.0,
            )
        return result(
            accuracy=top1(student, dataset.test, dataset),
            diverged="",
            mean_loss=outcome.training.mean_loss,
            coreset_size=len(outcome.coreset.indices),
            num_selections=outcome.num_selections,
            num_seen=outcome.training.num_seen,
            select_seconds=outcome.select_seconds,
            train_seconds=outcome.train_seconds,
            select_cpu_seconds=outcome.select_cpu_seconds,
            train_cpu_seconds=outcome.train_cpu_seconds,
        )


def _student(config: Config, dataset: Dataset, teacher: Teacher) -> nn.Module:
    """The quantized model before training: the teacher's weights, calibrated steps."""
    model = float_model(config.model.name, dataset)
    load_state(model, teacher.state)
    student = prepare(model, config.quantization)
    generator = torch_generator(config.run.seed, "calibrate", PARTITION)
    calibrate_steps(student, config, dataset.train, dataset, generator)
    return student


def _train(
    config: Config,
    workbench: Workbench,
    student: nn.Module,
    on_progress: Callable[[float], None] | None,
) -> QuarcResult:
    dataset = workbench.dataset(config.data)
    teacher = workbench.teacher(config.data, config.model)
    seed, epochs = config.run.seed, config.training.local_epochs
    shared = None
    if needs_teacher_outputs(config.coreset.selection) and not _has_pool(config, dataset.train):
        shared = workbench.teacher_outputs(config.data, config.model, config.training.precision)

    def teacher_outputs(candidates: Tensor | None) -> Tensor:
        if candidates is None:
            assert shared is not None
            return shared.values
        images = dataset.train.images
        logits = predict_logits(
            teacher.model,
            images,
            dataset,
            indices=candidates,
            precision=config.training.precision,
        )
        return logits.softmax(1)

    outcome = train_on_coresets(
        config.coreset,
        training_task(config, first_epoch=0, num_epochs=epochs, total_epochs=epochs),
        dataset.train,
        dataset,
        student=student,
        teacher=teacher.model,
        teacher_outputs=teacher_outputs,
        coreset=None,
        statistics_images=config.training.batch_norm_images,
        views=_teacher_views(config),
        generator=torch_generator(seed, "train-quantized", 0, PARTITION),
        selection_generator=lambda epoch: torch_generator(seed, "select", epoch, PARTITION),
        on_progress=on_progress,
    )
    if shared is None:
        return outcome
    # Computed once for all cells, but every cell pays for it: its device would have to.
    return replace(
        outcome,
        select_seconds=outcome.select_seconds + shared.seconds,
        select_cpu_seconds=outcome.select_cpu_seconds + shared.cpu_seconds,
    )


def _teacher_views(config: Config) -> TeacherViews | None:
    if not config.training.teacher_views:
        return None
    return TeacherViews(
        config.training.teacher_views,
        lambda epoch, view: torch_generator(config.run.seed, "views", epoch, view, PARTITION),
    )


def _has_pool(config: Config, images: ImageSet) -> bool:
    return draw_pool(config.coreset, images.labels, torch.Generator()) is not None


def float_model(name: str, dataset: Dataset) -> nn.Module:
    """A new float model for a data set, on the CPU."""
    train = dataset.train
    return create_model(name, num_classes=train.num_classes, in_channels=train.images.shape[1])
