"""The lean optimizer is torch's, and a device's process loads nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from client.optimizer import LeanSGD

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
