"""A selection beside one evaluation of the model that scores, the teacher's outputs kept."""

from __future__ import annotations

from functools import partial

import torch

from client.selection import choose_coreset
from common.config import Config, CoresetConfig
from common.inference import predict_logits
from common.seeding import torch_generator
from simulations.bench import noise
from simulations.bench.rows import Benchmark, Row, Target
from simulations.bench.sizes import NUM_CLASSES, SEED, Sizes

GROUP = "Selection"
LARGE_DEVICE = 50_000


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Each model, with QuaRC's selection and the default bits."""
    return [
        Benchmark(title=f"selection by {model}", run=partial(_compare, sizes, model, num_images))
        for model, num_images in zip(sizes.step_models, sizes.selection_images, strict=True)
    ]


def _compare(sizes: Sizes, model: str, num_images: int) -> list[Row]:
    config = Config(coreset=CoresetConfig(selection="quarc"))
    dataset = noise.images(num_images, sizes.image_side)
    quantization = config.quantization
    student = noise.quantized_model(
        model, quantization.weight_bits, quantization.activation_bits, dataset
    )
    teacher_logits = torch.randn(
        num_images, NUM_CLASSES, generator=torch_generator(SEED, "bench-teacher")
    )
    select = partial(
        choose_coreset,
        config.coreset,
        dataset.train,
        dataset,
        student=student,
        teacher_outputs=teacher_logits.softmax(1),
        epoch=0,
        num_epochs=1,
        generator=torch_generator(SEED, "bench-selection"),
    )
    subject = f"{config.coreset.selection}, {model}, {num_images:,} images"
    timer = sizes.selection_timer
    rate = timer.rate(select, num_images)
    return [
        Row(
            group=GROUP,
            subject=subject,
            against="evaluation of the quantized model",
            unit="x the time",
            figure=timer.ratio(
                select, lambda: predict_logits(student, dataset.train.images, dataset)
            ),
            target=Target(bound=1.1),
        ),
        Row(
            group=GROUP,
            subject=subject,
            unit="images/s",
            figure=rate,
            note=f"{LARGE_DEVICE:,} images at this rate: {LARGE_DEVICE / rate.median:.0f} s",
        ),
    ]
