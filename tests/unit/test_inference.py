"""Tests of common.inference."""

import pytest
import torch
from torch import Tensor, nn

from common.data.datasets import Dataset, ImageSet
from common.inference import device_of, predict_logits
from tests.unit.datasets import dataset_of


class Recorder(nn.Module):
    """Mean and first pixel of each image as logits; keeps the batches' sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []
        self.modes: list[bool] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        self.modes.append(self.training)
        assert torch.is_inference_mode_enabled()
        return self.scale * torch.stack([batch.mean((1, 2, 3)), batch[:, 0, 0, 0]], dim=1)


def image_set(num_images: int) -> tuple[Tensor, Dataset]:
    """Image i is of the one colour i; mean 0.5 and deviation 0.25."""
    colours = torch.arange(num_images, dtype=torch.uint8)[:, None, None, None]
    images = ImageSet(
        images=colours.expand(-1, 1, 4, 4).contiguous(),
        labels=torch.zeros(num_images, dtype=torch.int64),
        class_names=("a",),
    )
    return images.images, dataset_of(images, mean=0.5, std=0.25)


def expected(colours: Tensor) -> Tensor:
    """(i / 255 - 0.5) / 0.25 twice."""
    return ((colours.float() / 255 - 0.5) / 0.25)[:, None].expand(-1, 2)


def test_logits_of_all_images_in_order() -> None:
    images, dataset = image_set(10)
    model = Recorder()
    logits = predict_logits(model, images, dataset, batch_size=4)
    torch.testing.assert_close(logits, expected(torch.arange(10)))
    assert model.sizes == [4, 4, 2]


def test_chosen_images() -> None:
    images, dataset = image_set(10)
    model = Recorder()
    chosen = torch.tensor([7, 2, 2, 9, 0])
    logits = predict_logits(model, images, dataset, batch_size=2, indices=chosen)
    torch.testing.assert_close(logits, expected(chosen))
    assert model.sizes == [2, 2, 1]


@pytest.mark.parametrize("training", [True, False])
def test_eval_mode_and_back(training: bool) -> None:
    images, dataset = image_set(3)
    model = Recorder().train(training)
    predict_logits(model, images, dataset)
    assert model.modes == [False]
    assert model.training is training


def test_bfloat16_multiplies_rounded_numbers_and_gives_float32() -> None:
    """257 has nine binary digits and bfloat16 eight: it becomes 256."""
    images, dataset = image_set(1)
    layer = nn.Linear(16, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()[0, 0] = 257.0
    model = nn.Sequential(nn.Flatten(), layer)
    # The one image is 0: (0 - 0.5) / 0.25 = -2.
    assert predict_logits(model, images, dataset).item() == -514.0
    rounded = predict_logits(model, images, dataset, precision="bfloat16")
    assert rounded.item() == -512.0
    assert rounded.dtype == torch.float32


def test_no_gradient_is_kept() -> None:
    images, dataset = image_set(3)
    assert not predict_logits(Recorder(), images, dataset).requires_grad


def test_no_images_give_no_logits() -> None:
    images, dataset = image_set(0)
    assert predict_logits(Recorder(), images, dataset).shape == (0, 2)


def test_batches_are_channels_last() -> None:
    class Layout(Recorder):
        def forward(self, batch: Tensor) -> Tensor:
            assert batch.is_contiguous(memory_format=torch.channels_last)
            return super().forward(batch)

    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8).to(memory_format=torch.channels_last)
    dataset = image_set(1)[1]
    colour = Dataset(**{**vars(dataset), "mean": (0.5,) * 3, "std": (0.25,) * 3})
    for indices in (None, torch.tensor([1, 2])):
        predict_logits(Layout(), images, colour, indices=indices)


def test_device_of() -> None:
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")
