"""Tests of client.working_model: models that emulated devices use one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.device import Device, float_model, quantized_model
from client.state import TEACHER_FILE, TeacherStore
from client.working_model import MOST_IDLE, frozen_teacher, working_model
from common.checkpoints import content_hash
from common.config import Config, ModelConfig
from common.data.datasets import ImageSet
from common.messages import Stage, TrainRequest
from common.models import model_state
from common.payloads.updates import State, encode_float
from tests.unit.datasets import dataset_of

CONFIG = replace(Config(), model=ModelConfig(name="resnet8"))


def make_device(num_classes: int = 3) -> Device:
    images = ImageSet(
        images=torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
        labels=torch.arange(4) % num_classes,
        class_names=tuple(map(str, range(num_classes))),
    )
    dataset = dataset_of(images, mean=0.5, std=0.5)
    return Device(partition_id=0, dataset=dataset, train=images, holdout=images)


class TestWorkingModel:
    def test_the_next_task_has_the_same_model(self) -> None:
        device = make_device()
        with working_model(float_model, CONFIG, device) as first:
            pass
        with working_model(float_model, CONFIG, device) as second:
            assert second is first

    def test_nobody_else_has_it_meanwhile(self) -> None:
        device = make_device()
        with (
            working_model(float_model, CONFIG, device) as outer,
            working_model(float_model, CONFIG, device) as inner,
        ):
            assert inner is not outer

    def test_a_model_is_not_used_again_after_an_error(self) -> None:
        """A calibration that broke off would have left it observing, not quantizing."""
        device = make_device()
        with pytest.raises(RuntimeError), working_model(float_model, CONFIG, device) as broken:
            raise RuntimeError
        with working_model(float_model, CONFIG, device) as model:
            assert model is not broken

    def test_kinds_are_kept_apart(self) -> None:
        with working_model(float_model, CONFIG, make_device()) as plain:
            pass
        with working_model(quantized_model, CONFIG, make_device()) as quantized:
            assert quantized is not plain
        with working_model(float_model, CONFIG, make_device(num_classes=2)) as smaller:
            assert smaller.fc.out_features == 2  # type: ignore[union-attr]

    def test_few_are_kept(self) -> None:
        """The first of MOST_IDLE + 1 kinds is forgotten when the last is given back."""
        first = make_device(num_classes=2)
        with working_model(float_model, CONFIG, first) as forgotten:
            pass
        for extra in range(MOST_IDLE):
            with working_model(float_model, CONFIG, make_device(num_classes=3 + extra)):
                pass
        with working_model(float_model, CONFIG, first) as model:
            assert model is not forgotten


class TestFrozenTeacher:
    @pytest.fixture(autouse=True)
    def cache(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path_factory.mktemp("cache")))

    def teacher_state(self) -> State:
        return model_state(float_model(CONFIG, make_device()))

    def request(self, state: State, *, with_payload: bool) -> TrainRequest:
        payload = encode_float(state, "float32", {}) if with_payload else b""
        return TrainRequest(
            stage=Stage.QUANTIZED,
            round_index=0,
            num_rounds=1,
            model=b"",
            model_hash="",
            teacher_hash=content_hash(state),
            teacher=payload,
        )

    def test_is_made_once(self) -> None:
        state, device = self.teacher_state(), make_device()
        first = frozen_teacher(CONFIG, device, self.request(state, with_payload=True))
        assert first is not None
        assert frozen_teacher(CONFIG, device, self.request(state, with_payload=False)) is first
        assert frozen_teacher(CONFIG, device, self.request(state, with_payload=True)) is first

    def test_is_what_the_request_names(self) -> None:
        state = self.teacher_state()
        other = {**state, "fc.bias": state["fc.bias"] + np.float32(1)}
        for wanted in (state, other, state):
            teacher = frozen_teacher(CONFIG, make_device(), self.request(wanted, with_payload=True))
            assert teacher is not None
            assert np.array_equal(teacher.fc.bias.numpy(), wanted["fc.bias"])  # type: ignore[union-attr, operator]

    def test_is_not_here_without_its_file(self) -> None:
        """What a process still holds does not hide that a device has lost its disk."""
        state, device = self.teacher_state(), make_device()
        assert frozen_teacher(CONFIG, device, self.request(state, with_payload=True)) is not None
        file = TeacherStore().root / content_hash(state) / TEACHER_FILE
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert frozen_teacher(CONFIG, device, self.request(state, with_payload=False)) is None
        assert frozen_teacher(CONFIG, device, self.request(state, with_payload=True)) is not None
        file.unlink()
        assert frozen_teacher(CONFIG, device, self.request(state, with_payload=False)) is None

    def test_refuses_a_payload_of_another_hash(self) -> None:
        request = replace(self.request(self.teacher_state(), with_payload=True), teacher_hash="ab")
        with pytest.raises(ValueError, match="announced hash"):
            frozen_teacher(CONFIG, make_device(), request)
