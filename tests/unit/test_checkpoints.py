"""Tests of common.checkpoints."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common import checkpoints
from common.checkpoints import (
    content_hash,
    load_checkpoint,
    resolve_teacher,
    save_checkpoint,
    shipped_teacher,
)
from common.errors import UserError
from common.models import create_model, load_state, model_state, state_shapes

REPOSITORY = Path(__file__).parents[2]
CIFAR100_TEST = REPOSITORY.parent / "shared/data/cifar100/test-00000-of-00001.parquet"


def resnet8_state(seed: int = 0) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return model_state(create_model("resnet8", num_classes=10, generator=generator))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "resnet8.safetensors"
    save_checkpoint(path, resnet8_state(), {})
    return path


def assert_same(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(state) == list(expected)
    for name, array in state.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, expected[name])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "best.safetensors"
    save_checkpoint(path, resnet8_state(), {"round": "7", "model": "resnet8"})
    state = load_checkpoint(str(path), "resnet8", 10)
    assert_same(state, resnet8_state())
    assert all(array.flags.writeable for array in state.values())
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"round": "7", "model": "resnet8"}
    assert os.listdir(path.parent) == ["best.safetensors"]


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    """Also of metadata: of 6 keys in random order, 4 files agree with probability 720^-3."""
    contents = set()
    for i in range(4):
        keys = [f"key{(i + j) % 6}" for j in range(6)]
        path = tmp_path / f"{i}.safetensors"
        save_checkpoint(path, {"a": np.zeros(3, np.float32)}, {key: key for key in keys})
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_arrays_of_any_layout_are_saved_in_logical_order(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_checkpoint(path, {"a": array.T, "empty": array[:0], "scalar": array[0, 1].reshape(())}, {})
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("a").tolist() == [[0, 3], [1, 4], [2, 5]]
        assert file.get_tensor("empty").shape == (0, 3)
        assert file.get_tensor("scalar").shape == ()


def test_failed_write_leaves_the_old_file(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match=r"resnet8\.safetensors.*No space left on device"):
        save_checkpoint(checkpoint, resnet8_state(seed=1), {})
    assert_same(load_checkpoint(checkpoint, "resnet8", 10), resnet8_state())
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_folder_that_cannot_be_made(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"last\.safetensors cannot be written"):
        save_checkpoint(checkpoint / "last.safetensors", resnet8_state(), {})


def test_save_refuses_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end in \.safetensors, not 'best\.pt'"):
        save_checkpoint(tmp_path / "best.pt", resnet8_state(), {})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_full_state_dicts_load(tmp_path: Path, suffix: str) -> None:
    """With `num_batches_tracked`, channels_last weights and in any order."""
    path = tmp_path / f"weights{suffix}"
    state = dict(reversed(create_model("resnet8", num_classes=10).state_dict().items()))
    if suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    assert_same(load_checkpoint(path, "resnet8", 10), resnet8_state())


@pytest.mark.parametrize(
    ("model_name", "num_classes", "in_channels", "difference"),
    [
        ("resnet20", 10, 3, r"'layer1\.1\.conv1\.weight' of shape \(16, 16, 3, 3\) is missing"),
        ("resnet8", 100, 3, r"'fc\.weight' has shape \(10, 64\) instead of \(100, 64\)"),
        ("resnet8", 10, 1, r"'conv1\.weight' has shape \(16, 3, 3, 3\) instead of \(16, 1, 3, 3\)"),
    ],
)
def test_another_architecture(
    checkpoint: Path, model_name: str, num_classes: int, in_channels: int, difference: str
) -> None:
    message = (
        rf"{checkpoint} is not a {model_name} with {num_classes} classes and "
        rf"{in_channels} image channels: .*{difference}"
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(checkpoint, model_name, num_classes, in_channels)


def test_larger_architecture_is_unexpected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model_state(create_model("resnet20", num_classes=10)), {})
    with pytest.raises(UserError, match=r"unexpected entry 'layer1\.1\.bn1\.bias'"):
        load_checkpoint(path, "resnet8", 10)


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 100, 4000, 100_000, -1])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_file(checkpoint: Path, num_bytes: int, suffix: str) -> None:
    path = checkpoint.with_suffix(suffix)
    if suffix == ".pt":
        torch.save({name: torch.from_numpy(a) for name, a in resnet8_state().items()}, path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=rf"{path} cannot be read: corrupt, truncated"):
        load_checkpoint(path, "resnet8", 10)


class Payload:
    """Pickles to a call: what `weights_only` is there to refuse."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "touched"
    torch.save({"conv1.weight": Payload(target)}, path)
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path, "resnet8", 10)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3}, "entry 'epoch' is no float tensor but int"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "entry 'a' is no float tensor but torch.int64"),
    ],
)
def test_content_that_is_no_state(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path, "resnet8", 10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    state = resnet8_state()
    state["bn1.bias"] = np.full(16, value, np.float32)
    save_checkpoint(path, state, {})
    with pytest.raises(UserError, match=r"'bn1\.bias' holds NaN or infinity"):
        load_checkpoint(path, "resnet8", 10)


def test_missing_folder_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors", "resnet8", 10)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match=r"folder\.pt cannot be read"):
        load_checkpoint(tmp_path / "folder.pt", "resnet8", 10)
    with pytest.raises(UserError, match=r"end in \.safetensors, \.pt, \.pth"):
        load_checkpoint(tmp_path / "weights.npz", "resnet8", 10)


def test_content_hash_of_known_bytes() -> None:
    """SHA-256 of the JSON heading and the little-endian bytes, entry by entry, names sorted."""
    assert content_hash({}) == hashlib.sha256(b"").hexdigest()
    state: dict[str, np.ndarray] = {
        "b": np.array(1, np.uint8),
        "a": np.array([[1.0], [0.0]], np.float32),
    }
    stream = b'["a", "<f4", [2, 1]]\x00\x00\x80\x3f\x00\x00\x00\x00["b", "|u1", []]\x01'
    assert content_hash(state) == hashlib.sha256(stream).hexdigest()


def test_content_hash_sees_content_alone() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    reference = content_hash({"a": array, "b": array})
    assert content_hash({"b": np.asfortranarray(array), "a": array.copy()}) == reference
    read_only = array.copy()
    read_only.flags.writeable = False
    assert content_hash({"a": read_only, "b": array}) == reference
    for other in (array + 1, array.reshape(3, 2), array.view(np.int32), array[:0]):
        assert content_hash({"a": array, "b": other}) != reference
    assert content_hash({"a": array, "c": array}) != reference
    assert content_hash({"a": array}) != reference


def test_shipped_teacher_fits_its_architecture() -> None:
    path = shipped_teacher("resnet20", "cifar100")
    assert path is not None
    state = load_checkpoint(path, "resnet20", 100)
    shapes = state_shapes("resnet20", num_classes=100)
    assert {name: array.shape for name, array in state.items()} == shapes
    assert shipped_teacher("resnet20", "digits") is None
    assert shipped_teacher("resnet8", "cifar100") is None


def test_resolve_teacher(checkpoint: Path) -> None:
    assert resolve_teacher("", "resnet20", "cifar100") is None
    assert resolve_teacher("shipped", "resnet20", "cifar100") == shipped_teacher(
        "resnet20", "cifar100"
    )
    assert resolve_teacher(str(checkpoint), "resnet8", "digits") == checkpoint
    with pytest.raises(UserError, match=r"resnet8-digits; shipped are: .*resnet20-cifar100"):
        resolve_teacher("shipped", "resnet8", "digits")
    with pytest.raises(UserError, match=r"'nowhere\.pt': expected 'shipped' or an existing"):
        resolve_teacher("nowhere.pt", "resnet8", "digits")


@pytest.mark.parametrize("editable", [False, True])
def test_shipped_teacher_of_the_installed_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool
) -> None:
    """A copy of the code without its binary files finds them in the installed project."""
    site, source = tmp_path / "site-packages", tmp_path / "a checkout"
    metadata = site / "fedquarc-9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fedquarc\nVersion: 9\n")
    if editable:
        url = {"url": source.as_uri(), "dir_info": {"editable": True}}
        (metadata / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "unpacked/common/checkpoints.py"))
    with pytest.raises(UserError, match="shipped are: none is installed"):
        resolve_teacher("shipped", "resnet20", "cifar100")
    folder = (source if editable else site) / "common" / "teachers"
    folder.mkdir(parents=True)
    (folder / "resnet20-cifar100.safetensors").touch()
    assert shipped_teacher("resnet20", "cifar100") == folder / "resnet20-cifar100.safetensors"


@pytest.mark.skipif(not CIFAR100_TEST.exists(), reason="CIFAR-100 is not at hand")
@pytest.mark.parametrize(("name", "stated"), [("resnet20", 66.04), ("mobilenetv2-cifar", 64.78)])
def test_shipped_teacher_top1_on_cifar100(name: str, stated: float) -> None:
    """As stated beside the file, of 10,000 test images (2 of them either way)."""
    parquet = pytest.importorskip("pyarrow.parquet")
    image_module = pytest.importorskip("PIL.Image")
    table = parquet.read_table(CIFAR100_TEST, columns=["img", "fine_label"])
    encoded = table["img"].combine_chunks().field("bytes").to_pylist()
    decoded = np.stack([np.asarray(image_module.open(io.BytesIO(png))) for png in encoded])
    images = torch.from_numpy(decoded).permute(0, 3, 1, 2)  # (10000, 3, 32, 32), channels_last
    labels = torch.tensor(table["fine_label"].to_pylist())
    mean = torch.tensor([0.5071, 0.4865, 0.4409]).view(3, 1, 1)
    std = torch.tensor([0.2673, 0.2564, 0.2762]).view(3, 1, 1)

    path = shipped_teacher(name, "cifar100")
    assert path is not None
    model = create_model(name, num_classes=100)
    load_state(model, load_checkpoint(path, name, 100))
    model.eval()
    num_correct = 0
    with torch.inference_mode():
        # Batches of 50 fit the processor's cache: 1.6 times as fast as 500.
        for batch, truth in zip(images.split(50), labels.split(50), strict=True):
            logits = model((batch.float() / 255 - mean) / std)
            num_correct += int((logits.argmax(1) == truth).sum())
    assert num_correct == pytest.approx(100 * stated, abs=2)
