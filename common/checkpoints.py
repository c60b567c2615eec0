"""Checkpoints of float models on disk, the shipped teachers among them, and a state's hash.

A checkpoint is a safetensors file (or a PyTorch state dict, read with `weights_only`) holding
exactly the entries of one architecture of `common.models`; `num_batches_tracked` is ignored.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from common.atomic_file import replacing
from common.errors import UserError
from common.models import describe_mismatch, state_shapes
from common.paths import without_tilde

DISTRIBUTION_NAME = "fedquarc"
_SUFFIXES = (".safetensors", ".pt", ".pth")


def load_checkpoint(
    path: str | os.PathLike[str], model_name: str, num_classes: int, in_channels: int = 3
) -> dict[str, np.ndarray]:
    """Read a checkpoint of one architecture.

    Args:
        path: A `.safetensors` file, or a `.pt` or `.pth` file holding a bare state dict.
        model_name: One of `common.models.MODEL_NAMES`.
        num_classes: Width of the model's logits.
        in_channels: Channels of the model's images.

    Returns:
        name -> float32 array, in the model's order, as `common.models.model_state` gives it.

    Raises:
        UserError: The file is missing, unreadable or of an unknown kind, belongs to another
            architecture, or holds a value that is no finite float; the model is unknown.
    """
    path = Path(path)
    shapes = state_shapes(model_name, num_classes=num_classes, in_channels=in_channels)
    state: dict[str, np.ndarray] = {}
    for name, value in _read(path).items():
        if str(name).endswith("num_batches_tracked"):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"checkpoint {path}: entry {name!r} is no float tensor but {kind}")
        state[name] = value.detach().to(torch.float32).contiguous().numpy()
    mismatch = describe_mismatch(state, shapes)
    if mismatch is not None:
        raise UserError(
            f"checkpoint {path} is not a {model_name} with {num_classes} classes and "
            f"{in_channels} image channels: {mismatch}"
        )
    for name in shapes:
        if not np.isfinite(state[name]).all():
            raise UserError(f"checkpoint {path}: entry {name!r} holds NaN or infinity")
    return {name: state[name] for name in shapes}


def _read(path: Path) -> Mapping[str, object]:
    if path.suffix not in _SUFFIXES:
        raise UserError(f"checkpoint {path}: its name must end in {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            # Read, not mapped: a mapped file that is cut short later kills the process.
            return safetensors.torch.load(path.read_bytes())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    # What the parsers raise on a damaged file is open-ended: pickle, zip, key and value errors.
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read: corrupt, truncated or not a "
            f"{path.suffix} file ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    return content


def save_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically: `path` holds the old content or all of the new.

    Args:
        path: Ends in `.safetensors`; its folder is made when it is missing.
        state: name -> array.
        metadata: Free text for the file's header.

    Raises:
        ValueError: `path` does not end in `.safetensors`.
        UserError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, not {path.name!r}")
    header, body = _serialize(state, metadata)
    try:
        with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
            file.write(header)
            file.write(body)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be written: {error.strerror}") from error


def _serialize(
    state: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[bytes, memoryview]:
    """The two parts of a safetensors file: header (with its length in front) and tensor bytes."""
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    content = safetensors.numpy.save(arrays)
    header_end = 8 + int.from_bytes(content[:8], "little")
    # The library writes metadata in random order: written here, equal runs give equal files.
    entries = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:header_end])}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensor bytes start at a multiple of 8
    return len(header).to_bytes(8, "little") + header, memoryview(content)[header_end:]


def content_hash(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes, in sorted name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        # JSON delimits name, dtype and shape: no two states share one byte stream.
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def shipped_teacher(model_name: str, dataset_name: str) -> Path | None:
    """The teacher that comes with the project for this model and data set; None if none does."""
    return _shipped_teachers().get(f"{model_name}-{dataset_name}")


def resolve_teacher(setting: str, model_name: str, dataset_name: str) -> Path | None:
    """The checkpoint that the setting `teacher` means; None when it is empty (no checkpoint).

    Args:
        setting: "", "shipped" or the path of a checkpoint.
        model_name: One of `common.models.MODEL_NAMES`.
        dataset_name: A data set's name, "cifar100" for one.

    Raises:
        UserError: Nothing is shipped for the pair, or no file is at the path.
    """
    if not setting:
        return None
    if setting == "shipped":
        teacher = shipped_teacher(model_name, dataset_name)
        if teacher is None:
            shipped = ", ".join(sorted(_shipped_teachers())) or "none is installed"
            raise UserError(
                f"model.teacher = 'shipped': there is none for {model_name}-{dataset_name}; "
                f"shipped are: {shipped}"
            )
        return teacher
    path = without_tilde(setting)
    if not path.is_file():
        raise UserError(f"model.teacher = {setting!r}: expected 'shipped' or an existing file")
    return path


def _shipped_teachers() -> dict[str, Path]:
    """<model>-<data set> -> file, over the folders that hold shipped teachers."""
    for folder in _teacher_folders():
        teachers = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
        if teachers:
            return teachers
    return {}


def _teacher_folders() -> list[Path]:
    folders = [Path(__file__).parent / "teachers"]
    # Flower unpacks an app without its binary files: look into the installed project as well,
    # in site-packages and, for an editable installation, where it was installed from.
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION_NAME)
    except importlib.metadata.PackageNotFoundError:
        return folders
    folders.append(Path(str(distribution.locate_file("common/teachers"))))
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        folders.append(Path(url2pathname(urlparse(origin["url"]).path)) / "common" / "teachers")
    return folders
