"""The model zoo: a name -> a plain float image classifier, and its state as numpy arrays.

The CIFAR ResNets are those of He et al., "Deep Residual Learning for Image Recognition" (CVPR
2016), section 4.2, with projection shortcuts (1x1 convolution + BN where the shape changes).
MobileNetV2 is that of Sandler et al. (CVPR 2018). Parameter names are torchvision's (see
`common.blocks`). This module knows nothing of quantization: `common.qat.prepare` takes any model
made here.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from common.blocks import BasicBlock, InvertedResidual, MobileNetV2, ResNet18, residual_stage
from common.errors import UserError

RUNNING_VARIANCE = ".running_var"
_STATISTICS = (".running_mean", RUNNING_VARIANCE)


class CifarResNet(nn.Module):
    """ResNet-(6n + 2) for small images (He et al. 2016, section 4.2), n = `blocks_per_stage`.

    A 3x3 stem of 16 channels, three stages of n basic blocks with 16, 32 and 64 channels and
    strides 1, 2 and 2, global average pooling, one linear layer. Maps (N, in_channels, H, W) to
    logits (N, num_classes), for any H and W.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = residual_stage(16, 16, blocks_per_stage, stride=1)
        self.layer2 = residual_stage(16, 32, blocks_per_stage, stride=2)
        self.layer3 = residual_stage(32, 64, blocks_per_stage, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _mobilenetv2(num_classes: int, in_channels: int, *, cifar: bool) -> nn.Module:
    """MobileNetV2; `cifar` keeps stem and second stage at stride 1: 32x32 images end as 4x4."""
    stem_stride, second_stage_stride = (1, 1) if cifar else (2, 2)
    # expansion, channels, blocks, stride: Sandler et al. 2018, table 2
    stages = [
        (1, 16, 1, 1),
        (6, 24, 2, second_stage_stride),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    return MobileNetV2(num_classes, in_channels, stem_stride=stem_stride, stages=stages)


_BUILDERS: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType(
    {
        "resnet8": lambda classes, channels: CifarResNet(1, classes, channels),
        "resnet20": lambda classes, channels: CifarResNet(3, classes, channels),
        "resnet32": lambda classes, channels: CifarResNet(5, classes, channels),
        "resnet56": lambda classes, channels: CifarResNet(9, classes, channels),
        "resnet18-cifar": lambda classes, channels: ResNet18(classes, channels, cifar=True),
        "resnet18": lambda classes, channels: ResNet18(classes, channels, cifar=False),
        "mobilenetv2-cifar": lambda classes, channels: _mobilenetv2(classes, channels, cifar=True),
        "mobilenetv2": lambda classes, channels: _mobilenetv2(classes, channels, cifar=False),
    }
)
MODEL_NAMES: tuple[str, ...] = tuple(_BUILDERS)


def create_model(
    name: str, *, num_classes: int, in_channels: int = 3, generator: torch.Generator | None = None
) -> nn.Module:
    """Make a float32 CPU model with fresh weights, in train mode, in channels_last layout.

    Convolutions: Kaiming normal, fan-out (He et al. 2015). Linear layers: PyTorch's default,
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)). Torch's global generator is neither read nor changed.

    Args:
        name: One of `MODEL_NAMES`.
        num_classes: Width of the logits, (N, num_classes).
        in_channels: Channels of the images, (N, in_channels, H, W).
        generator: Source of the weights (a CPU generator); None: a fresh one with seed 0.

    Raises:
        UserError: `name` is unknown.
        ValueError: `num_classes` or `in_channels` is below 1, or a layer has parameters or buffers
            that nothing here gives a value to.
    """
    model = _build_on_meta(name, num_classes, in_channels)
    # Not to_empty(): it imports a computer algebra system, which a small device need not load.
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    _initialise(model, generator or torch.Generator().manual_seed(0))
    # After the draws: the order in which values fill a tensor depends on its memory layout.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _build_on_meta(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if name not in _BUILDERS:
        raise UserError(f"unknown model {name!r}: allowed are {', '.join(MODEL_NAMES)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, not {in_channels}")
    # Constructors draw weights from the global generator; on the meta device they draw nothing,
    # in this thread only, unlike saving and restoring the global state (fork_rng).
    with torch.device("meta"):
        return _BUILDERS[name](num_classes, in_channels)


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise ValueError(
                f"{name or 'the model'}: a {type(module).__name__} has parameters or buffers of "
                f"its own, expected those of Conv2d, BatchNorm2d and Linear only"
            )


def first_and_last(model: nn.Module) -> tuple[str, str]:
    """Names of the first convolution and of the last linear layer.

    Raises:
        ValueError: The model has no convolution or no linear layer.
    """
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not convolutions or not linears:
        raise ValueError(f"{type(model).__name__} lacks a convolution or a linear layer")
    return convolutions[0], linears[-1]


def feature_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the residual blocks in forward order: the layers of cascaded layer correction.

    A block's output may be kept by a forward hook without a copy: what follows it in these models
    never writes to it (in-place operations act on a block's own intermediate results only).

    Raises:
        ValueError: The model has no residual block.
    """
    names = _residual_blocks(model)
    if not names:
        raise ValueError(f"{type(model).__name__} has no residual block")
    return names


@cache
def has_feature_layers(name: str) -> bool:
    """Whether a model has what `feature_layers` names, found without allocating it.

    Raises:
        UserError: `name` is unknown.
    """
    return bool(_residual_blocks(_build_on_meta(name, num_classes=1, in_channels=1)))


@cache
def has_batch_norm(name: str) -> bool:
    """Whether a model has batch normalisation, found without allocating it.

    Raises:
        UserError: `name` is unknown.
    """
    model = _build_on_meta(name, num_classes=1, in_channels=1)
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _residual_blocks(model: nn.Module) -> tuple[str, ...]:
    blocks = (BasicBlock, InvertedResidual)
    return tuple(name for name, m in model.named_modules() if isinstance(m, blocks))


def model_state(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers as C-contiguous float32 arrays in the model's order.

    Convolution weights are (out, in / groups, height, width) whatever their memory layout. An
    array is a view of the module's own memory where that is contiguous already (copy it to keep
    it past a training step), and a copy elsewhere. BN's `num_batches_tracked` is left out: it
    has no effect with a fixed momentum.
    """
    return {
        name: tensor.to("cpu", torch.float32).contiguous().numpy()
        for name, tensor in state_tensors(model).items()
    }


def is_statistic(name: str) -> bool:
    """Whether an entry of a state is one of batch normalisation's statistics."""
    return name.endswith(_STATISTICS)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of `model_state`, detached: changing them changes the model.

    In the order of `state_dict`, in half its time.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        for entries in (module._parameters, module._buffers):
            for name, tensor in entries.items():
                is_kept = name not in module._non_persistent_buffers_set and not _is_counter(name)
                if tensor is not None and is_kept:
                    tensors[start + name] = tensor.detach()
    return tensors


def load_state(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copy `state` (as of `model_state`, any float dtype) into the model.

    Everything is checked first: a refused state leaves the model unchanged.

    Args:
        model: Changed in place; keeps its device, dtype and memory layout.
        state: name -> array; read-only arrays are fine; `num_batches_tracked` is ignored.

    Raises:
        UserError: Names the first entry that is missing, unexpected or of another shape.
    """
    tensors = state_tensors(model)
    given = {name: array for name, array in state.items() if not _is_counter(name)}
    mismatch = describe_mismatch(given, {name: tuple(t.shape) for name, t in tensors.items()})
    if mismatch is not None:
        raise UserError(f"the state does not fit the model: {mismatch}")
    for name, tensor in tensors.items():
        array = given[name]
        # A tensor cannot alias read-only memory (decoded payloads are): copy only that.
        tensor.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def state_shapes(
    name: str, *, num_classes: int, in_channels: int = 3
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `model_state(create_model(...))`, found without allocating the model.

    Raises:
        UserError: `name` is unknown.
        ValueError: `num_classes` or `in_channels` is below 1.
    """
    model = _build_on_meta(name, num_classes, in_channels)
    return {key: tuple(tensor.shape) for key, tensor in state_tensors(model).items()}


def describe_mismatch(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The first difference between a state and the expected shapes in words; None if none.

    Missing entries and shapes come first, in the order of `expected`, then unexpected entries by
    name.
    """
    differences = []
    for name, shape in expected.items():
        if name not in state:
            differences.append(f"entry {name!r} of shape {shape} is missing")
        elif state[name].shape != shape:
            differences.append(f"entry {name!r} has shape {state[name].shape} instead of {shape}")
    for name in sorted(state.keys() - expected.keys(), key=str):
        differences.append(f"unexpected entry {name!r} of shape {state[name].shape}")
    if not differences:
        return None
    others = len(differences) - 1
    return differences[0] + (f" ({others} more differ)" if others else "")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
