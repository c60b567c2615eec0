"""Stochastic gradient descent on a small device: torch's, without torch's compiler.

The methods of torch's optimizers say at their first call that they are not to be compiled, and
import the compiler to say it (measured: 150 MB of memory, 1.5 s of processor time in every process;
a device starts one for each message). Nothing is compiled here, so nothing has to be said.
"""

from __future__ import annotations

import inspect

import torch


class LeanSGD(torch.optim.SGD):
    """`torch.optim.SGD` to the last bit; the functions below those that import the compiler."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
