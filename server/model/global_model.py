"""The global model on the server: measured as it is deployed, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from common.checkpoints import save_checkpoint
from common.config import Config
from common.data.datasets import Dataset
from common.data.input_spec import InputSpec
from common.models import load_state
from common.payloads.packed_model import SUFFIX, save_packed_model
from common.payloads.wire import Codes
from common.qat import quantized_weights
from server.model.aggregation import State
from server.model.bit_entries import ONE_WIDTH, BitEntries
from server.model.evaluation import Evaluation, evaluate, torch_threads


class GlobalModel:
    """A module that takes the federation's states.

    Args:
        module: float or prepared; with a prepared one the quantized model is measured.
        dataset: its test images are what the model is measured on.
        config: of the run.
    """

    def __init__(self, module: nn.Module, dataset: Dataset, config: Config) -> None:
        self.module = module
        self.dataset = dataset
        self.config = config

    @property
    def entries(self) -> BitEntries:
        """Which entries of a state belong to one of several bit-widths."""
        return BitEntries()

    @property
    def by_bits(self) -> Mapping[int, GlobalModel]:
        """The models of all bit-widths, ascending; each takes a device's states."""
        return {ONE_WIDTH: self}

    def evaluate(self, state: State) -> Evaluation:
        """Load a state and measure it on all test images."""
        load_state(self.module, state)
        test = self.dataset.test
        with torch_threads(self.config.evaluation.threads):
            return evaluate(
                self.module,
                test.images,
                test.labels,
                self.dataset.mean,
                self.dataset.std,
                batch_size=self.config.evaluation.batch_size,
            )

    def quantize(self, state: State) -> dict[str, Codes]:
        """Load a state; the codes of its quantized weights."""
        load_state(self.module, state)
        return quantized_weights(self.module)

    def save(self, folder: Path, name: str, state: State) -> None:
        """Write ``name``.safetensors, the float latents, and ``name``.fqrc, the low-bit model."""
        labels = {"model": self.config.model.name, "dataset": self.dataset.name}
        save_checkpoint(folder / f"{name}.safetensors", state, labels)
        self.save_packed(folder / f"{name}{SUFFIX}", state)

    def save_packed(self, path: Path, state: State) -> None:
        """Write the low-bit model of a device's state."""
        load_state(self.module, state)
        save_packed_model(
            path,
            self.module,
            model_name=self.config.model.name,
            inputs=InputSpec.of(self.dataset),
            quantization=self.config.quantization,
        )


class BestKeeper:
    """Measures a stage's models, and keeps the best and the last of them in the run folder."""

    def __init__(self, model: GlobalModel, folder: Path, best_accuracy: float = -1.0) -> None:
        self.model = model
        self.folder = folder
        self.best_accuracy = best_accuracy

    def evaluate(self, state: State) -> Evaluation:
        """Measure a state and write it; a best one is the first of its accuracy."""
        evaluation = self.model.evaluate(state)
        self.model.save(self.folder, "last", state)
        if evaluation.accuracy > self.best_accuracy:
            self.best_accuracy = evaluation.accuracy
            self.model.save(self.folder, "best", state)
        return evaluation
