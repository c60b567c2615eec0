"""Devices at 2 and at 4 bits in one tiny federation, and the same after it was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from common.data.datasets import load_dataset
from common.payloads.packed_model import load_packed_model
from server.model.evaluation import evaluate
from tests.golden.test_resume import assert_equal_runs, run_here, run_until_killed, sha256
from tests.records import recorded

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SETTINGS = {"federation.mixed-bits": "2,4", "federation.bit-weighting": "error"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "run"
    run_here(folder, resume=False, **SETTINGS)
    return folder


def test_every_device_has_its_bit_width(run: Path) -> None:
    """Three devices, spread over two bit-widths: 2, 4, 2; all their replies are good."""
    devices = recorded(run, "device")
    assert {(line["partition_id"], line["weight_bits"]) for line in devices} == {
        (0, 2),
        (1, 4),
        (2, 2),
    }
    assert {line["status"] for line in devices} == {"ok"}


def test_the_model_is_kept_at_every_bit_width(run: Path) -> None:
    """The files give the accuracies that the summary and the best round's line tell."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figures = summary["best_bit_accuracy"]
    assert summary["best_accuracy"] == figures["2"]
    rounds = [line for line in recorded(run, "round") if line["stage"] == "quantized"]
    assert rounds[summary["best_round"] - 1]["bit_accuracy"] == figures
    dataset = load_dataset("digits", None, None)
    for name, bits in (("best.fqrc", "2"), ("best-4bit.fqrc", "4")):
        test = dataset.test
        model = load_packed_model(run / name).network
        measured = evaluate(model, test.images, test.labels, dataset.mean, dataset.std)
        assert measured.accuracy == figures[bits]


def test_latents_and_all_steps_are_in_one_file(run: Path) -> None:
    names = set(load_file(run / "best.safetensors"))
    assert "layer1.0.conv1.weight_quantizer.2bit.step" in names
    assert "layer1.0.conv1.weight_quantizer.4bit.step" in names
    assert "conv1.weight_quantizer.step" in names


def test_a_killed_run_goes_on_with_the_steps_of_every_bit_width(run: Path, tmp_path: Path) -> None:
    """Messages: 3 queries, 6 in the warm-up, 3 in the calibration; it dies in the second round."""
    folder = tmp_path / "run"
    run_until_killed(folder, resume=False, num_messages=16, **SETTINGS)
    assert "going on after quantized round 1" in run_here(folder, resume=True, **SETTINGS)
    assert_equal_runs(folder, run)
    for name in ("best-4bit.fqrc", "last-4bit.fqrc"):
        assert sha256(folder, name) == sha256(run, name)
