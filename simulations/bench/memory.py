"""Peak memory of a training device, a process of its own for each model and batch size."""

from __future__ import annotations

from functools import partial

from client.memory import MB
from client.workload import Workload, measure_workload
from simulations.bench.rows import Benchmark, Figure, Row
from simulations.bench.sizes import Sizes

GROUP = "Memory of a device"


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Every model with every batch size."""
    return [
        Benchmark(
            title=f"memory of {model}, batch {batch_size}",
            run=partial(_measure, sizes, model, batch_size),
        )
        for model in sizes.memory_models
        for batch_size in sizes.memory_batches
    ]


def _measure(sizes: Sizes, model: str, batch_size: int) -> list[Row]:
    workload = Workload(
        model=model,
        num_images=2 * max(batch_size * sizes.memory_batches_in_training, Workload.num_classes),
        selection="random",
        fraction=0.5,
        image_size=sizes.image_side,
        batch_size=batch_size,
    )
    result = measure_workload(workload)
    return [
        Row(
            group=GROUP,
            subject=f"{model}, batch {batch_size}, {workload.weight_bits}w32a, "
            f"correction {workload.correction}",
            unit="MB at the peak",
            figure=Figure.of([result.peak_bytes / MB]),
            note=f"{result.imported_bytes / MB:.0f} MB after all imports",
        )
    ]
