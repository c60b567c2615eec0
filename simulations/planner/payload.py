"""How many bytes the messages of a round have: measured on messages that are really packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import RecordDict
from torch import nn

from common.checkpoints import content_hash
from common.config import Config
from common.errors import UserError
from common.messages import NUM_EXAMPLES, Reply, Stage, TrainRequest, record_bytes
from common.models import create_model, load_state, model_state
from common.payloads.update_choice import encode_update
from common.payloads.updates import Metadata, encode_float
from common.qat import calibrate, prepare
from common.seeding import numpy_generator, torch_generator
from common.units import format_bytes
from server.model.aggregation import State
from server.model.forms import pack_model
from server.model.sent_model import next_model

INPUTS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "digits": (10, (1, 8, 8)),
    "cifar10": (10, (3, 32, 32)),
    "cifar100": (100, (3, 32, 32)),
}
"""Data set -> classes, and channels, height and width of an image."""

REPLY_METRICS = (
    NUM_EXAMPLES,
    "coreset-size",
    "train-loss",
    "num-steps",
    "num-seen",
    "train-seconds",
    "select-seconds",
    "num-scored",
    "num-teacher-scored",
    "round-seconds",
)
"""What a reply says beside its update."""

CHANGE = 1e-3
"""Standard deviation of the change of a weight in the measured update; sizes don't depend on it."""


@dataclass(frozen=True, kw_only=True)
class MessageSizes:
    """Bytes of the messages of a quantization-aware round, serialized."""

    request_bytes: int
    """To a device that has the teacher."""
    first_request_bytes: int
    """To a device that does not have it."""
    reply_bytes: Mapping[int, int]
    """By the weight bits that a device trains at."""
    float32_reply_bytes: int
    """The reply, were its update float32."""
    change_request_bytes: tuple[int, ...] = ()
    """With 1, 2, ... changes in the model's place, to a device that holds the model of so many
    rounds before; one of more rounds before is sent the whole model."""

    def describe_replies(self) -> str:
        """``40 kB``, or ``40 kB at 2 bits, 60 kB at 4 bits`` where devices differ."""
        sizes = self.reply_bytes.items()
        if len(sizes) == 1:
            return ", ".join(format_bytes(size) for _, size in sizes)
        return ", ".join(f"{format_bytes(size)} at {bits} bits" for bits, size in sizes)


def known_inputs(config: Config) -> tuple[int, tuple[int, int, int]]:
    """Classes, and channels, height and width of an image, of the configured data set.

    Raises:
        UserError: they are only known once its images are read.
    """
    if config.data.dataset not in INPUTS:
        raise UserError(
            f"data.dataset = {config.data.dataset!r}: a plan reads no images, expected one of "
            f"{', '.join(INPUTS)}"
        )
    return INPUTS[config.data.dataset]


def measure_messages(config: Config) -> MessageSizes:
    """Pack a request and a reply of the configured model, and measure them.

    Raises:
        UserError: the data set's images have no known shape.
    """
    num_classes, image_shape = known_inputs(config)
    float_model = create_model(
        config.model.name,
        num_classes=num_classes,
        in_channels=image_shape[0],
        generator=torch_generator(config.run.seed, "model"),
    )
    teacher = model_state(float_model)
    students = {
        bits: _student(float_model, config.at_bits(bits), image_shape)
        for bits in config.device_bits
    }
    base = model_state(students[config.quantization.weight_bits])
    model, _ = pack_model(base, config.whole_format)
    digest = "0" * 32
    request = TrainRequest(
        stage=Stage.QUANTIZED,
        round_index=0,
        num_rounds=config.federation.num_rounds,
        model=model,
        model_hash=digest,
        teacher_hash=content_hash(teacher),
        weight_bits=config.quantization.weight_bits if config.federation.mixed_bits else 0,
    )
    # Before an update is made, which moves the students: ``base`` is a view of one.
    change_request_bytes = _change_request_bytes(config, request, base)
    first = replace(request, teacher=encode_float(teacher, "float32", {}))
    return MessageSizes(
        request_bytes=record_bytes(request.to_record()),
        first_request_bytes=record_bytes(first.to_record()),
        reply_bytes={
            bits: record_bytes(_reply(config, request, _update(config, student, digest)))
            for bits, student in students.items()
        },
        float32_reply_bytes=record_bytes(
            _reply(
                config, request, encode_float(base, "float32", {"round": 0, "base-hash": digest})
            )
        ),
        change_request_bytes=change_request_bytes,
    )


def _change_request_bytes(config: Config, request: TrainRequest, base: State) -> tuple[int, ...]:
    """Of requests with as many changes as are worth sending, from one on; none: models go whole."""
    if not config.sends_changes:
        return ()
    generator = numpy_generator(config.run.seed, "plan-downlink")
    model = next_model(None, base, config.federation.downlink_bits, generator)
    sizes: list[int] = []
    while True:
        # In proportion: a step stays above zero.
        state = {
            name: np.asarray(values * np.float32(1 + CHANGE))
            for name, values in model.state.items()
        }
        model = next_model(model, state, config.federation.downlink_bits, generator)
        if len(model.changes) == len(sizes):
            return tuple(sizes)
        changed = replace(request, model=b"", changes=model.changes)
        sizes.append(record_bytes(changed.to_record()))


def _student(
    float_model: nn.Module, config: Config, image_shape: tuple[int, int, int]
) -> nn.Module:
    student = prepare(float_model, config.quantization)
    calibrate(student, [torch.rand(2, *image_shape)], config.quantization)
    return student


def _update(config: Config, student: nn.Module, base_hash: str) -> bytes:
    """A changed model in the configured update format."""
    base = model_state(student)
    generator = numpy_generator(config.run.seed, "plan-update")
    changed = {
        name: np.asarray(
            values + np.float32(CHANGE) * generator.standard_normal(values.shape, np.float32)
        )
        for name, values in base.items()
    }
    load_state(student, changed)
    metadata: Metadata = {"round": 0, "base-hash": base_hash}
    return encode_update(config.federation, student, base, {}, generator, metadata)[0]


def _reply(config: Config, request: TrainRequest, update: bytes) -> RecordDict:
    names = [*REPLY_METRICS]
    if config.training.teacher_views:
        names.append("num-teacher-kept")
    return Reply(
        partition_id=0,
        round_index=0,
        update=update,
        teacher_hash=request.teacher_hash,
        metrics={name: 1.0 if "seconds" in name else 1 for name in names},
    ).to_record()
