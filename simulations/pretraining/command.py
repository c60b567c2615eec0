"""``python -m simulations pretrain``."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.arguments import add_settings_argument, at_least
from common.config import DATASETS, MODELS


def add_pretrain_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``pretrain`` to a command line."""
    pretrain = commands.add_parser(
        "pretrain",
        help="train a float model, to be a teacher",
        description="Trains a float model on all training images with their labels: SGD with "
        "Nesterov momentum 0.9, one-cycle learning rate up to 0.1, weight decay 5e-4, batch 128, "
        "random crop and flip. An interrupted training goes on where it stopped.",
    )
    pretrain.add_argument("--model", choices=MODELS, required=True)
    pretrain.add_argument("--dataset", choices=DATASETS, required=True)
    pretrain.add_argument("--epochs", metavar="N", type=at_least(1), required=True)
    pretrain.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="checkpoint, .safetensors"
    )
    add_settings_argument(
        pretrain, "settings, for example training.learning-rate=0.2 run.threads=2"
    )
    pretrain.add_argument(
        "--device", metavar="NAME", help="torch device (default: cuda if there is one, else cpu)"
    )
    pretrain.add_argument("--debug", action="store_true", help="show tracebacks")
    pretrain.set_defaults(command=_pretrain)


def _pretrain(options: argparse.Namespace) -> int:
    # Imported late: `--help` and the other commands need none of it.
    from rich.console import Console

    from common.data.datasets import configured_dataset
    from simulations.display.progress import TrainingProgress
    from simulations.pretraining.run import (
        check_out,
        pretrain,
        pretrain_config,
        unfinished_file,
    )
    from simulations.results.files import GOES_ON
    from simulations.settings.scenario import parse_overrides
    from simulations.torch_device import torch_device

    config = pretrain_config(
        options.model, options.dataset, options.epochs, parse_overrides(options.settings)
    )
    check_out(options.out)
    device = torch_device(options.device)
    dataset = configured_dataset(config.data)
    with TrainingProgress(Console(), 1.0) as progress:
        title = f"{options.model} on {options.dataset}"

        def on_start(epochs_done: int) -> None:
            if epochs_done:
                progress.note(f"going on after epoch {epochs_done}")
            progress.begin(title, 1.0, options.epochs, done=epochs_done / options.epochs)

        def on_epoch(epoch: int, loss: float) -> None:
            progress.note(f"epoch {epoch}/{options.epochs}: loss {loss:.4f}")

        try:
            accuracy = pretrain(
                config,
                dataset,
                options.out,
                device,
                on_start=on_start,
                on_progress=progress.advance,
                on_epoch=on_epoch,
            )
        except KeyboardInterrupt:
            how_to_go_on = GOES_ON if unfinished_file(options.out).exists() else ""
            raise KeyboardInterrupt(f"interrupted{how_to_go_on}") from None
        progress.end(f"{title}: {accuracy:.2f} % Top-1, written to {options.out}")
    return 0
