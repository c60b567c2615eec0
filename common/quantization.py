"""Uniform quantization with a learned step: pure functions on tensors.

LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020) and LSQ+ (Bhalgat et al., CVPRW
2020). A value v becomes the integer code clamp(round((v - offset) / step), Q_N, Q_P), and
dequantizes to step * code + offset. The fake-quantized value of training is exactly what the
integer code dequantizes to.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MIN_BITS = 2
MAX_BITS = 8
SMALLEST_STEP = 1e-8
"""Steps are kept above this: a step of zero divides by zero, a negative one flips the codes."""

BOUND_TOLERANCE = 1e-4
"""In steps. A weight that was dequantized from the outermost code lies on the bound but for
rounding; it counts as inside, or no gradient would ever move it again."""

STEP_CANDIDATES = 64


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """The smallest and largest code, (Q_N, Q_P).

    Signed: (-2^(b-1), 2^(b-1) - 1), two bits give (-2, 1). Unsigned: (0, 2^b - 1).

    Raises:
        ValueError: if ``bits`` is outside 2-8.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits = {bits}: expected {MIN_BITS} to {MAX_BITS}")
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def quantize(
    values: Tensor, step: Tensor, q_n: int, q_p: int, offset: Tensor | None = None
) -> Tensor:
    """Codes of ``values`` as a float tensor of integers, clamp(round((v - offset) / step)).

    Args:
        values: any shape.
        step: broadcastable to ``values``, > 0.
        q_n: smallest code.
        q_p: largest code.
        offset: broadcastable to ``values``; absent: 0 (LSQ).
    """
    shifted = values / step if offset is None else (values - offset).div_(step)
    return shifted.clamp_(q_n, q_p).round_()


def dequantize(codes: Tensor, step: Tensor, offset: Tensor | None = None) -> Tensor:
    """step * code (+ offset), float32."""
    values = codes.to(step.dtype) * step
    return values if offset is None else values.add_(offset)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize with LSQ's gradients (ICLR 2020, equations 3 and 5).

    With u = (v - offset) / step: inside the range dv is passed through, the step's gradient is
    round(u) - u and the offset's is 0; outside they are 0, Q_N or Q_P, and 1 (LSQ+, eq. 5).

    Input and output are saved: the layer before keeps the one and the layer behind the other
    anyway. Summed over the values that share a step, its gradient times the step is
    <g, output> - <dv, v> - offset <g - dv, 1>: no temporary but dv, which is wanted as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        step: Tensor,
        offset: Tensor | None,
        q_n: int,
        q_p: int,
        gradient_scale: float,
    ) -> Tensor:
        output = quantize(values, step, q_n, q_p, offset).mul_(step)
        if offset is not None:
            output.add_(offset)
        ctx.save_for_backward(values, step, offset, output)
        ctx.range = (q_n, q_p)
        ctx.gradient_scale = gradient_scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, step, offset, output = ctx.saved_tensors
        values_gradient = _pass_inside(gradient, values, step, offset, *ctx.range)
        step_gradient = _inner_product(gradient, output, step)
        step_gradient -= _inner_product(values_gradient, values, step)
        offset_gradient = None
        if offset is not None:
            outside = _sum_to(gradient, step) - _sum_to(values_gradient, step)
            step_gradient -= offset * outside
            offset_gradient = outside * ctx.gradient_scale
        step_gradient.div_(step).mul_(ctx.gradient_scale)
        return values_gradient, step_gradient, offset_gradient, None, None, None


def fake_quantize(
    values: Tensor,
    step: Tensor,
    q_n: int,
    q_p: int,
    *,
    offset: Tensor | None = None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """Quantize and dequantize ``values``, differentiable in values, step and offset.

    Args:
        values: any shape.
        step: broadcastable to ``values``, > 0.
        q_n: smallest code.
        q_p: largest code.
        offset: of the step's shape; absent: 0 (LSQ).
        gradient_scale: factor on the step's and the offset's gradient, see
            :func:`step_gradient_scale`.
    """
    return _FakeQuantize.apply(values, step, offset, q_n, q_p, gradient_scale)  # type: ignore[no-untyped-call]


def step_gradient_scale(num_values: int, q_p: int) -> float:
    """LSQ's gradient scale 1 / sqrt(N Q_P) (section 2.2), N values sharing one step."""
    return 1.0 / math.sqrt(num_values * q_p)


def lsq_step(values: Tensor, q_p: int, *, per_channel: bool = False) -> Tensor:
    """LSQ's initial step 2 mean|v| / sqrt(Q_P): shape () or, per channel, [channels, 1, ...]."""
    magnitude = values.abs()
    mean = magnitude.flatten(1).mean(1) if per_channel else magnitude.mean()
    step = (2.0 * mean / math.sqrt(q_p)).clamp_min(SMALLEST_STEP)
    return _per_channel_shape(step, values) if per_channel else step


def lsq_plus_step(values: Tensor, q_n: int, *, per_channel: bool = False) -> Tensor:
    """LSQ+'s initial weight step max(|mu - 3 sigma|, |mu + 3 sigma|) / |Q_N| (section 3.2).

    Shape () or, per channel, [channels, 1, ...].
    """
    rows = values.flatten(1) if per_channel else values.reshape(1, -1)
    deviation, mean = torch.std_mean(rows, dim=1, correction=0)
    step = ((mean.abs() + 3.0 * deviation) / -q_n).clamp_min(SMALLEST_STEP)
    return _per_channel_shape(step, values) if per_channel else step.reshape(())


def least_squares_step(values: Tensor, q_n: int, q_p: int, *, per_channel: bool = False) -> Tensor:
    """The step of least squared quantization error among candidates max|v| k / (64 Q), k = 1...64.

    Starting closer to the float weights than LSQ's rule saves training where there is little of
    it. Q is the smaller magnitude of Q_N and Q_P that is not 0: with the widest candidate nothing
    is clipped. Shape () or, per channel, [channels, 1, ...].
    """
    rows = values.flatten(1) if per_channel else values.reshape(1, -1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST_STEP)
    widest = largest / min(-q_n or q_p, q_p)
    best_step = widest.clone()
    best_error = torch.full_like(best_step, math.inf)
    for candidate in range(1, STEP_CANDIDATES + 1):
        step = widest * (candidate / STEP_CANDIDATES)
        error = quantize(rows, step, q_n, q_p).mul_(step).sub_(rows).square_().sum(1, keepdim=True)
        better = error < best_error
        best_step = torch.where(better, step, best_step)
        best_error = torch.where(better, error, best_error)
    best_step = best_step.clamp_min(SMALLEST_STEP)
    return _per_channel_shape(best_step, values) if per_channel else best_step.reshape(())


def _per_channel_shape(step: Tensor, values: Tensor) -> Tensor:
    return step.reshape(-1, *([1] * (values.dim() - 1)))


def _pass_inside(
    gradient: Tensor, values: Tensor, step: Tensor, offset: Tensor | None, q_n: int, q_p: int
) -> Tensor:
    """``gradient`` where ``values`` is within the range, 0 elsewhere: one fused pass."""
    low, high = q_n - BOUND_TOLERANCE, q_p + BOUND_TOLERANCE
    if step.numel() == 1:
        shift = 0.0 if offset is None else offset.item()
        low, high = low * step.item() + shift, high * step.item() + shift
    else:
        values = values / step if offset is None else (values - offset).div_(step)
    # Masks of booleans take several passes, and ten times as long.
    return torch.ops.aten.hardtanh_backward(gradient, values, low, high)


def _inner_product(left: Tensor, right: Tensor, parameter: Tensor) -> Tensor:
    """Sum of left * right over the values that share an entry of ``parameter``; its shape."""
    if parameter.dim() > 0:
        return _sum_to(left * right, parameter)
    if left.dtype != torch.float32:  # bfloat16's dot is slow, and rounds what is then subtracted
        return (left * right).sum(dtype=torch.float32)
    if left.dim() == 4:  # channels_last: this flattens to a view, flattening alone would copy
        left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
    return torch.dot(left.reshape(-1), right.reshape(-1))


def _sum_to(gradient: Tensor, parameter: Tensor) -> Tensor:
    if parameter.dim() == 0:
        return gradient.sum(dtype=parameter.dtype)
    return gradient.to(parameter.dtype).sum_to_size(parameter.shape)
