"""The optimizer of a training: SGD in the paper's groups, and its learning rate over all rounds.

SGD is torch's, without torch's compiler. The methods of torch's optimizers say at their first call
that they are not to be compiled, and import the compiler to say it (measured: 150 MB of memory,
1.5 s of processor time in every process; a device starts one for each message). Nothing is compiled
here, so nothing has to be said.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn

from client.task import TrainingTask

ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
"""The usual shape of a one-cycle schedule."""


class LeanSGD(torch.optim.SGD):
    """`torch.optim.SGD` to the last bit; the functions below those that import the compiler."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def make_optimizer(model: nn.Module, task: TrainingTask) -> torch.optim.SGD:
    """SGD with Nesterov momentum in the paper's groups.

    Weights decay; biases and batch normalisation do not; quantizer steps and offsets do not and
    learn more slowly.
    """
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "plain": [], "steps": []}
    for name, parameter in model.named_parameters():
        if "quantizer." in name:
            groups["steps"].append(parameter)
        elif parameter.dim() > 1:
            groups["weights"].append(parameter)
        else:
            groups["plain"].append(parameter)
    scales = {"weights": 1.0, "plain": 1.0, "steps": task.step_learning_rate_scale}
    return LeanSGD(
        [
            {
                "params": parameters,
                "base_lr": task.learning_rate * scales[name],
                "weight_decay": task.weight_decay if name == "weights" else 0.0,
            }
            for name, parameters in groups.items()
            if parameters
        ],
        lr=task.learning_rate,
        momentum=task.momentum,
        nesterov=task.momentum > 0,
        fused=True,  # measured, one thread, ResNet-20: 0.3 instead of 6 ms a step
    )


def set_learning_rate(optimizer: torch.optim.SGD, factor: float) -> None:
    """Set every group to ``factor`` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def schedule_factor(schedule: str, progress: float) -> float:
    """What falls, relative to its start, after ``progress`` in [0, 1] of all rounds."""
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "one-cycle":
        return one_cycle_factor(progress)
    return 1.0


def one_cycle_factor(progress: float) -> float:
    """Up from 1/25 over the first 30 %, then down to 0, both as a cosine (Smith and Topin 2019)."""
    if progress < ONE_CYCLE_RISE:
        rise = 0.5 * (1.0 - math.cos(math.pi * progress / ONE_CYCLE_RISE))
        return ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * rise
    fall = (progress - ONE_CYCLE_RISE) / (1.0 - ONE_CYCLE_RISE)
    return 0.5 * (1.0 + math.cos(math.pi * fall))
