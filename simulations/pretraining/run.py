"""Train a float model: the teacher that quantization-aware training starts from.

An unfinished training is kept after every epoch, beside the file that it will become, and goes on
from there: random numbers derive from seed and epoch, so that the result is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from client.optimizer import make_optimizer
from client.task import training_task
from client.trainer import train
from common.atomic_file import replacing
from common.checkpoints import save_checkpoint
from common.config import Config
from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import Dataset
from common.errors import UserError
from common.inference import top1
from common.models import create_model, model_state
from common.seeding import torch_generator
from common.settings import Scalar
from server.model.evaluation import torch_threads
from server.records.summary import versions

DEFAULTS: Mapping[str, Scalar] = {
    "training.loss": "ce",
    "training.schedule": "one-cycle",
    "training.learning-rate": 0.1,
    "training.batch-size": 128,
}
"""What a float training has instead of the run config's defaults."""

SETTINGS = (
    "run.threads",
    "run.seed",
    "data.root",
    "data.image-size",
    "data.augment",
    "training.batch-size",
    "training.learning-rate",
    "training.momentum",
    "training.weight-decay",
    "training.schedule",
    "training.precision",
)
"""What can be set; everything else has no effect on a float training."""

PLACES = ("data.root", "run.threads")
"""Settings that may change between the parts of one training."""


def pretrain_config(
    model_name: str, dataset_name: str, num_epochs: int, settings: Mapping[str, Scalar]
) -> Config:
    """The configuration of a float training.

    Raises:
        UserError: for a setting that is unknown, out of range or of no effect here.
    """
    for key in settings:
        if key not in SETTINGS:
            raise UserError(
                f"{key} has no effect on a float training: expected one of {', '.join(SETTINGS)}"
            )
    return Config.from_flat(
        {
            **DEFAULTS,
            **settings,
            "model.name": model_name,
            "data.dataset": dataset_name,
            "training.local-epochs": num_epochs,
        }
    )


def pretrain(
    config: Config,
    dataset: Dataset,
    out: Path,
    device: torch.device,
    *,
    on_start: Callable[[int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Train a float model on all training images with their labels, and write its checkpoint.

    Args:
        config: of :func:`pretrain_config`.
        dataset: images, normalisation and augmentation.
        out: the checkpoint to make, .safetensors; must not exist.
        device: where the model runs.
        on_start: called with the number of epochs that were done before.
        on_progress: called in every step with the share of the epochs that is done.
        on_epoch: called after every epoch with its number, from 1, and mean loss.

    Returns:
        Top-1 on the test images after the last epoch, in percent.

    Raises:
        UserError: ``out`` exists or cannot be written, or an unfinished training beside it had
            other settings or images.
        DivergedError: on a loss or weight that is not finite.
    """
    check_out(out)
    seed, num_epochs = config.run.seed, config.training.local_epochs
    train_set = dataset.train
    model = create_model(
        config.model.name,
        num_classes=train_set.num_classes,
        in_channels=train_set.images.shape[1],
        generator=torch_generator(seed, "initialise"),
    ).to(device)
    task = training_task(config, first_epoch=0, num_epochs=1, total_epochs=num_epochs)
    optimizer = make_optimizer(model, task)
    unfinished = unfinished_file(out)
    settings = {key: value for key, value in config.to_flat().items() if key not in PLACES}
    images = data_fingerprint(dataset)
    first_epoch = 0
    if unfinished.exists():
        first_epoch = _resume(unfinished, model, optimizer, settings, images, device)
    if on_start is not None:
        on_start(first_epoch)
    everything = torch.arange(len(train_set))
    with torch_threads(config.run.threads):
        for epoch in range(first_epoch, num_epochs):
            result = train(
                model,
                None,
                dataset,
                train_set,
                everything,
                replace(task, first_epoch=epoch),
                torch_generator(seed, "pretrain", epoch),
                optimizer=optimizer,
                on_progress=on_progress,
            )
            _keep(unfinished, model, optimizer, settings, images, epoch + 1)
            if on_epoch is not None:
                on_epoch(epoch + 1, result.mean_loss)
        accuracy = top1(model, dataset.test, dataset)
    save_checkpoint(out, model_state(model), _metadata(config, dataset, accuracy))
    unfinished.unlink(missing_ok=True)
    return accuracy


def unfinished_file(out: Path) -> Path:
    """Where a training that is to become ``out`` is kept after each of its epochs."""
    return out.with_name(f".{out.name}.unfinished")


def check_out(out: Path) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        UserError: naming the file.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: expected a name that ends in .safetensors")
    if out.exists():
        raise UserError(f"{out} is there already: expected the name of a new file")
    # Its folder is made when the first epoch is over, which is late to hear that it can't be.
    existing = next(folder for folder in out.absolute().parents if os.path.exists(folder))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{out} can't be written: {existing} is no folder that can be written to")


def _metadata(config: Config, dataset: Dataset, accuracy: float) -> dict[str, str]:
    training = config.training
    return {
        "model": config.model.name,
        "dataset": dataset.name,
        "accuracy": f"{accuracy:.2f}",
        "epochs": str(training.local_epochs),
        "batch-size": str(training.batch_size),
        "learning-rate": str(training.learning_rate),
        "schedule": training.schedule,
        "momentum": str(training.momentum),
        "weight-decay": str(training.weight_decay),
        "precision": training.precision,
        "augment": str(config.data.augment),
        "seed": str(config.run.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _keep(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.SGD,
    settings: Mapping[str, Scalar],
    images: str,
    epochs_done: int,
) -> None:
    """Write an unfinished training: the file holds the earlier epoch or all of this one."""
    content = {
        "settings": dict(settings),
        "data_fingerprint": images,
        "epochs_done": epochs_done,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    try:
        with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    # torch's writer turns a full disk into a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be written: {reason}; the epochs before are kept, and the same "
            f"command goes on from there"
        ) from error


def _resume(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.SGD,
    settings: Mapping[str, Scalar],
    images: str,
    device: torch.device,
) -> int:
    """Load an unfinished training; the number of epochs done."""
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        recorded = content["settings"]
    # What the parser raises on a damaged file is open-ended.
    except Exception as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): remove it to start anew"
        ) from error
    for key, value in settings.items():
        if recorded.get(key) != value:
            raise UserError(
                f"the unfinished training {path} has {key} = {recorded.get(key)!r}, now it is "
                f"{value!r}: remove the file to start anew, or choose another --out"
            )
    # One that is older than the fingerprint has none.
    if content.get("data_fingerprint", images) != images:
        raise UserError(
            f"the unfinished training {path} has seen other images than those that data.root or "
            f"FEDQUARC_DATA names now: remove the file to start anew, or choose another --out"
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["epochs_done"])
