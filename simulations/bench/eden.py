"""Bytes, error and time of a 4-bit delta beside OpenFL's EDEN pipeline.

EDEN: Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed Mean Estimation for
Federated Learning" (ICML 2022). It rotates every tensor at random and rounds to the quantizer that
is best for normal values; what it loses is not fed back.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.extras import import_extra
from common.models import model_state
from common.payloads.updates import decode_state, encode_delta
from common.seeding import numpy_generator
from simulations.bench import noise
from simulations.bench.deltas import BITS, GROUP
from simulations.bench.rows import Benchmark, Figure, Row
from simulations.bench.sizes import SEED, Sizes
from simulations.bench.steps import training

SMALLEST_TENSOR = 1000
"""Tensors of more values are compressed: the value that OpenFL's documentation names."""

State = Mapping[str, NDArray[np.float32]]


def benchmarks(sizes: Sizes) -> list[Benchmark]:
    """One model's change in a few training steps."""
    return [Benchmark(title="updates beside EDEN", run=partial(_compare, sizes))]


def _compare(sizes: Sizes) -> list[Row]:
    row = partial(
        Row, group=GROUP, subject=f"{BITS}-bit delta of {sizes.eden_model}", against="OpenFL's EDEN"
    )
    try:
        pipelines = import_extra("openfl.pipelines.eden_pipeline", needed_for="the comparison")
    except (UserError, ImportError):
        return [row(unit="x the bytes", figure=None, note="OpenFL is not installed")]
    with _undisturbed():
        eden = pipelines.EdenPipeline(n_bits=BITS, dim_threshold=SMALLEST_TENSOR)
    base, state = _trained(sizes)
    delta = {name: state[name] - base[name] for name in state}
    generator = numpy_generator(SEED, "bench-eden")
    payload, _ = encode_delta(state, base, BITS, None, generator, {})
    decoded = decode_state(payload, base=base)
    sent = _eden_encode(eden, delta)
    received = _eden_decode(eden, sent)
    own_error = _relative_error(delta, {name: decoded[name] - base[name] for name in received})
    own_bytes, eden_bytes = len(payload), _num_bytes(sent)
    eden_error = _relative_error(delta, received)
    encode = partial(encode_delta, state, base, BITS, None, generator, {})
    return [
        row(
            unit="x the bytes",
            figure=Figure.of([own_bytes / eden_bytes]),
            note=f"{own_bytes:,} and {eden_bytes:,} bytes",
        ),
        row(
            unit="x the squared error",
            figure=Figure.of([own_error / eden_error]),
            note=f"of what is sent, {own_error:.4f} and {eden_error:.4f}; before error feedback",
        ),
        row(
            unit="x the time to encode",
            figure=sizes.timer.ratio(encode, lambda: _eden_encode(eden, delta)),
        ),
        row(
            unit="x the time to decode",
            figure=sizes.timer.ratio(
                lambda: decode_state(payload, base=base), lambda: _eden_decode(eden, sent)
            ),
        ),
    ]


def _trained(sizes: Sizes) -> tuple[State, State]:
    """A model's state before and after some steps of training on noise."""
    num_images = sizes.step_batch * sizes.eden_steps
    dataset = noise.images(num_images, sizes.image_side)
    model = noise.quantized_model(sizes.eden_model, 2, 32, dataset)
    base = {name: values.copy() for name, values in model_state(model).items()}
    training(sizes, dataset, model, noise.float_model(sizes.eden_model).eval())()
    return base, model_state(model)


Sent = Mapping[str, tuple[bytes, list[Any]]]


def _eden_encode(eden: Any, delta: State) -> Sent:
    with _undisturbed():
        return {name: eden.forward(values) for name, values in delta.items()}


def _eden_decode(eden: Any, sent: Sent) -> State:
    """The compressed tensors; the others are sent as they are."""
    return {
        name: eden.backward(data, list(metadata))
        for name, (data, metadata) in sent.items()
        if "int_to_float" in metadata[0]
    }


def _num_bytes(sent: Sent) -> int:
    """Data, and four bytes for every number of the metadata; names are not counted."""
    return sum(
        len(data) + 4 * sum(len(numbers) for part in metadata for numbers in part.values())
        for data, metadata in sent.values()
    )


def _relative_error(delta: State, received: State) -> float:
    """Squared error over squared length, of the tensors that were received."""
    error = sum(float(np.square(received[name] - delta[name]).sum()) for name in received)
    return error / sum(float(np.square(delta[name]).sum()) for name in received)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """EDEN prints, and draws from numpy's global generator: given back as it was."""
    before = np.random.get_state()
    np.random.seed(SEED)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        np.random.set_state(before)
