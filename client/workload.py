"""One round of training on made-up images, as the ClientApp does it: what a device is measured by.

Run as a process of its own (``python -m client.workload JSON``): the peak of a process's memory
cannot be taken back, and what Python, torch and Flower take by themselves is part of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from client.memory import peak_bytes, resident_bytes
from common.errors import UserError

if TYPE_CHECKING:
    import torch

    from common.config import Config
    from common.data.datasets import Dataset
    from common.messages import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained."""

    model: str = "resnet20"
    num_images: int = 5000
    """Images on the device."""
    image_size: int = 32
    """Side in pixels; three channels."""
    num_classes: int = 10
    selection: str = "quarc"
    """How it chooses images: by default student and teacher score all of them."""
    fraction: float = 0.1
    """Share of the images that is trained on."""
    batch_size: int = 32
    weight_bits: int = 2
    correction: str = "clc-channel"
    threads: int = 1
    max_memory_bytes: int = 0
    """Batches pass in parts that fit; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class WorkloadResult:
    """What a workload took; all bytes are resident memory of its process."""

    torch_version: str
    torch_bytes: int
    """After ``import torch``."""
    imported_bytes: int
    """After all imports of the ClientApp, before any image or model."""
    peak_bytes: int
    """The most, imports and training together."""
    images_per_second: float
    """Trained with teacher and student, forward and backward."""
    training_gflops: float
    """Counted operations (convolutions and matrix products) over seconds of training, 10^9/s."""


def measure_workload(workload: Workload) -> WorkloadResult:
    """Run ``workload`` in a new process.

    Raises:
        UserError: the process failed: killed for want of memory, as a rule.
    """
    with tempfile.TemporaryDirectory(prefix="fedquarc-measure-") as cache:
        done = subprocess.run(
            [sys.executable, "-m", "client.workload", json.dumps(asdict(workload))],
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(workload.threads),
                "FEDQUARC_CACHE": cache,
            },
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise UserError(f"the measurement failed: {lines[-1]}")
    return WorkloadResult(**json.loads(done.stdout.splitlines()[-1]))


def run_workload(workload: Workload) -> WorkloadResult:
    """Run ``workload`` in this process."""
    import torch

    torch_bytes = resident_bytes()
    from flwr.app import RecordDict

    import client.app  # noqa: F401  (what the process of a device imports)
    from client.device import Device
    from client.rounds import quantized_round

    imported_bytes = resident_bytes()
    torch.set_num_threads(workload.threads)
    generator = torch.Generator().manual_seed(0)
    dataset = noise_dataset(
        workload.num_images, workload.image_size, workload.num_classes, generator
    )
    images = dataset.train
    config = _config(workload)
    device = Device(
        partition_id=0,
        dataset=dataset,
        train=images,
        holdout=images,
        max_memory_bytes=workload.max_memory_bytes,
    )
    request = _request(config, workload)
    # Teacher forward, student forward and backward: a backward pass takes two products where the
    # forward pass takes one.
    flops_per_image = 4.0 * forward_flops(workload.model, workload.num_classes, workload.image_size)
    reply = quantized_round(config, device, request, RecordDict())
    metrics = reply.metrics
    if "train-seconds" not in metrics:
        raise UserError(f"the training failed: {reply.reason}")
    rate = metrics["num-examples"] / max(1e-9, metrics["train-seconds"])
    return WorkloadResult(
        torch_version=torch.__version__,
        torch_bytes=torch_bytes,
        imported_bytes=imported_bytes,
        peak_bytes=peak_bytes(),
        images_per_second=rate,
        training_gflops=rate * flops_per_image / 1e9,
    )


def noise_dataset(
    num_images: int, side: int, num_classes: int, generator: torch.Generator
) -> Dataset:
    """Images of noise with three channels, cropped and flipped as CIFAR's; test images the same.

    Args:
        num_images: class 0, 1, ... in turn.
        side: in pixels.
        num_classes: of the labels.
        generator: source of the pixels.
    """
    import torch

    from common.data.datasets import Dataset, ImageSet

    pixels = torch.randint(
        0, 256, (num_images, side, side, 3), dtype=torch.uint8, generator=generator
    )
    images = ImageSet(
        images=pixels.permute(0, 3, 1, 2),
        labels=torch.arange(num_images) % num_classes,
        class_names=tuple(map(str, range(num_classes))),
    )
    return Dataset(
        name="noise",
        train=images,
        test=images,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        crop_padding=side // 8,
        flip=True,
    )


def _config(workload: Workload) -> Config:
    from common.config import Config

    return Config.from_flat(
        {
            "model.name": workload.model,
            "quantization.weight-bits": workload.weight_bits,
            "coreset.selection": workload.selection,
            "coreset.fraction": workload.fraction,
            "training.batch-size": workload.batch_size,
            "training.correction": workload.correction,
            "run.threads": workload.threads,
        }
    )


def _request(config: Config, workload: Workload) -> TrainRequest:
    """A round's request, with fresh weights."""
    from common.checkpoints import content_hash
    from common.messages import Stage, TrainRequest
    from common.models import create_model, model_state
    from common.payloads.updates import encode_float
    from common.qat import prepare

    model = create_model(workload.model, num_classes=workload.num_classes)
    teacher = model_state(model)
    prepared = prepare(model, config.quantization)
    return TrainRequest(
        stage=Stage.QUANTIZED,
        round_index=0,
        num_rounds=1,
        model=encode_float(model_state(prepared), "float32", {}),
        model_hash="",
        teacher_hash=content_hash(teacher),
        teacher=encode_float(teacher, "float32", {}),
    )


def forward_flops(model_name: str, num_classes: int, side: int) -> float:
    """Operations of convolutions and linear layers for one image; a product and a sum are two.

    Counted from shapes: torch's own counter imports its compiler, and so does its meta device.
    """
    import torch
    from torch import nn

    from common.models import create_model

    total = 0

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        # Every output value is a dot product with the weights of its channel.
        total += 2 * output[0].numel() * weight[0].numel()

    model = create_model(model_name, num_classes=num_classes).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side))
    return float(total)


if __name__ == "__main__":
    print(json.dumps(asdict(run_workload(Workload(**json.loads(sys.argv[1]))))))
