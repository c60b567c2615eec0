"""Tests of common.models."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, ResNet18_Weights, mobilenet_v2, resnet18

from common.blocks import BasicBlock, ReLU6
from common.errors import UserError
from common.models import (
    MODEL_NAMES,
    create_model,
    describe_mismatch,
    feature_layers,
    first_and_last,
    load_state,
    model_state,
    state_shapes,
)

SMALL_MODELS = ("resnet8", "resnet20", "mobilenetv2-cifar")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cifar_resnet_parameters(n: int) -> int:
    """ResNet-(6n + 2) with 3 channels and 100 classes, counted layer by layer.

    Weights of convolutions: stem 16*3*9; stage 1: 2n of 16*16*9; stage 2: one 32*16*9,
    2n - 1 of 32*32*9, shortcut 32*16; stage 3: one 64*32*9, 2n - 1 of 64*64*9, shortcut 64*32.
    BN has weight and bias for each channel: 16 * (1 + 2n) + (32 + 64) * (2n + 1).
    Linear: 64*100 + 100.
    """
    stage1 = 2 * n * 2304
    stage2 = 4608 + (2 * n - 1) * 9216 + 512
    stage3 = 18432 + (2 * n - 1) * 36864 + 2048
    batch_norm = 2 * (2 * n + 1) * (16 + 32 + 64)
    return 432 + stage1 + stage2 + stage3 + batch_norm + 6500


# torchvision publishes the counts with 1,000 classes; a linear layer of F features has
# 900 * (F + 1) parameters fewer with 100 (F = 512 and 1,280).
RESNET18 = ResNet18_Weights.IMAGENET1K_V1.value.meta["num_params"] - 900 * 513
MOBILENETV2 = MobileNet_V2_Weights.IMAGENET1K_V1.value.meta["num_params"] - 900 * 1281


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8", cifar_resnet_parameters(1)),
        ("resnet20", cifar_resnet_parameters(3)),
        ("resnet32", cifar_resnet_parameters(5)),
        ("resnet56", cifar_resnet_parameters(9)),
        # the stem is 3x3 instead of 7x7: 64 * 3 * (49 - 9) weights fewer
        ("resnet18-cifar", RESNET18 - 7680),
        ("resnet18", RESNET18),
        # strides hold no parameters
        ("mobilenetv2-cifar", MOBILENETV2),
        ("mobilenetv2", MOBILENETV2),
    ],
)
def test_parameter_counts(name: str, expected: int) -> None:
    model = create_model(name, num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_resnet20_state_size() -> None:
    """278,324 parameters and a running mean and variance for each of 784 BN channels.

    BN channels: 16 * 7 + 32 * 7 + 64 * 7 = 784 (the stem's and the six of the blocks in stage 1,
    six and the shortcut's in stages 2 and 3).
    """
    state = model_state(create_model("resnet20", num_classes=100))
    assert sum(array.size for array in state.values()) == 278_324 + 2 * 784


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("resnet20", 32, 8),  # two strides of 2
        ("resnet18-cifar", 32, 4),  # three
        ("resnet18", 64, 2),  # stem, max-pool and three
        ("mobilenetv2-cifar", 32, 4),  # three
        ("mobilenetv2", 64, 2),  # stem and four
    ],
)
def test_side_of_the_last_feature_map(name: str, side: int, expected: int) -> None:
    model = create_model(name, num_classes=10).eval()
    shapes: list[torch.Size] = []
    layer = model.get_submodule(feature_layers(model)[-1])
    layer.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, side, side))
    assert shapes[0][2:] == (expected, expected)
    assert logits.shape == (1, 10)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_trains_on_8x8_images_of_one_channel(name: str) -> None:
    model = create_model(name, num_classes=10, in_channels=1)
    logits = model(torch.rand(4, 1, 8, 8, generator=seeded(0)))
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize(
    ("name", "torchvision_model"), [("resnet18", resnet18), ("mobilenetv2", mobilenet_v2)]
)
def test_entries_are_those_of_torchvision(name: str, torchvision_model: type) -> None:
    with torch.device("meta"):
        reference = torchvision_model(num_classes=7).state_dict()
    expected = {k: tuple(t.shape) for k, t in reference.items() if "num_batches" not in k}
    assert state_shapes(name, num_classes=7) == expected


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_state_shapes_are_those_of_the_model(name: str) -> None:
    state = model_state(create_model(name, num_classes=3, in_channels=2))
    shapes = state_shapes(name, num_classes=3, in_channels=2)
    assert list(shapes.items()) == [(key, array.shape) for key, array in state.items()]


def test_weights_follow_the_generator() -> None:
    def weights(generator: torch.Generator | None) -> bytes:
        state = model_state(create_model("resnet8", num_classes=10, generator=generator))
        return b"".join(array.tobytes() for array in state.values())

    assert weights(seeded(1)) == weights(seeded(1))
    assert weights(seeded(1)) != weights(seeded(2))
    assert weights(None) == weights(seeded(0))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_global_generator_is_untouched(name: str) -> None:
    """By construction, and by a forward pass in train mode (dropout would draw from it)."""
    before = torch.get_rng_state()
    model = create_model(name, num_classes=10, generator=seeded(0))
    first_weights = model_state(model)[first_and_last(model)[0] + ".weight"].copy()
    side = 64 if name in ("resnet18", "mobilenetv2") else 16
    model(torch.zeros(2, 3, side, side))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)  # nor do the weights depend on its state
        again = model_state(create_model(name, num_classes=10, generator=seeded(0)))
    assert np.array_equal(first_weights, again[first_and_last(model)[0] + ".weight"])


def test_distribution_of_fresh_weights() -> None:
    """Kaiming fan-out, 3x3 from 32 to 64 channels: std = sqrt(2 / 576); fan-in would be 2 / 288.

    Of 18,432 draws the sample std has a standard error of std / sqrt(2 * 18,432) = 0.52 %, so
    3 % is nearly six of them. The linear layer has 64 inputs: |w| <= 1 / 8; of 6,400 draws the
    largest is below 0.99 / 8 with probability 0.99^6400 < 1e-27.
    """
    state = model_state(create_model("resnet20", num_classes=100, generator=seeded(3)))
    assert state["layer3.0.conv1.weight"].std() == pytest.approx((2 / 576) ** 0.5, rel=0.03)
    assert 0.99 / 8 < np.abs(state["fc.weight"]).max() <= 1 / 8
    assert 0 < np.abs(state["fc.bias"]).max() <= 1 / 8
    assert (state["layer1.0.bn1.weight"] == 1).all()
    assert (state["layer1.0.bn1.bias"] == 0).all()
    assert (state["layer1.0.bn1.running_mean"] == 0).all()
    assert (state["layer1.0.bn1.running_var"] == 1).all()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_float32_train_mode_and_channels_last(name: str) -> None:
    model = create_model(name, num_classes=10)
    assert model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    weights = [p for p in model.parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"'resnet50'.*resnet8, resnet20, .*mobilenetv2"):
        create_model("resnet50", num_classes=10)
    with pytest.raises(UserError, match="'ResNet20'"):
        state_shapes("ResNet20", num_classes=10)


def test_size_below_one() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, not 0"):
        create_model("resnet8", num_classes=0)
    with pytest.raises(ValueError, match="in_channels must be at least 1, not -1"):
        create_model("resnet8", num_classes=10, in_channels=-1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet56", ("conv1", "fc")), ("mobilenetv2", ("features.0.0", "classifier.1"))],
)
def test_first_and_last(name: str, expected: tuple[str, str]) -> None:
    assert first_and_last(create_model(name, num_classes=10)) == expected


def test_first_and_last_needs_both() -> None:
    with pytest.raises(ValueError, match="Linear lacks a convolution"):
        first_and_last(nn.Linear(2, 2))


def test_feature_layers_by_name() -> None:
    expected = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2))
    assert feature_layers(create_model("resnet20", num_classes=10)) == expected
    expected = tuple(f"features.{i}" for i in range(1, 18))
    assert feature_layers(create_model("mobilenetv2-cifar", num_classes=10)) == expected
    with pytest.raises(ValueError, match="Linear has no residual block"):
        feature_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_features_come_in_order_and_stay_unchanged(name: str) -> None:
    """What a hook keeps without a copy is after the pass what the block put out."""
    model = create_model(name, num_classes=10)
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in feature_layers(model):

        def keep(module: nn.Module, args: object, output: Tensor, layer: str = layer) -> None:
            kept[layer] = (output, output.detach().clone())

        model.get_submodule(layer).register_forward_hook(keep)
    side = 64 if name in ("resnet18", "mobilenetv2") else 16
    logits = model(torch.rand(2, 3, side, side, generator=seeded(0)))
    assert tuple(kept) == feature_layers(model)
    assert all(torch.equal(feature, copy) for feature, copy in kept.values())
    # Autograd agrees: it refuses a tensor that was overwritten after it was saved.
    (logits.sum() + sum(feature.square().mean() for feature, _ in kept.values())).backward()


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_state_is_contiguous_float32_without_counters(name: str) -> None:
    model = create_model(name, num_classes=10, in_channels=1)
    state = model_state(model)
    tensors = model.state_dict()
    assert set(state) == {key for key in tensors if not key.endswith("num_batches_tracked")}
    for key, array in state.items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.array_equal(array, tensors[key].numpy())


def test_state_shares_memory_where_it_can() -> None:
    model = create_model("resnet8", num_classes=10)
    state = model_state(model)
    with torch.no_grad():
        model.get_parameter("fc.weight").fill_(5.0)
        model.get_buffer("bn1.running_mean").fill_(7.0)
        model.get_parameter("conv1.weight").fill_(9.0)
    assert (state["fc.weight"] == 5).all()
    assert (state["bn1.running_mean"] == 7).all()
    assert not (state["conv1.weight"] == 9).any()  # channels_last: a copy


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_state_round_trip_keeps_the_layout(name: str) -> None:
    source = create_model(name, num_classes=10, generator=seeded(1))
    target = create_model(name, num_classes=10, generator=seeded(2))
    load_state(target, model_state(source))
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key])
        assert tensor.stride() == source.state_dict()[key].stride()


def test_load_takes_read_only_and_half_precision_arrays() -> None:
    """Decoded payloads are read-only; 0.5 and 1 are exact in half precision."""
    model = create_model("resnet8", num_classes=10)
    state = {
        key: np.full(array.shape, 0.5, np.float16) for key, array in model_state(model).items()
    }
    for array in state.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state(model, state | {"bn1.num_batches_tracked": np.array(4)})
    assert all((array == 0.5).all() for array in model_state(model).values())


def drop(state: dict[str, np.ndarray]) -> None:
    del state["layer1.0.conv2.weight"]


def add(state: dict[str, np.ndarray]) -> None:
    state["layer4.0.conv1.weight"] = np.zeros((2, 3), np.float32)


def reshape(state: dict[str, np.ndarray]) -> None:
    state["fc.weight"] = np.zeros((100, 64), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"entry 'layer1.0.conv2.weight' of shape \(16, 16, 3, 3\) is missing$"),
        (add, r"unexpected entry 'layer4.0.conv1.weight' of shape \(2, 3\)$"),
        (reshape, r"entry 'fc.weight' has shape \(100, 64\) instead of \(10, 64\)$"),
    ],
)
def test_load_refuses_another_architecture_and_changes_nothing(
    change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    model = create_model("resnet8", num_classes=10)
    before = {key: array.copy() for key, array in model_state(model).items()}
    state = {key: array + 1 for key, array in before.items()}
    change(state)
    with pytest.raises(UserError, match=message):
        load_state(model, state)
    after = model_state(model)
    assert all(np.array_equal(after[key], array) for key, array in before.items())


def test_mismatch_counts_the_other_differences() -> None:
    """'a' is of another shape, 'b' missing, 'c' unexpected: three, of which 'a' comes first."""
    state = {"c": np.zeros(1), "a": np.zeros((2, 3))}
    message = describe_mismatch(state, {"a": (3, 2), "b": (1,)})
    assert message == "entry 'a' has shape (2, 3) instead of (3, 2) (2 more differ)"
    assert describe_mismatch(state, {"a": (2, 3), "c": (1,)}) is None


def test_blocks_of_the_cifar_resnets_are_those_of_torchvision() -> None:
    """A shortcut is projected exactly where the shape changes: at the start of stages 2 and 3."""
    model = create_model("resnet20", num_classes=10)
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, BasicBlock)}
    projected = [name for name, block in blocks.items() if block.downsample is not None]
    assert projected == ["layer2.0", "layer3.0"]
    assert [block.conv1.stride[0] for block in blocks.values()] == [1, 1, 1, 2, 1, 1, 2, 1, 1]


def test_relu6_is_torchs_to_the_last_bit() -> None:
    """Below, at, within and beyond the bounds; a gradient of one passes within only: 1 and 5.5."""
    values = torch.tensor([-1.0, 0.0, 1.0, 5.5, 6.0, 7.0])
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    # In place on an intermediate result: a leaf that needs gradients can't be written to.
    output, expected = ReLU6()(ours * 1.0), nn.functional.relu6(theirs)
    output.sum().backward()
    expected.sum().backward()
    assert torch.equal(output, expected)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert ours.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_relu6_keeps_no_copy() -> None:
    values = torch.tensor([-1.0, 7.0], requires_grad=True) * 1.0
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = ReLU6()(values)
    assert output is values
    assert kept == [values.data_ptr()]


class Scaled(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, num_classes, bias=False)


def test_layers_whose_parameters_would_stay_unset_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.models._BUILDERS", {"scaled": Scaled})
    with pytest.raises(ValueError, match="norm: a GroupNorm has parameters"):
        create_model("scaled", num_classes=2)


def test_layers_whose_buffers_would_stay_unset_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built without memory, so that what a constructor writes into a buffer is lost."""

    def build(num_classes: int, in_channels: int) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Linear(4, num_classes))
        model.register_buffer("factor", torch.full((), 2.0))
        return model

    monkeypatch.setattr("common.models._BUILDERS", {"scaled": build})
    with pytest.raises(ValueError, match="the model: a Sequential has parameters or buffers"):
        create_model("scaled", num_classes=2)


def test_a_convolutions_bias_begins_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Linear(4, num_classes, bias=False))

    monkeypatch.setattr("common.models._BUILDERS", {"biased": build})
    state = model_state(create_model("biased", num_classes=2))
    assert state["0.bias"].tolist() == [0.0] * 4
