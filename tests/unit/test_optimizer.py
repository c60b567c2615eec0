"""Tests of client.optimizer: SGD is torch's and loads nothing that a device does not need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from client.optimizer import (
    LeanSGD,
    make_optimizer,
    one_cycle_factor,
    schedule_factor,
    set_learning_rate,
)
from client.task import TrainingTask, training_task
from common.config import Config, QuantizationConfig
from common.models import create_model
from common.qat import prepare

ROOT = Path(__file__).parents[2]

HEAVY = ("ray", "pandas", "matplotlib", "pyarrow", "sklearn", "datasets", "torchvision")
"""What a device has no room for."""

ONE_STEP = """
import sys, torch
import client.app
from client.optimizer import LeanSGD
from common.config import Config
from common.models import create_model
from common.qat import prepare
model = prepare(create_model("resnet8", num_classes=2), Config().quantization)
optimizer = LeanSGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
model(torch.zeros(2, 3, 8, 8)).sum().backward()
optimizer.step()
optimizer.zero_grad(set_to_none=True)
print(*sys.modules)
"""


def trained(kind: type[torch.optim.SGD]) -> tuple[list[torch.Tensor], int]:
    """Parameters after three steps, and how often a hook was called."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    groups: list[dict[str, Any]] = [
        {"params": [model.weight], "weight_decay": 0.1},
        {"params": [model.bias]},
    ]
    optimizer = kind(
        groups,
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        fused=True,
    )
    calls: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 5, generator=generator)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], len(calls)


def test_it_is_torchs_to_the_last_bit() -> None:
    ours, our_calls = trained(LeanSGD)
    torchs, _ = trained(torch.optim.SGD)
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    assert our_calls == 3


@pytest.mark.timeout(600)
def test_a_training_step_of_the_client_app_imports_nothing_heavy() -> None:
    """Torch's compiler among it: 150 MB that no device uses."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "client.app" in loaded
    assert not loaded & {*HEAVY, "torch._dynamo", "torch._inductor", "sympy"}


def make_task(**changes: Any) -> TrainingTask:
    """The default task with other fields."""
    task = training_task(Config(), first_epoch=0, num_epochs=1, total_epochs=1)
    return replace(task, **changes)


def make_model(**quantization: Any) -> nn.Module:
    model = create_model("resnet8", num_classes=3, in_channels=1)
    return prepare(model, QuantizationConfig(**{"weight_bits": 2, **quantization}))


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "progress", "expected"),
        [
            # (1 + cos(pi p)) / 2: cos(pi / 3) = 1/2
            ("cosine", 0.0, 1.0),
            ("cosine", 1 / 3, 0.75),
            ("cosine", 0.5, 0.5),
            ("cosine", 1.0, 0.0),
            ("linear", 0.0, 1.0),
            ("linear", 0.25, 0.75),
            ("linear", 1.0, 0.0),
            ("constant", 0.0, 1.0),
            ("constant", 1.0, 1.0),
            # half of the rise from 1/25 to 1, its top at 30 %, half of the fall (65 %), the end
            ("one-cycle", 0.0, 0.04),
            ("one-cycle", 0.15, 0.52),
            ("one-cycle", 0.3, 1.0),
            ("one-cycle", 0.65, 0.5),
            ("one-cycle", 1.0, 0.0),
        ],
    )
    def test_factor(self, schedule: str, progress: float, expected: float) -> None:
        assert schedule_factor(schedule, progress) == pytest.approx(expected, abs=1e-12)

    def test_one_cycle_has_no_jump(self) -> None:
        assert one_cycle_factor(0.3 - 1e-9) == pytest.approx(one_cycle_factor(0.3), abs=1e-6)


class TestGroups:
    def groups(self, **changes: Any) -> dict[str, dict[str, Any]]:
        """Parameter name -> its group, of an LSQ+ model: steps and an offset."""
        model = make_model(activation_bits=4, quantizer="lsq+")
        optimizer = make_optimizer(model, make_task(**changes))
        by_id = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        named = dict(model.named_parameters())
        assert by_id.keys() == {id(parameter) for parameter in named.values()}
        return {name: by_id[id(parameter)] for name, parameter in named.items()}

    def test_weights_decay_and_nothing_else_does(self) -> None:
        groups = self.groups(weight_decay=0.25)
        for name, group in groups.items():
            decays = (
                name.endswith("weight") and ".bn" not in f".{name}" and "downsample.1" not in name
            )
            assert group["weight_decay"] == (0.25 if decays else 0.0), name

    def test_steps_and_offsets_learn_more_slowly(self) -> None:
        groups = self.groups(learning_rate=0.5, step_learning_rate_scale=0.1)
        assert "conv1.input_quantizer.offset" in groups
        for name, group in groups.items():
            slow = name.endswith((".step", ".offset"))
            assert group["base_lr"] == pytest.approx(0.05 if slow else 0.5), name

    def test_nesterov_momentum(self) -> None:
        assert all(
            g["nesterov"] and g["momentum"] == 0.9 for g in self.groups(momentum=0.9).values()
        )
        assert not any(g["nesterov"] for g in self.groups(momentum=0.0).values())

    def test_per_channel_steps_are_no_weights(self) -> None:
        """They have the weights' number of dimensions, but do not decay."""
        model = make_model(granularity="channel")
        optimizer = make_optimizer(model, make_task())
        step = model.get_parameter("layer1.0.conv1.weight_quantizer.step")
        (group,) = [g for g in optimizer.param_groups if any(p is step for p in g["params"])]
        assert step.dim() == 4
        assert group["weight_decay"] == 0.0

    def test_set_learning_rate(self) -> None:
        optimizer = make_optimizer(
            make_model(), make_task(learning_rate=0.5, step_learning_rate_scale=0.1)
        )
        for factor in (0.5, 0.2):
            set_learning_rate(optimizer, factor)
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx([0.5 * factor, 0.5 * factor, 0.05 * factor])
