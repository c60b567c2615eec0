"""Residual networks of the zoo, entry for entry those of torchvision, without importing it.

BasicBlock and ResNet-18: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016).
InvertedResidual and MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear
Bottlenecks" (CVPR 2018). Names and order of all parameters are torchvision's, hence its
checkpoints load. `import torchvision` imports torch's compiler as well (measured: 160 MB and 1.7 s
of processor time), which a device with 512 MB has no room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.convolution import Conv2d


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


def residual_stage(
    in_channels: int, channels: int, num_blocks: int, *, stride: int
) -> nn.Sequential:
    """``num_blocks`` basic blocks, the first of which changes channels and size."""
    shortcut: nn.Module | None = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(channels),
        )
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(num_blocks - 1)))


class ResNet18(nn.Module):
    """Stem, four stages of two basic blocks, pooling, one linear layer.

    Maps (N, in_channels, H, W) to logits (N, num_classes). ``cifar``: a 3x3 stem of stride 1 and
    no pooling after it, for small images.
    """

    def __init__(self, num_classes: int, in_channels: int, *, cifar: bool) -> None:
        super().__init__()
        kernel, stride = (3, 1) if cifar else (7, 2)
        self.conv1 = Conv2d(in_channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(64, 64, 2, stride=1)
        self.layer2 = residual_stage(64, 128, 2, stride=2)
        self.layer3 = residual_stage(128, 256, 2, stride=2)
        self.layer4 = residual_stage(256, 512, 2, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class _ClampInPlace(torch.autograd.Function):
    """min(max(x, 0), 6) in place, its gradient taken from the output.

    The output is 0 or 6 where the input is at or beyond the bounds: the gradient is the same to the
    last bit. Torch's own operation keeps a copy of its input, one more map for each layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_(0.0, 6.0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], output, 0.0, 6.0)


class ReLU6(nn.Module):
    """ReLU6, in place."""

    def forward(self, x: Tensor) -> Tensor:
        return _ClampInPlace.apply(x)  # type: ignore[no-untyped-call,no-any-return]


class InvertedResidual(nn.Module):
    """Expand (1x1), filter every channel (3x3), project (1x1); a shortcut where shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [] if expansion == 1 else [_convolution(in_channels, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            _convolution(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem, inverted residuals, a 1x1 convolution to 1,280 channels, pooling, a linear layer.

    Maps (N, in_channels, H, W) to logits (N, num_classes). No dropout: its masks could only come
    from torch's global generator.

    Args:
        num_classes: outputs.
        in_channels: of the images.
        stem_stride: of the first convolution.
        stages: expansion, channels, number of blocks, stride of the first one.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        stem_stride: int,
        stages: Sequence[tuple[int, int, int, int]],
    ) -> None:
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [_convolution(in_channels, channels, 3, stride=stem_stride)]
        for expansion, stage_channels, num_blocks, stride in stages:
            for block in range(num_blocks):
                layers.append(
                    InvertedResidual(
                        channels, stage_channels, stride if block == 0 else 1, expansion
                    )
                )
                channels = stage_channels
        self.features = nn.Sequential(*layers, _convolution(channels, 1280, 1))
        # The place of the dropout keeps torchvision's name of the layer after it.
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _convolution(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(
            in_channels,
            channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(channels),
        ReLU6(),
    )
