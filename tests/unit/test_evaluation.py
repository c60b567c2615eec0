"""Top-1, Top-5 and loss on images whose logits are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from server.model.evaluation import evaluate, torch_threads


class FirstPixels(nn.Module):
    """Logits are the first pixels of an image's only channel: the answer is written in it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.batch_sizes.append(len(images))
        return images.flatten(1)[:, : self.num_classes].contiguous()


def images_with(rows: list[list[int]]) -> Tensor:
    """uint8 images [n, 1, 1, pixels]."""
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, :]


def measure(rows: list[list[int]], labels: list[int], batch_size: int = 128) -> tuple:
    model = FirstPixels(len(rows[0]))
    result = evaluate(
        model, images_with(rows), torch.tensor(labels), (0.0,), (1 / 255,), batch_size=batch_size
    )
    return result, model


def test_top1_top5_and_loss_by_hand() -> None:
    """Six classes; logits are the pixel values 1 to 6 (mean 0, std 1/255 undo the division by 255).

    Label 5 has the largest logit: Top-1; its loss is b = log(sum e^(k-6)), k = 1..6.
    Label 1 has the second smallest, within the five largest; its loss is 4 more, the distance of
    the logits 6 and 2. Label 0 has the smallest, outside the five; its loss is 5 more.
    Mean loss: (3 b + 9) / 3.
    """
    result, _ = measure([[1, 2, 3, 4, 5, 6]] * 3, [5, 1, 0])
    base = math.log(sum(math.exp(k - 6) for k in range(1, 7)))
    assert result.loss == pytest.approx(base + 3, rel=1e-6)
    assert (result.num_correct, result.num_correct_top5) == (1, 2)
    assert result.accuracy == pytest.approx(100 / 3)
    assert result.top5_accuracy == pytest.approx(200 / 3)


def test_batches_do_not_change_the_result() -> None:
    """Five images in batches of two: 2, 2 and 1."""
    rows = [[k, 5, 3] for k in range(5)]
    labels = [1, 1, 0, 2, 1]
    whole, _ = measure(rows, labels)
    parts, model = measure(rows, labels, batch_size=2)
    assert model.batch_sizes == [2, 2, 1]
    assert (parts.num_correct, parts.num_correct_top5) == (whole.num_correct, 5)
    assert parts.loss_sum == pytest.approx(whole.loss_sum, rel=1e-6)


def test_images_are_normalised() -> None:
    """Mean 0.5, std 0.25: pixels 255 and 0 become 2 and -2; the loss of 255 is log(1 + e^-4)."""
    result = evaluate(
        FirstPixels(2), images_with([[255, 0]]), torch.tensor([0]), (0.5,), (0.25,), batch_size=8
    )
    assert result.loss == pytest.approx(math.log1p(math.exp(-4)), rel=1e-5)


def test_of_fewer_than_five_classes_all_are_in_the_top() -> None:
    result, _ = measure([[1, 2], [2, 1]], [0, 0])
    assert (result.num_correct, result.num_correct_top5) == (1, 2)


def test_a_model_of_nan_has_no_loss() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 10), math.nan)

    result = evaluate(
        Broken(), images_with([[0] * 10] * 4), torch.arange(4), (0.0,), (1.0,), batch_size=2
    )
    assert result.loss is None
    assert 0 <= result.accuracy <= 100
    assert result.figures()["loss"] is None


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_afterwards_is_what_it_was(training: bool) -> None:
    model = FirstPixels(2).train(training)
    evaluate(model, images_with([[1, 2]]), torch.tensor([0]), (0.0,), (1.0,))
    assert model.training is training


def test_without_images_there_is_nothing_to_measure() -> None:
    images = torch.empty(0, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(FirstPixels(2), images, torch.empty(0, dtype=torch.int64), (0.0,), (1.0,))


def test_torch_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def fail_inside() -> None:
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert torch.get_num_threads() == before
