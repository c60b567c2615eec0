"""Uniform quantization with a learned step: pure functions on tensors.

LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020) and LSQ+ (Bhalgat et al., CVPRW
2020). A value v becomes the integer code clamp(round((v - offset) / step), Q_N, Q_P), and
dequantizes to step * code + offset. The fake-quantized value of training is exactly what the
integer code dequantizes to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Operand:
    """What is to be fake-quantized, and how."""

    values: Tensor
    """Any shape."""
    step: Tensor
    """Broadcastable to ``values``, > 0."""
    offset: Tensor | None = None
    """Of the step's shape; absent: 0 (LSQ)."""
    q_n: int
    """Smallest code."""
    q_p: int
    """Largest code."""
    gradient_scale: float = 1.0
    """Factor on the step's and the offset's gradient, see :func:`step_gradient_scale`."""


def fake_quantize(operands: Sequence[Operand]) -> tuple[Tensor, ...]:
    """Quantize and dequantize every operand, differentiable in values, step and offset.

    Many at once cost less than one after the other: the backward pass of all is one call, made as
    soon as the gradients of all outputs are known.
    """
    settings = [(operand.q_n, operand.q_p, operand.gradient_scale) for operand in operands]
    tensors = [tensor for o in operands for tensor in (o.values, o.step, o.offset)]
    return _FakeQuantize.apply(settings, *tensors)  # type: ignore[no-untyped-call,no-any-return]


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize, with the gradients of `_gradients`.

    Input and output are saved: the layer before keeps the one and the layer behind the other
    anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, settings: list[tuple[int, int, float]], *tensors: Any
    ) -> tuple[Tensor, ...]:
        """Of each operand Q_N, Q_P and gradient scale; values, step and offset -> outputs."""
        outputs = []
        for (q_n, q_p, _), (values, step, offset) in zip(settings, _triples(tensors), strict=True):
            output = quantize(values, step, q_n, q_p, offset).mul_(step)
            outputs.append(output if offset is None else output.add_(offset))
        ctx.save_for_backward(*outputs, *tensors)
        ctx.set_materialize_grads(False)  # an output that was not used has none, rather than zeros
        ctx.settings = settings
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        outputs, triples = saved[: len(gradients)], _triples(saved[len(gradients) :])
        input_gradients: list[Tensor | None] = []
        for gradient, output, triple, setting in zip(
            gradients, outputs, triples, ctx.settings, strict=True
        ):
            if gradient is None:
                input_gradients += (None, None, None)
            else:
                input_gradients += _gradients(gradient, output, *triple, *setting)
        return None, *input_gradients


def _triples(tensors: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
    return zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True)


def _gradients(
    gradient: Tensor,
    output: Tensor,
    values: Tensor,
    step: Tensor,
    offset: Tensor | None,
    q_n: int,
    q_p: int,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """LSQ's gradients (ICLR 2020, equations 3 and 5) of values, step and offset.

    With u = (v - offset) / step: inside the range dv is passed through, the step's gradient is
    round(u) - u and the offset's is 0; outside they are 0, Q_N or Q_P, and 1 (LSQ+, eq. 5).

    Summed over the values that share a step, its gradient times the step is
    <g, output> - <dv, v> - offset <g - dv, 1>: in float32 no temporary but dv, which is wanted as
    well.
    """
    values_gradient = _pass_inside(gradient, values, step, offset, q_n, q_p)
    if step.dim() == 0 and gradient.dtype == torch.float32:
        step_gradient = _dot(gradient, output) - _dot(values_gradient, values)
    else:  # of bfloat16 the dot is slow, and would be rounded before the difference
        products = (gradient * output).addcmul_(values_gradient, values, value=-1.0)
        step_gradient = _sum_to(products, step)
    offset_gradient = None
    if offset is not None:
        outside = _sum_to(gradient, step) - _sum_to(values_gradient, step)
        step_gradient -= offset * outside
        offset_gradient = outside * gradient_scale
    step_gradient.div_(step).mul_(gradient_scale)
    return values_gradient, step_gradient, offset_gradient


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
    """The step of least squared quantization error among max|v| k / (64 Q_P), k = 1...64.

    Starting closer to the float weights than LSQ's rule saves training where there is little of
    it. With the widest candidate nothing is clipped: Q_P is at most |Q_N|. Shape () or, per
    channel, [channels, 1, ...].
    """
    rows = values.flatten(1) if per_channel else values.reshape(1, -1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST_STEP)
    best_step = widest = largest / q_p
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


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Sum of left * right."""
    if left.dim() == 4:  # channels_last: this flattens to a view, flattening alone would copy
        left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
    return torch.dot(left.reshape(-1), right.reshape(-1))


def _sum_to(values: Tensor, parameter: Tensor) -> Tensor:
    """Sum of ``values`` over those that share an entry of ``parameter``; its shape and type."""
    if parameter.dim() > 0:
        return values.to(parameter.dtype).sum_to_size(parameter.shape)
    if values.dtype != parameter.dtype:
        # torch copies to the wider type before it sums: here only one sum of each image.
        values = values.sum(tuple(range(1, values.dim())))
    return values.sum(dtype=parameter.dtype)
