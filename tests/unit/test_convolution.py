"""common.convolution: the fast gradient is that of torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from common.convolution import Conv2d, _StridedDepthwise
from common.models import MODEL_NAMES, create_model

SHAPES = [
    # size, kernel, stride, padding
    ((8, 8), 3, 2, 1),
    ((7, 9), 3, 2, 1),  # no output looks beyond the last row
    ((8, 8), 3, 2, 0),  # the last row has no output
    ((11, 10), 5, 3, 2),
    ((9, 8), 1, 2, 0),
]


def layer(kind: type[nn.Conv2d], kernel: int, stride: int, padding: int) -> nn.Conv2d:
    made = kind(4, 4, kernel, stride=stride, padding=padding, groups=4)
    made.load_state_dict(
        {
            "weight": torch.randn(4, 1, kernel, kernel, generator=torch.Generator().manual_seed(1)),
            "bias": torch.tensor([0.5, -1.0, 2.0, 0.0]),
        }
    )
    return made


def images(size: tuple[int, int]) -> Tensor:
    values = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(2))
    return values.to(memory_format=torch.channels_last).requires_grad_()


def passes(
    made: nn.Conv2d, inputs: Tensor, *, bfloat16: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output and gradients of sum(output * (1, 2, 3, ...) / n)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = made(inputs)
    numbers = torch.arange(1.0, output.numel() + 1) / output.numel()
    (output.float() * numbers.view(output.shape)).sum().backward()
    assert inputs.grad is not None
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    return output.detach(), inputs.grad, gradients


def takes_own_path(made: nn.Conv2d, inputs: Tensor) -> bool:
    with torch.autocast("cpu", torch.bfloat16):
        function = made(inputs).grad_fn
    # The bias is added to it.
    return any(
        type(step).__name__ == f"{_StridedDepthwise.__name__}Backward"
        for step in (function, function.next_functions[0][0])
    )


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), SHAPES)
def test_gradients_are_those_of_torch_but_for_rounding(
    size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    own, plain = layer(Conv2d, kernel, stride, padding), layer(nn.Conv2d, kernel, stride, padding)
    assert takes_own_path(own, images(size))
    output, input_gradient, gradients = passes(own, images(size), bfloat16=True)
    expected, expected_input_gradient, expected_gradients = passes(
        plain, images(size), bfloat16=False
    )
    assert output.dtype == torch.bfloat16
    # bfloat16 has 8 bits: of a sum of up to 25 products some 1 % of the largest may be lost.
    for got, wanted in [
        (output, expected),
        (input_gradient, expected_input_gradient),
        *((gradients[name], expected_gradients[name]) for name in ("weight", "bias")),
    ]:
        assert got.shape == wanted.shape
        torch.testing.assert_close(
            got.float(), wanted, rtol=0, atol=0.015 * wanted.abs().max().item() + 1e-6
        )
    assert gradients["weight"].dtype == torch.float32
    assert input_gradient.is_contiguous(memory_format=torch.channels_last)


def test_spread_gradient_by_hand() -> None:
    """Two outputs of stride 2 from 4 inputs, kernel (1, 2, 3), padding 1, gradients (1, 10).

    Output 0 sees inputs (-1, 0, 1), output 1 sees (1, 2, 3): the inputs' gradients are
    2 * 1, 3 * 1 + 1 * 10, 2 * 10, 3 * 10. Small integers are exact in bfloat16.
    """
    made = Conv2d(1, 1, (1, 3), stride=(1, 2), padding=(0, 1), bias=False)
    made.load_state_dict({"weight": torch.tensor([[[[1.0, 2.0, 3.0]]]])})
    inputs = torch.zeros(1, 1, 1, 4, requires_grad=True)
    assert takes_own_path(made, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = made(inputs)
    output.backward(torch.tensor([[[[1.0, 10.0]]]], dtype=torch.bfloat16))
    assert inputs.grad is not None
    assert inputs.grad.flatten().tolist() == [2.0, 13.0, 20.0, 30.0]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_other_convolutions_are_torchs_to_the_last_bit(bfloat16: bool) -> None:
    """Float32, and in bfloat16 those that are dense or of stride 1."""
    for stride, groups in [(2, 1), (1, 4)] if bfloat16 else [(2, 1), (1, 4), (2, 4)]:
        own = Conv2d(4, 4, 3, stride=stride, padding=1, groups=groups)
        plain = nn.Conv2d(4, 4, 3, stride=stride, padding=1, groups=groups)
        plain.load_state_dict(own.state_dict())
        output, input_gradient, gradients = passes(own, images((8, 8)), bfloat16=bfloat16)
        expected, wanted, others = passes(plain, images((8, 8)), bfloat16=bfloat16)
        assert torch.equal(output, expected)
        assert torch.equal(input_gradient, wanted)
        assert all(torch.equal(gradients[name], others[name]) for name in others)


def test_evaluation_is_torchs() -> None:
    """Without gradients there is nothing to be slow: the plain path, to the last bit."""
    own, plain = layer(Conv2d, 3, 2, 1), layer(nn.Conv2d, 3, 2, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own(images((8, 8))), plain(images((8, 8))))


@pytest.mark.parametrize("groups", [1, 96])
def test_a_stride_wider_than_the_map_leaves_no_gradient_unwritten(groups: int) -> None:
    """One pixel of 1 in two images, gradients of 1: 2 in the kernel's middle, else it saw padding.

    PyTorch's kernel takes memory as it finds it: here it is full of NaN.
    """
    convolution = Conv2d(96, 96, 3, stride=2, padding=1, groups=groups)
    convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected = torch.zeros_like(convolution.weight)
    expected[:, :, 1, 1] = 2.0
    for _ in range(20):
        convolution.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            output = convolution(torch.ones(2, 96, 1, 1))
        assert output.dtype == torch.bfloat16
        sizes = [expected.numel() // 2, expected.numel(), 96 * 16, 96 * 32]
        freed = [torch.full((size,), math.nan) for size in sizes for _ in range(50)]
        del freed
        output.sum().backward()
        assert convolution.weight.grad is not None
        assert torch.equal(convolution.weight.grad, expected)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_strided_convolutions_of_all_models_are_of_this_kind(name: str) -> None:
    """But those of one pixel, which see no padding."""
    found = [m for m in create_model(name, num_classes=2).modules() if isinstance(m, nn.Conv2d)]
    wide = [m for m in found if max(m.stride) > 1 and max(m.kernel_size) > 1]
    assert wide
    assert all(isinstance(m, Conv2d) for m in wide)
