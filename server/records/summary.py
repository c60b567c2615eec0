"""summary.json: one run in one object, made from its recorded rounds."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.checkpoints import DISTRIBUTION_NAME
from common.config import Config
from common.messages import Stage
from server.exchange.courier import Traffic
from server.model.evaluation import Evaluation

Line = Mapping[str, Any]

UNFINISHED_DEVICES = "unfinished_devices"
"""In the last round's line, where devices train without common rounds: those that were training
when it ended."""
UNFINISHED_BYTES = "unfinished_download_bytes"
"""What these had been sent."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a summary says beyond the settings and the recorded rounds."""

    float_model: Evaluation
    """The teacher."""
    before: Evaluation
    """The quantized model before training."""
    teacher_hash: str
    data_fingerprint: str
    """See `common.data.data_fingerprint`."""
    num_devices: int
    """Devices that were there when the run ended; of those that come and go not all that took
    part."""
    query_traffic: Traffic
    wall_seconds: float


def summarise(config: Config, rounds: Sequence[Line], facts: RunFacts) -> dict[str, Any]:
    """The summary of a run.

    upload_bytes and download_bytes are those of the quantization-aware training rounds, which
    float32_upload_bytes compares with; warm-up, calibration, statistics, evaluation on devices and
    queries are listed beside them, and the totals hold everything, what devices had been sent that
    were still training when the last round ended included.

    Args:
        config: of the run.
        rounds: all recorded round lines.
        facts: the rest.
    """
    trained = of_stage(rounds, Stage.QUANTIZED)
    evaluated = [line for line in trained if "accuracy" in line]
    best, last = max(evaluated, key=lambda line: line["accuracy"]), evaluated[-1]
    on_devices = [line["device_accuracy"] for line in trained if "device_accuracy" in line]
    return {
        **_settings(config),
        "num_devices": facts.num_devices,
        "num_rounds": len(trained),
        "skipped_rounds": sum(line["skipped"] for line in trained),
        "float_accuracy": facts.float_model.accuracy,
        "float_top5_accuracy": facts.float_model.top5_accuracy,
        "float_loss": facts.float_model.loss,
        "quantized_accuracy_before": facts.before.accuracy,
        "quantized_top5_accuracy_before": facts.before.top5_accuracy,
        "quantized_loss_before": facts.before.loss,
        "final_accuracy": last["accuracy"],
        "final_top5_accuracy": last["top5_accuracy"],
        "final_loss": last["loss"],
        "best_accuracy": best["accuracy"],
        "best_top5_accuracy": best["top5_accuracy"],
        "best_round": best["round"],
        **_bit_figures(config, facts.before, last, best),
        "device_accuracy": on_devices[-1] if on_devices else None,
        "refused_replies": _refused(rounds),
        **_bytes(rounds, facts.query_traffic),
        **{name: value for name, value in last.items() if name.startswith("unfinished_")},
        **_seconds(rounds, facts.wall_seconds),
        "warmup_rounds": len(of_stage(rounds, Stage.FLOAT)),
        "teacher_hash": facts.teacher_hash,
        "data_fingerprint": facts.data_fingerprint,
        "versions": versions(),
    }


def of_stage(rounds: Iterable[Line], stage: Stage) -> list[Line]:
    """The lines of one stage's rounds."""
    return [line for line in rounds if line["stage"] == stage.value]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    try:
        own = importlib.metadata.version(DISTRIBUTION_NAME)
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flwr": importlib.metadata.version("flwr"),
        DISTRIBUTION_NAME: own,
    }


def _settings(config: Config) -> dict[str, Any]:
    return {
        "dataset": config.data.dataset,
        "partition": config.data.partition,
        "model": config.model.name,
        "weight_bits": config.quantization.weight_bits,
        "activation_bits": config.quantization.activation_bits,
        "selection": config.coreset.selection,
        "coreset_fraction": config.coreset.fraction,
        "correction": config.training.correction,
        "strategy": config.strategy.name,
        "update_format": config.federation.update_format,
        "downlink_format": config.federation.downlink_format,
        "seed": config.run.seed,
    }


def _bit_figures(config: Config, before: Evaluation, last: Line, best: Line) -> dict[str, Any]:
    """Accuracy at each bit-width; the run's own figures are those at quantization.weight-bits."""
    if not config.federation.mixed_bits:
        return {}
    return {
        "mixed_bits": list(config.device_bits),
        "bit_weighting": config.federation.bit_weighting,
        "bit_accuracy_before": before.bit_accuracy,
        "final_bit_accuracy": last["bit_accuracy"],
        "best_bit_accuracy": best["bit_accuracy"],
    }


def _bytes(rounds: Sequence[Line], queries: Traffic) -> dict[str, int]:
    def total(name: str, *stages: Stage) -> int:
        return sum(line.get(name, 0) for stage in stages for line in of_stage(rounds, stage))

    everything = tuple(Stage)
    evaluation_upload = total("evaluation_upload_bytes", *everything)
    evaluation_download = total("evaluation_download_bytes", *everything)
    statistics_upload = total("statistics_upload_bytes", Stage.QUANTIZED)
    statistics_download = total("statistics_download_bytes", Stage.QUANTIZED)
    return {
        "upload_bytes": total("upload_bytes", Stage.QUANTIZED),
        "download_bytes": total("download_bytes", Stage.QUANTIZED),
        "teacher_bytes": total("teacher_bytes", Stage.QUANTIZED),
        "float32_upload_bytes": total("float32_upload_bytes", Stage.QUANTIZED),
        "warmup_upload_bytes": total("upload_bytes", Stage.FLOAT),
        "warmup_download_bytes": total("download_bytes", Stage.FLOAT),
        "calibration_upload_bytes": total("upload_bytes", Stage.CALIBRATION),
        "calibration_download_bytes": total("download_bytes", Stage.CALIBRATION),
        "statistics_upload_bytes": statistics_upload,
        "statistics_download_bytes": statistics_download,
        "evaluation_upload_bytes": evaluation_upload,
        "evaluation_download_bytes": evaluation_download,
        "query_upload_bytes": queries.upload_bytes,
        "query_download_bytes": queries.download_bytes,
        "total_upload_bytes": (
            total("upload_bytes", *everything)
            + statistics_upload
            + evaluation_upload
            + queries.upload_bytes
        ),
        "total_download_bytes": (
            total("download_bytes", *everything)
            + total(UNFINISHED_BYTES, *everything)
            + statistics_download
            + evaluation_download
            + queries.download_bytes
        ),
    }


def _seconds(rounds: Sequence[Line], wall_seconds: float) -> dict[str, float]:
    trained, warmup = of_stage(rounds, Stage.QUANTIZED), of_stage(rounds, Stage.FLOAT)
    return {
        "select_seconds": sum(line["select_seconds"] for line in trained),
        "train_seconds": sum(line["train_seconds"] for line in trained),
        "warmup_train_seconds": sum(line["train_seconds"] for line in warmup),
        "wall_seconds": wall_seconds,
    }


def _refused(rounds: Iterable[Line]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for line in rounds:
        counts.update(line["refused"])
        counts.update(line.get("statistics_refused", {}))
        counts.update(line.get("evaluation_refused", {}))
    return dict(sorted(counts.items()))
