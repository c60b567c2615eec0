"""Models that a process keeps: emulated devices train in them one after the other.

A copy of a model takes longer than the values that a request puts into it, and the frozen teacher
is the same for all devices of a run. A real device starts a process for each message and finds none
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from client.device import Device, float_model, model_shape
from client.state import TeacherStore
from common.config import Config
from common.folding import fold_batch_norm
from common.messages import TrainRequest
from common.models import load_state
from common.payloads.updates import decode_state

MOST_IDLE = 4
"""Working models that are kept: float and quantized ones, of two bit-widths."""

Key = tuple[Any, ...]

_idle: dict[Key, nn.Module] = {}
_teacher: dict[Key, nn.Module] = {}
"""The last one, where there is one."""


@contextmanager
def working_model(
    build: Callable[[Config, Device], nn.Module], config: Config, device: Device
) -> Iterator[nn.Module]:
    """A model to load values into, for one task; nobody else has it meanwhile.

    All of its values, running statistics among them, are those of an earlier task.

    Args:
        build: `float_model` or `quantized_model`.
        config: of the run.
        device: whose images it is for.
    """
    key = (build, config.model, config.quantization, model_shape(device))
    # Taken out, so that a second thread, or a task within this one, builds its own.
    model = _idle.pop(key, None) or build(config, device)
    yield model
    # Not after an error, which may have left a hook or half a calibration in it.
    _idle[key] = model
    while len(_idle) > MOST_IDLE:
        del _idle[next(iter(_idle))]


def frozen_teacher(config: Config, device: Device, request: TrainRequest) -> nn.Module | None:
    """The float teacher that a request names, batch normalisation folded; None: it is not here.

    A payload in the request is kept on disk for the rounds to come, where there is room. The model
    that was made of it is used again as long as that file is there and unchanged.

    Raises:
        ValueError: the payload has another hash than the request says.
    """
    store, teacher_hash = TeacherStore(), request.teacher_hash
    version = store.version(teacher_hash)
    what = (teacher_hash, config.model, model_shape(device))
    if version is not None and (version, *what) in _teacher:
        return _teacher[version, *what]
    state = store.load(teacher_hash)
    if state is None and request.teacher:
        state = decode_state(request.teacher)
        if store.keep(state) != teacher_hash:
            raise ValueError("the teacher's payload does not have the announced hash")
    if state is None:
        return None
    model = float_model(config, device)  # a new one, gone in a moment: a device has little memory
    load_state(model, state)
    teacher = fold_batch_norm(model)
    _teacher.clear()
    version = store.version(teacher_hash)
    if version is not None:
        _teacher[version, *what] = teacher
    return teacher
