"""Where the harness's own trainings run: the GPU when there is one."""

from __future__ import annotations

import torch

from common.errors import UserError


def torch_device(name: str | None) -> torch.device:
    """The torch device of a name; None: CUDA when it is there, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r}: expected cpu or cuda")
    return device
