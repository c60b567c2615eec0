"""The global model at several bit-widths, with accuracies made by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from common.config import Config
from common.data.datasets import Dataset, ImageSet
from server.model.global_model import GlobalModel
from server.model.mixed_model import MixedModel, quantized_model
from server.rounds.stages import copied_state
from tests.unit.datasets import dataset_of


class ThreeLayers(nn.Module):
    """One pixel through a convolution, a layer that is quantized and one at the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.middle = nn.Linear(1, 2, bias=False)
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.middle.weight.copy_(torch.tensor([[0.4], [0.6]]))
            self.fc.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.middle(self.conv(images).flatten(1)))
        return logits


def one_pixel_dataset() -> Dataset:
    """Four white pixels: three of class 0, one of class 1."""
    images = ImageSet(
        images=torch.full((4, 1, 1, 1), 255, dtype=torch.uint8),
        labels=torch.tensor([0, 0, 0, 1]),
        class_names=("a", "b"),
    )
    return dataset_of(images)


def test_the_model_is_measured_at_every_bit_width() -> None:
    """The same latents (0.4, 0.6) in the middle layer.

    2 bits, step 1: codes 0 and 1, logits (2 * 0, 1), class 1: 1 of 4 images. 4 bits, step 0.2:
    codes 2 and 3, logits (2 * 0.4, 0.6), class 0: 3 of 4.
    """
    config = Config.from_flat({"federation.mixed-bits": "2,4"})
    model = quantized_model(ThreeLayers(), one_pixel_dataset(), config)
    state = copied_state(model)
    state["middle.weight_quantizer.2bit.step"] = np.array(1.0, np.float32)
    state["middle.weight_quantizer.4bit.step"] = np.array(0.2, np.float32)
    evaluation = model.evaluate(state)
    assert evaluation.bit_accuracy == {"2": 25.0, "4": 75.0}
    assert evaluation.accuracy == 25.0
    assert evaluation.figures()["bit_accuracy"] == {"2": 25.0, "4": 75.0}
    config = Config.from_flat({"federation.mixed-bits": "2,4", "quantization.weight-bits": 4})
    assert (
        quantized_model(ThreeLayers(), one_pixel_dataset(), config).evaluate(state).accuracy == 75
    )


def test_with_one_bit_width_it_is_a_plain_model() -> None:
    model = quantized_model(ThreeLayers(), one_pixel_dataset(), Config())
    assert type(model) is GlobalModel
    assert not isinstance(model, MixedModel)
    assert "bit_accuracy" not in model.evaluate(copied_state(model)).figures()
