"""Tests of simulations.pretraining.run, on digits."""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from common.checkpoints import load_checkpoint
from common.config import Config
from common.data.datasets import Dataset, load_dataset
from common.errors import UserError
from common.inference import top1
from common.models import create_model, load_state
from common.settings import Scalar
from simulations import cli
from simulations.display.progress import TrainingProgress
from simulations.pretraining import run as pretrain

CPU = torch.device("cpu")
SMALL: dict[str, Scalar] = {"training.batch-size": 64}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def small_config(num_epochs: int = 2, settings: Mapping[str, Scalar] | None = None) -> Config:
    return pretrain.pretrain_config("resnet8", "digits", num_epochs, {**SMALL, **(settings or {})})


class Killed(BaseException):
    """What ends a process from outside."""


def kill_after(epoch: int) -> Callable[[int, float], None]:
    def on_epoch(number: int, loss: float) -> None:
        if number == epoch:
            raise Killed

    return on_epoch


def test_a_teacher_is_trained_and_described(tmp_path: Path, digits: Dataset) -> None:
    out = tmp_path / "made" / "teacher.safetensors"
    losses: list[float] = []
    accuracy = pretrain.pretrain(
        small_config(), digits, out, CPU, on_epoch=lambda epoch, loss: losses.append(loss)
    )
    assert accuracy > 50  # chance is 10
    assert losses[1] < losses[0]
    assert os.listdir(out.parent) == ["teacher.safetensors"]
    model = create_model("resnet8", num_classes=10, in_channels=1)
    load_state(model, load_checkpoint(out, "resnet8", 10, 1))
    assert top1(model, digits.test, digits) == accuracy
    with safe_open(out, "numpy") as file:
        metadata = file.metadata()
    assert metadata["accuracy"] == f"{accuracy:.2f}"
    assert (metadata["epochs"], metadata["seed"], metadata["schedule"]) == ("2", "0", "one-cycle")
    assert metadata["precision"] == "float32"
    assert f"torch {torch.__version__}" in metadata["versions"]


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    tmp_path: Path, digits: Dataset
) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    pretrain.pretrain(small_config(3), digits, whole, CPU)
    with pytest.raises(Killed):
        pretrain.pretrain(small_config(3), digits, parts, CPU, on_epoch=kill_after(2))
    assert not parts.exists()
    started: list[int] = []
    pretrain.pretrain(small_config(3), digits, parts, CPU, on_start=started.append)
    assert started == [2]
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["parts.safetensors", "whole.safetensors"]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.0, "interrupted"),
        (
            0.5,
            "interrupted; what was finished before is kept, and the same command goes on from "
            "there",
        ),
    ],
)
def test_who_interrupts_is_told_how_to_go_on_once_an_epoch_is_kept(
    share: float,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the first of two epochs, and in the second."""

    def interrupt(self: TrainingProgress, done: float) -> None:
        if done >= share:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "advance", interrupt)
    arguments = ["pretrain", "--model", "resnet8", "--dataset", "digits", "--epochs", "2"]
    assert cli.main([*arguments, "--out", str(tmp_path / "teacher.safetensors")]) == 130
    assert " ".join(capsys.readouterr().err.split()) == message


def test_other_settings_do_not_go_on_with_it(tmp_path: Path, digits: Dataset) -> None:
    out = tmp_path / "teacher.safetensors"
    with pytest.raises(Killed):
        pretrain.pretrain(small_config(), digits, out, CPU, on_epoch=kill_after(1))
    other = small_config(settings={"training.learning-rate": 0.2})
    with pytest.raises(UserError, match=r"has training\.learning-rate = 0\.1, now it is 0\.2"):
        pretrain.pretrain(other, digits, out, CPU)
    unfinished = tmp_path / ".teacher.safetensors.unfinished"
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"unfinished is damaged .*: remove it to start anew"):
        pretrain.pretrain(small_config(), digits, out, CPU)


def test_other_images_do_not_go_on_with_it(tmp_path: Path, digits: Dataset) -> None:
    out = tmp_path / "teacher.safetensors"
    with pytest.raises(Killed):
        pretrain.pretrain(small_config(), digits, out, CPU, on_epoch=kill_after(1))
    others = replace(digits, train=digits.test)
    with pytest.raises(UserError, match=r"unfinished has seen other images .*: remove the file"):
        pretrain.pretrain(small_config(), others, out, CPU)


def test_a_full_disk_keeps_the_epochs_before(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "teacher.safetensors"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_the_disk(number: int, loss: float) -> None:
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(UserError, match="No space left on device; the epochs before are kept"):
        pretrain.pretrain(small_config(), digits, out, CPU, on_epoch=fill_the_disk)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [".teacher.safetensors.unfinished"]
    started: list[int] = []
    pretrain.pretrain(small_config(), digits, out, CPU, on_start=started.append)
    assert started == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "teacher.pt"], "expected a name that ends in .safetensors"),
        (["--out", "old.safetensors"], "old.safetensors is there already"),
        (["--out", "old.safetensors/new.safetensors"], "is no folder that can be written to"),
        (["--out", "new.safetensors", "--set", "coreset.fraction=1"], "no effect on a float train"),
        (["--out", "new.safetensors", "--set", "training.batch-size=0"], "expected int, >= 1"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.safetensors").write_bytes(b"")
    command = ["pretrain", "--model", "resnet8", "--dataset", "digits", "--epochs", "1"]
    assert cli.main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["old.safetensors"]


def test_a_wrong_number_of_epochs_is_refused_by_its_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "pretrain --model resnet8 --dataset digits --out new.safetensors --epochs 0"
    with pytest.raises(SystemExit, match="2"):
        cli.main(command.split())
    assert "--epochs: expected a whole number, at least 1, not '0'" in capsys.readouterr().err


def test_the_command_line_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "pretrain --model resnet8 --dataset digits --epochs 1 --out a.safetensors"
    assert cli.main([*command.split(), "--set", "training.batch-size=256"]) == 0
    output = capsys.readouterr().out
    assert "epoch 1/1: loss " in output
    assert "Top-1, written to a.safetensors" in output
