"""Training steps: the quantized one beside the float one and beside its peers.

All pass through `client.trainer.train`: the same augmented batches, the same optimizer, the same
loss. A step with the teacher holds one of the teacher's forward passes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from client.optimizer import make_optimizer
from client.task import training_task
from client.trainer import train
from common.config import Config
from common.data.augmentation import normalize
from common.data.datasets import Dataset
from common.errors import UserError
from common.folding import fold_batch_norm
from common.seeding import torch_generator
from simulations.bench import noise
from simulations.bench.peers import PEERS, NotExpressibleError
from simulations.bench.rows import FASTER, Benchmark, Figure, Row, Target
from simulations.bench.sizes import SEED, Sizes
from simulations.bench.timing import Action

GROUP = "Training step"
BITS = {(2, 32): Target(bound=1.1), (4, 4): Target(bound=1.5)}
"""Weight bits and activation bits, and the most that a step may take of the time of a float step
and a forward pass of the teacher."""


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Every model at every bit-width."""
    return [
        Benchmark(
            title=f"step of {model}, {weight_bits}w{activation_bits}a",
            run=partial(_compare, sizes, model, weight_bits, activation_bits),
        )
        for model in sizes.step_models
        for weight_bits, activation_bits in BITS
    ]


def _compare(sizes: Sizes, model: str, weight_bits: int, activation_bits: int) -> list[Row]:
    dataset = noise.images(sizes.step_batch, sizes.image_side)
    subject = f"{model} {weight_bits}w{activation_bits}a, batch {sizes.step_batch}"
    teacher = fold_batch_norm(noise.float_model(model))
    prepared = noise.quantized_model(model, weight_bits, activation_bits, dataset)
    steps = partial(training, sizes, dataset)
    quantized = steps(prepared, teacher)
    ratio = partial(sizes.step_timer.ratio, quantized)
    row = partial(Row, group=GROUP, subject=subject, unit="x the time")
    with_teacher = steps(noise.float_model(model), teacher)
    rows = [
        row(against="float step", figure=ratio(steps(noise.float_model(model), None))),
        row(
            against="float step + teacher forward",
            figure=ratio(with_teacher),
            target=BITS[weight_bits, activation_bits],
        ),
    ]
    for name, convert in PEERS.items():
        figure, note = None, ""
        try:
            figure = ratio(steps(convert(prepared), teacher))
        except NotExpressibleError as reason:
            note = str(reason)
        except (UserError, ImportError) as error:
            note = f"not installed: {error}"
        rows.append(row(against=name, figure=figure, target=FASTER, note=note))
    in_bfloat16 = training(sizes, dataset, prepared, teacher, precision="bfloat16")
    rows.append(row(against="the same step in bfloat16", figure=ratio(in_bfloat16)))
    share = sizes.step_timer.ratio(teacher_passes(sizes, dataset, teacher), quantized)
    rows.append(
        row(
            against="the teacher's forward pass in it",
            unit="% of the time",
            figure=Figure(
                median=100 * share.median,
                low=100 * share.low,
                high=100 * share.high,
                count=share.count,
            ),
        )
    )
    return rows


def training(
    sizes: Sizes,
    dataset: Dataset,
    model: nn.Module,
    teacher: nn.Module | None,
    *,
    precision: str = "float32",
) -> Action:
    """Some steps of training on all images; without a teacher by cross-entropy with labels."""
    config = Config.from_flat(
        {
            "training.batch-size": sizes.step_batch,
            "training.loss": "ce" if teacher is None else "kd",
            # So small that training on noise for long leaves the activations as they are.
            "training.learning-rate": 1e-4,
            "training.schedule": "constant",
            "training.precision": precision,
        }
    )
    task = training_task(config, first_epoch=0, num_epochs=1, total_epochs=1)
    optimizer = make_optimizer(model, task)
    generator = torch_generator(SEED, "bench-steps")
    indices = torch.arange(len(dataset.train))
    return lambda: train(
        model,
        teacher,
        dataset,
        dataset.train,
        indices,
        task,
        generator,
        optimizer=optimizer,
    )


def teacher_passes(sizes: Sizes, dataset: Dataset, teacher: nn.Module) -> Action:
    """Forward passes over all images, normalised before."""
    batches = [
        normalize(images, dataset.mean, dataset.std)
        for images in dataset.train.images.split(sizes.step_batch)
    ]

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                teacher(batch)

    return forward
