"""TensorBoard logs in the run folder, where run.tensorboard asks for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.extras import import_extra

TENSORBOARD_FOLDER = "tensorboard"
FIGURES = (
    *("accuracy", "device_accuracy", "loss", "train_loss"),
    *("upload_bytes", "download_bytes", "round_seconds", "epsilon"),
)
"""Figures of a round's line that are logged, as STAGE/FIGURE over the rounds of the stage."""


class TensorBoardLog:
    """The log of one run; a context manager that closes its file.

    Args:
        run_folder: of the run; what an earlier part of it logged is replaced once this is entered.

    Raises:
        UserError: if tensorboard is not installed.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / TENSORBOARD_FOLDER
        import_extra("tensorboard", needed_for="run.tensorboard", extra="tensorboard")
        self._module = import_extra(
            "torch.utils.tensorboard", needed_for="run.tensorboard", extra="tensorboard"
        )

    def __enter__(self) -> TensorBoardLog:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = self._module.SummaryWriter(str(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Log the lines of an earlier part of the run."""
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Log one line of metrics.jsonl, if it is a round's; a viewer sees it at once."""
        if line["kind"] != "round":
            return
        for name in FIGURES:
            if line.get(name) is not None:
                self._writer.add_scalar(f"{line['stage']}/{name}", line[name], line["round"])
        self._writer.flush()
