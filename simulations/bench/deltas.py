"""Updates on their way: 4-bit deltas encoded with error feedback, and decoded."""

from __future__ import annotations

from functools import partial
from itertools import count

import numpy as np

from common.models import model_state
from common.payloads.updates import decode_state, encode_delta
from common.seeding import numpy_generator
from simulations.bench import noise
from simulations.bench.rows import Benchmark, Row, Target
from simulations.bench.sizes import SEED, Sizes
from simulations.bench.timing import Action

GROUP = "Updates"
BITS = 4
TYPICAL_CHANGE = 1e-3


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Each model."""
    return [
        Benchmark(title=f"deltas of {model}", run=partial(_measure, sizes, model))
        for model in sizes.delta_models
    ]


def _measure(sizes: Sizes, model: str) -> list[Row]:
    base = {name: values.copy() for name, values in model_state(noise.float_model(model)).items()}
    generator = numpy_generator(SEED, "bench-deltas")
    state = {
        name: values + TYPICAL_CHANGE * generator.standard_normal(values.shape, np.float32)
        for name, values in base.items()
    }
    # A device's second round: there is a residual to add.
    payload, residual = encode_delta(state, base, BITS, None, generator, {})
    gigabytes = sum(values.nbytes for values in state.values()) / 1e9
    rounds = count(2)
    timed: dict[str, Action] = {
        # Of a new round each time, as a device's: the header of an earlier one does not serve.
        "encode": lambda: encode_delta(
            state, base, BITS, residual, generator, {"round": next(rounds)}
        ),
        "decode": partial(decode_state, payload, base=base),
    }
    return [
        Row(
            group=GROUP,
            subject=f"{name} a {BITS}-bit delta of {model}, {gigabytes * 1e3:.1f} MB as float32",
            unit="GB/s of float32",
            figure=sizes.timer.rate(action, gigabytes),
            target=Target(bound=1.0, at_least=True),
        )
        for name, action in timed.items()
    ]
