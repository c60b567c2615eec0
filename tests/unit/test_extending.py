"""The examples of docs/extending.md, run as they stand there."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from common import models
from common.config import Config, QuantizationConfig
from common.errors import UserError
from common.folding import fold_batch_norm
from common.qat import prepare
from common.settings import Scalar

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
NAMES = {
    "ArrayRecord": ArrayRecord,
    "FedAvg": FedAvg,
    "Iterable": Iterable,
    "Message": Message,
    "MetricRecord": MetricRecord,
    "Tensor": Tensor,
    "nn": nn,
}
"""What the modules import that the examples are to be added to (and, of Flower, what they need)."""


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    defined: dict[str, Any] = dict(NAMES)
    for block in blocks:
        if not block.startswith(" "):  # lines to be added to a function
            exec(block, defined)
    return defined


def test_the_model_can_be_made_quantized_and_folded(
    examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_BUILDERS", {"plain": examples["PlainNet"]})
    model = models.create_model("plain", num_classes=10, in_channels=1).eval()
    images = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert prepare(model, QuantizationConfig(weight_bits=4))(images).shape == (2, 10)
    torch.testing.assert_close(fold_batch_norm(model)(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_correction_of_a_model_without_residual_blocks_is_refused(
    examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example stands in resnet8's place; a weight of 0 corrects nothing."""
    monkeypatch.setattr(models, "_BUILDERS", {"resnet8": examples["PlainNet"]})
    monkeypatch.setattr(models, "has_feature_layers", models.has_feature_layers.__wrapped__)
    settings = {"model.name": "resnet8", "training.correction": "mse"}
    with pytest.raises(UserError, match=r"training\.correction = 'mse': expected 'none' with"):
        Config.from_flat({**settings, "training.beta": 1})
    Config.from_flat({**settings, "training.beta": 0})
    Config.from_flat({"model.name": "resnet8", "training.correction": "none"})


def test_statistics_of_a_model_without_batch_normalisation_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the last round devices would have nothing to answer with."""

    def build(num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Linear(4, num_classes))

    monkeypatch.setattr(models, "_BUILDERS", {"resnet8": build})
    monkeypatch.setattr(models, "has_batch_norm", models.has_batch_norm.__wrapped__)
    settings: dict[str, Scalar] = {"model.name": "resnet8", "training.batch-norm-images": 16}
    with pytest.raises(UserError, match=r"batch-norm-images = 16: expected 0 with model\.name"):
        Config.from_flat(settings)
    Config.from_flat({**settings, "training.batch-norm-images": 0})


def test_the_score_is_high_where_the_model_is_undecided(examples: dict[str, Any]) -> None:
    """Gaps of 0.9 - 0.05 and 0.4 - 0.35."""
    outputs = torch.tensor([[0.05, 0.9, 0.05], [0.4, 0.25, 0.35]])
    torch.testing.assert_close(examples["margin_score"](outputs), torch.tensor([0.15, 0.95]))


def test_the_strategy_weighs_devices_alike(
    examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1 with 30 images and 3 with 10 the mean is 2; by images it were 1.5."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"w": torch.full((2,), value)}),
                    "metrics": MetricRecord({"num-examples": num_examples}),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for value, num_examples in ((1.0, 30), (3.0, 10))
    ]
    arrays, _ = examples["EqualAvg"]().aggregate_train(1, replies)
    assert arrays["w"].numpy().tolist() == [2.0, 2.0]
