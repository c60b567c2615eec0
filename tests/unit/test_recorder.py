"""The run folder and the summary made from what it recorded."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import Config
from common.errors import UserError
from common.lock import hold
from common.messages import Stage
from server.exchange.courier import Traffic
from server.model.evaluation import Evaluation
from server.records.plots import describe_coreset, plot_curves
from server.records.recorder import (
    LOCK_FILE,
    Recorder,
    check_run_folder,
    claimed,
    config_yaml,
    default_run_folder,
    file_digest,
    to_json,
)
from server.records.summary import RunFacts, summarise
from tests.records import recorded


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", Config()) as recorder:
        recorder.write({"kind": "device", "partition_id": 1})
        assert recorded(tmp_path / "run") == [{"kind": "device", "partition_id": 1}]
        recorder.write({"kind": "round", "round": 1})
        assert len(recorded(tmp_path / "run")) == 2
        assert recorder.rounds == [{"kind": "round", "round": 1}]


def test_a_run_goes_on_after_the_lines_that_stand(tmp_path: Path) -> None:
    """Of three lines the last came after the checkpoint; written again, the file is the same."""
    device, first, second = {"kind": "device"}, {"kind": "round", "round": 1}, {"kind": "round"}
    heard: list[Any] = []
    with Recorder(tmp_path, Config()) as recorder:
        recorder.write(device)
        recorder.write(first)
        num_bytes, digest = recorder.sync()
        recorder.write(second)
        whole = recorder.sync()
    assert num_bytes == len('{"kind": "device"}\n{"kind": "round", "round": 1}\n')
    path = tmp_path / "metrics.jsonl"
    assert file_digest(path, num_bytes) == digest
    assert file_digest(path, whole[0] + 1) == ""
    with Recorder(tmp_path, Config(), kept_bytes=num_bytes, listeners=[heard.append]) as recorder:
        assert recorded(tmp_path) == [device, first]
        assert recorder.rounds == [first]
        recorder.write(second)
        assert recorder.sync() == whole
    assert heard == [second]


def test_what_is_annotated_is_in_lines_and_summary(tmp_path: Path) -> None:
    with Recorder(tmp_path, Config(), lambda line: {"asked_of": line["kind"]}) as recorder:
        assert recorder.write({"kind": "round"}) == {"kind": "round", "asked_of": "round"}
        summary = recorder.write_summary({"seed": 0})
    assert recorded(tmp_path) == recorder.rounds == [{"kind": "round", "asked_of": "round"}]
    assert summary == {"seed": 0, "asked_of": "summary"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_run_that_waits_for_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.records.recorder.CLAIM_SECONDS", 0.01)
    notes: list[str] = []
    with (
        hold(tmp_path / LOCK_FILE, wait_seconds=0.0),
        pytest.raises(UserError, match="another run is writing there: wait for its end"),
        claimed(tmp_path, notes.append),
    ):
        pass
    assert notes == [f"'{tmp_path}': another run is writing there: waiting for it to end"]


def test_the_settings_are_written_so_that_they_can_be_read_back(tmp_path: Path) -> None:
    config = Config.from_flat({"run.seed": 7, "training.weight-decay": 1e-5, "data.root": "no"})
    with Recorder(tmp_path / "run", config):
        sections = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    flat = {
        f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()
    }
    assert Config.from_flat(flat) == config


def test_numbers_that_are_not_finite_become_null() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": True})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": True}


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.txt").write_text("precious")
    with pytest.raises(UserError, match="expected a new or empty folder"):
        Recorder(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["results.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(UserError, match="expected a folder, found a file"):
        Recorder(tmp_path / "run", Config())


def test_the_summary_is_replaced_as_a_whole(tmp_path: Path) -> None:
    with Recorder(tmp_path, Config()) as recorder:
        recorder.write_summary({"final_accuracy": 1.0})
        recorder.write_summary({"final_accuracy": math.nan})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"final_accuracy": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
    ]


def test_the_default_folder_names_what_runs() -> None:
    folder = default_run_folder(Config())
    assert folder.parent == Path("runs")
    assert folder.name.startswith("digits-resnet8-2w32a-")
    assert len(folder.name) == len("digits-resnet8-2w32a-YYYYmmdd-HHMMSS")
    for key in ("run.out", "run.resume"):
        assert default_run_folder(Config.from_flat({key: "there"})) == Path("there")


def line(stage: Stage, number: int, **figures: Any) -> dict[str, Any]:
    return {
        "kind": "round",
        "stage": stage.value,
        "round": number,
        "skipped": False,
        "refused": {},
        "train_loss": 1.0,
        "upload_bytes": 10,
        "download_bytes": 100,
        "teacher_bytes": 0,
        "float32_upload_bytes": 80,
        "select_seconds": 1.0,
        "train_seconds": 2.0,
        **figures,
    }


def measured(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "top5_accuracy": accuracy + 5, "loss": 1.0}


ROUNDS = [
    line(Stage.FLOAT, 1, **measured(95.0), upload_bytes=1000, train_seconds=7.0),
    line(Stage.CALIBRATION, 1, upload_bytes=3, download_bytes=5),
    line(Stage.QUANTIZED, 1, **measured(40.0), teacher_bytes=60, refused={"diverged": 1}),
    line(Stage.QUANTIZED, 2, skipped=True, refused={"diverged": 2, "no-reply": 1}),
    line(
        Stage.QUANTIZED,
        3,
        **measured(60.0),
        device_accuracy=55.0,
        evaluation_upload_bytes=2,
        evaluation_download_bytes=4,
        evaluation_refused={"no-reply": 1},
    ),
    line(
        Stage.QUANTIZED,
        4,
        **measured(50.0),
        statistics_upload_bytes=6,
        statistics_download_bytes=9,
        statistics_refused={"paused": 1},
    ),
]


def make_summary(
    rounds: list[dict[str, Any]] = ROUNDS, config: Config | None = None
) -> dict[str, Any]:
    facts = RunFacts(
        float_model=Evaluation(num_correct=9, num_examples=10, num_correct_top5=10, loss_sum=5.0),
        before=Evaluation(
            num_correct=2,
            num_examples=10,
            num_correct_top5=5,
            loss_sum=math.nan,
            num_correct_by_bits={"2": 2, "4": 3},
        ),
        teacher_hash="abc",
        data_fingerprint="def",
        num_devices=10,
        query_traffic=Traffic(upload_bytes=7, download_bytes=8),
        wall_seconds=12.5,
    )
    return summarise(config or Config(), rounds, facts)


def test_a_summary_of_hand_made_rounds() -> None:
    """Four quantized rounds: 4 * 10 bytes up and 4 * 1 s; best 60 in round 3, last 50.

    All uploads: warm-up 1000, calibration 3, rounds 40, statistics 6, evaluation 2, queries 7.
    All downloads: warm-up 100, calibration 5, rounds 400, statistics 9, evaluation 4, queries 8.
    """
    summary = make_summary()
    expected = {
        "dataset": "digits",
        "strategy": "fedavg",
        "num_devices": 10,
        "num_rounds": 4,
        "skipped_rounds": 1,
        "float_accuracy": 90.0,
        "quantized_accuracy_before": 20.0,
        "quantized_loss_before": None,
        "final_accuracy": 50.0,
        "final_top5_accuracy": 55.0,
        "best_accuracy": 60.0,
        "best_round": 3,
        "device_accuracy": 55.0,
        "refused_replies": {"diverged": 3, "no-reply": 2, "paused": 1},
        "upload_bytes": 40,
        "download_bytes": 400,
        "teacher_bytes": 60,
        "float32_upload_bytes": 320,
        "warmup_upload_bytes": 1000,
        "warmup_download_bytes": 100,
        "calibration_upload_bytes": 3,
        "calibration_download_bytes": 5,
        "evaluation_upload_bytes": 2,
        "evaluation_download_bytes": 4,
        "query_upload_bytes": 7,
        "query_download_bytes": 8,
        "statistics_upload_bytes": 6,
        "statistics_download_bytes": 9,
        "total_upload_bytes": 1058,
        "total_download_bytes": 526,
        "select_seconds": 4.0,
        "train_seconds": 8.0,
        "warmup_train_seconds": 7.0,
        "wall_seconds": 12.5,
        "warmup_rounds": 1,
    }
    assert {name: summary[name] for name in expected} == expected


def test_what_was_sent_to_devices_that_were_still_training_is_in_the_total() -> None:
    """20 bytes beside the 526 of all others."""
    unfinished = {"unfinished_devices": 1, "unfinished_download_bytes": 20}
    summary = make_summary([*ROUNDS[:-1], {**ROUNDS[-1], **unfinished}])
    assert (summary["download_bytes"], summary["total_download_bytes"]) == (400, 546)
    assert {name: summary[name] for name in unfinished} == unfinished


def test_a_summary_of_several_bit_widths() -> None:
    """Accuracies at each of them, of the best round, the first, and of the last."""
    first, last = {"2": 60.0, "4": 70.0}, {"2": 50.0, "4": 80.0}
    rounds = [
        line(Stage.QUANTIZED, 1, **measured(60.0), bit_accuracy=first),
        line(Stage.QUANTIZED, 2, **measured(50.0), bit_accuracy=last),
    ]
    summary = make_summary(rounds, Config.from_flat({"federation.mixed-bits": "2,4"}))
    assert summary["mixed_bits"] == [2, 4]
    assert summary["bit_accuracy_before"] == {"2": 20.0, "4": 30.0}
    assert (summary["best_bit_accuracy"], summary["final_bit_accuracy"]) == (first, last)
    assert summary["device_accuracy"] is None  # nobody measured it
    assert "mixed_bits" not in make_summary()


def test_a_summary_holds_what_comparisons_need() -> None:
    needed = (
        "dataset model weight_bits activation_bits selection coreset_fraction correction strategy "
        "update_format seed num_devices num_rounds float_accuracy quantized_accuracy_before "
        "final_accuracy best_accuracy upload_bytes download_bytes float32_upload_bytes "
        "select_seconds train_seconds wall_seconds versions"
    )
    summary = make_summary()
    assert set(needed.split()) <= set(summary)
    assert set(summary["versions"]) == {"python", "torch", "flwr", "fedquarc"}
    json.dumps(summary, allow_nan=False)


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_curves(ROUNDS, make_summary(), tmp_path / "curves.png")
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_title_names_a_share_only_of_a_coreset() -> None:
    """All images are 100 %, whatever coreset.fraction says: full ignores it."""
    assert describe_coreset({"selection": "quarc", "coreset_fraction": 0.07}) == "quarc 7 %"
    assert describe_coreset({"selection": "full", "coreset_fraction": 0.1}) == "full"


def test_settings_as_yaml_are_nested_by_section() -> None:
    assert "quantization:\n  weight-bits: 2\n" in config_yaml(Config())


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run': expected a folder, found a file"):
        check_run_folder(tmp_path / "file" / "run")
    check_run_folder(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    # Asked of the system, since tests may run as root, who may do anything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"can't be written: no permission in {tmp_path}$"):
        check_run_folder(tmp_path / "new" / "run")
