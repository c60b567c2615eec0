"""The global model of devices that train at different bit-widths: measured and kept at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from common.checkpoints import save_checkpoint
from common.config import Config
from common.data.datasets import Dataset
from common.payloads.packed_model import SUFFIX
from common.qat import prepare
from server.model.aggregation import State
from server.model.bit_entries import BitEntries
from server.model.evaluation import Evaluation
from server.model.global_model import GlobalModel


def quantized_model(float_module: nn.Module, dataset: Dataset, config: Config) -> GlobalModel:
    """The prepared model of a run, with one bit-width or with several."""
    models = {
        bits: GlobalModel(
            prepare(float_module, config.at_bits(bits).quantization), dataset, config.at_bits(bits)
        )
        for bits in config.device_bits
    }
    main = models[config.quantization.weight_bits]
    return MixedModel(main, models) if config.federation.mixed_bits else main


class MixedModel(GlobalModel):
    """One set of latent weights, with steps and statistics for several bit-widths.

    Args:
        main: the model at the bit-width that the run is judged by, quantization.weight-bits.
        models: the models at all bit-widths, ascending, the main one among them.
    """

    def __init__(self, main: GlobalModel, models: Mapping[int, GlobalModel]) -> None:
        super().__init__(main.module, main.dataset, main.config)
        self._models = models
        self._entries = BitEntries.of({bits: model.module for bits, model in models.items()})

    @property
    def entries(self) -> BitEntries:
        """Which entries of a state belong to one of the bit-widths."""
        return self._entries

    @property
    def by_bits(self) -> Mapping[int, GlobalModel]:
        """The models of all bit-widths, ascending."""
        return self._models

    def evaluate(self, state: State) -> Evaluation:
        """Measure a global state at every bit-width; the figures are those of the main one."""
        evaluations = {
            bits: model.evaluate(self.entries.view(state, bits))
            for bits, model in self._models.items()
        }
        return replace(
            evaluations[self.config.quantization.weight_bits],
            num_correct_by_bits={str(bits): e.num_correct for bits, e in evaluations.items()},
        )

    def save(self, folder: Path, name: str, state: State) -> None:
        """Write the global state, and the low-bit model at every bit-width.

        ``name``.safetensors holds the former, ``name``.fqrc is the low-bit model at the main
        bit-width, ``name``-4bit.fqrc that at another.
        """
        labels = {"model": self.config.model.name, "dataset": self.dataset.name}
        save_checkpoint(folder / f"{name}.safetensors", state, labels)
        for bits, model in self._models.items():
            is_main = bits == self.config.quantization.weight_bits
            file = f"{name}{SUFFIX}" if is_main else f"{name}-{bits}bit{SUFFIX}"
            model.save_packed(folder / file, self.entries.view(state, bits))
