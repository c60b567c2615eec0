"""The arithmetic of forward and backward passes: float32, or bfloat16 where that is faster.

Settings are checked against the names here: torch, which takes seconds to load, is imported late.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16")


def forward_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context whose convolutions and linear layers multiply in ``precision``.

    With bfloat16 (torch's autocast) weights, gradients, quantizer steps and batch normalisation's
    statistics stay float32; layers' outputs are bfloat16, logits as well: `Tensor.float` them.
    Meant for forward passes; backward ones follow by themselves.

    Args:
        precision: one of ``PRECISIONS``.
        device: where the model is.
    """
    if precision == "float32":
        return nullcontext()
    import torch

    # No cache of cast weights: quantized ones are new in every pass, and a kept one would be stale
    # after a step of the optimizer.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
