"""Tests of simulations.paper.cell, on digits."""

from pathlib import Path

import pytest
import torch

from common.checkpoints import save_checkpoint
from common.config import Config
from common.data.data_fingerprint import data_fingerprint
from common.errors import UserError
from common.inference import top1
from common.models import create_model, load_state, model_state
from common.settings import Scalar
from simulations.paper.cell import Workbench, run_cell
from simulations.pretraining.run import pretrain, pretrain_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float resnet8 after two epochs on digits."""
    path = tmp_path_factory.mktemp("teacher") / "resnet8-digits.safetensors"
    config = pretrain_config("resnet8", "digits", 2, {"training.batch-size": 32})
    accuracy = pretrain(config, Workbench(CPU).dataset(config.data), path, CPU)
    assert accuracy > 60  # chance is 10
    return path


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench(CPU)


def config(teacher: Path, **settings: Scalar) -> Config:
    """Three epochs on a fifth of digits, a new coreset after two; 4-bit weights."""
    defaults: dict[str, Scalar] = {
        "model.name": "resnet8",
        "model.teacher": str(teacher),
        "quantization.weight-bits": 4,
        "coreset.selection": "res",
        "coreset.fraction": 0.2,
        "coreset.interval": 2,
        "training.local-epochs": 3,
        "training.batch-size": 32,
    }
    return Config.from_flat({**defaults, **settings})


def test_a_cell_trains_and_is_measured(teacher: Path, workbench: Workbench) -> None:
    """Each class of c images gives round(c / 5); coresets are chosen at epochs 0 and 2; three
    epochs see the coreset three times. Four bits end near the teacher."""
    progress: list[float] = []
    settings = config(teacher)
    result = run_cell(settings, workbench, progress.append)
    dataset = workbench.dataset(settings.data)
    size = sum(max(1, round(0.2 * count)) for count in dataset.train.labels.bincount().tolist())
    assert result.coreset_size == size
    assert result.num_seen == 3 * size
    assert result.num_selections == 2
    assert progress[0] == 0.0
    assert progress == sorted(progress)
    assert 0.99 < progress[-1] + 1 / len(progress) <= 1.0 + 1e-9
    assert result.accuracy is not None
    assert result.accuracy > result.teacher_accuracy - 15
    assert result.diverged == ""
    assert result.data_fingerprint == data_fingerprint(dataset)
    assert result.device == "cpu"
    assert min(result.train_seconds, result.train_cpu_seconds) > 0


def test_the_teacher_is_measured_as_it_is(teacher: Path, workbench: Workbench) -> None:
    settings = config(teacher)
    loaded = workbench.teacher(settings.data, settings.model)
    dataset = workbench.dataset(settings.data)
    model = create_model("resnet8", num_classes=10, in_channels=1)
    load_state(model, loaded.state)
    assert loaded.accuracy == top1(model, dataset.test, dataset)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_same_seed_gives_the_same_cell(teacher: Path) -> None:
    """In another process as well: nothing of the first workbench is used by the second."""
    first = run_cell(config(teacher), Workbench(CPU))
    again = run_cell(config(teacher), Workbench(CPU))
    other = run_cell(config(teacher, **{"run.seed": 1}), Workbench(CPU))
    assert (first.accuracy, first.mean_loss) == (again.accuracy, again.mean_loss)
    assert first.mean_loss != other.mean_loss


def test_teacher_outputs_are_computed_once_and_paid_for_by_all(teacher: Path) -> None:
    workbench = Workbench(CPU)
    results = [run_cell(config(teacher, **{"run.seed": seed}), workbench) for seed in range(2)]
    settings = config(teacher)
    shared = workbench.teacher_outputs(settings.data, settings.model, "float32")
    assert workbench.teacher_outputs.cache_info().misses == 1
    assert shared.values.sum(1).allclose(torch.ones(len(shared.values)))
    assert all(result.select_seconds > shared.seconds for result in results)
    assert all(result.select_cpu_seconds > shared.cpu_seconds for result in results)


@pytest.mark.parametrize(
    "settings",
    [{"coreset.selection": "random"}, {"coreset.selection": "evs"}, {"coreset.pool": 2.0}],
)
def test_teacher_outputs_on_all_images_are_computed_when_needed_only(
    teacher: Path, settings: dict[str, Scalar]
) -> None:
    workbench = Workbench(CPU)
    result = run_cell(config(teacher, **settings), workbench)
    assert result.num_selections == 2
    assert workbench.teacher_outputs.cache_info().currsize == 0


def test_activations_are_quantized_too(teacher: Path, workbench: Workbench) -> None:
    settings = config(teacher, **{"quantization.activation-bits": 4})
    result = run_cell(settings, workbench)
    assert result.accuracy is not None
    assert result.accuracy > result.teacher_accuracy - 25


def test_all_images_and_a_correction(teacher: Path, workbench: Workbench) -> None:
    settings: dict[str, Scalar] = {
        "coreset.selection": "full",
        "training.local-epochs": 1,
        "training.correction": "clc-pooled",
    }
    result = run_cell(config(teacher, **settings), workbench)
    dataset = workbench.dataset(config(teacher).data)
    assert result.coreset_size == result.num_seen == len(dataset.train)


def test_divergence_is_a_result(teacher: Path, workbench: Workbench) -> None:
    result = run_cell(config(teacher, **{"training.learning-rate": 1e30}), workbench)
    assert result.accuracy is None
    assert "nan" in result.diverged or "inf" in result.diverged or "finite" in result.diverged


def test_a_cell_needs_a_teacher_of_its_architecture(tmp_path: Path, workbench: Workbench) -> None:
    with pytest.raises(UserError, match=r"model\.teacher is empty: expected 'shipped' or a check"):
        run_cell(config(Path("x"), **{"model.teacher": ""}), workbench)
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, model_state(create_model("resnet20", num_classes=10, in_channels=1)), {})
    with pytest.raises(UserError, match="is not a resnet8 with 10 classes and 1 image channels"):
        run_cell(config(path), workbench)
