"""Tests of simulations.emulation.flops."""

import pytest
import torch
from torch import nn

from common.config import ModelConfig, QuantizationConfig
from simulations.emulation import flops
from simulations.emulation.flops import count_flops


def test_resnet20_by_hand() -> None:
    """ResNet-20 on 32 x 32 x 3 with 100 classes, 2 operations per multiply-accumulate.

    First convolution: 1024 positions x 16 x 3 x 9 = 442,368. Stage 1: six of 1024 x 16 x 16 x 9 =
    2,359,296: 14,155,776. Stage 2: 256 x 32 x 16 x 9 = 1,179,648, five of 2,359,296, a shortcut
    of 256 x 32 x 16 = 131,072: 13,107,200. Stage 3 the same: 64 x 64 x 32 x 9, five of 2,359,296,
    a shortcut of 131,072: 13,107,200. Linear: 6,400. Together 40,818,944, twice that is
    81,637,888. The backward pass costs twice the forward one, less the gradient of the images:
    3 x 81,637,888 - 884,736.
    """
    counted = count_flops(
        ModelConfig(name="resnet20"),
        QuantizationConfig(),
        num_classes=100,
        image_shape=(3, 32, 32),
    )
    assert counted.float_forward == 81_637_888
    assert counted.float_training == 3 * 81_637_888 - 884_736
    # Fake quantization is element-wise.
    assert counted.quantized_forward == counted.float_forward
    assert counted.quantized_training == counted.float_training


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_with_groups(groups: int) -> None:
    """One image, 4 -> 8 channels, 3 x 3, 5 x 5 positions: 2 x 25 x 8 x (4 / groups) x 9 forward;
    backward the weight's gradient alone, for the images need none."""
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    images = torch.zeros(flops.COUNTED_IMAGES, 4, 5, 5)
    forward = 2 * 25 * 8 * (4 // groups) * 9
    assert flops._count(lambda: layer(images)) == forward
    assert flops._count(lambda: layer(images).sum().backward()) == 2 * forward
