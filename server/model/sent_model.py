"""The global model on its way to devices that hold an earlier one: as changes.

Devices train from the model that the changes lead to; what they changed is added to the server's
own, which is not rounded. So what one change's rounding loses is part of the next (error feedback:
Seide et al., Interspeech 2014), also after a round that was skipped, or that not all bit-widths had
a part in. It is small where rounds change little, as in the end of a training; to round the model
itself loses as much there as everywhere (docs/results/federated-cifar100.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from common.payloads.update_choice import dither_with_feedback
from common.payloads.updates import BASE_HASH_KEY, decode_state, encode_delta, encode_float
from server.model.aggregation import State, keep_valid
from server.model.forms import payload_hash


@dataclass(frozen=True, kw_only=True)
class SentModel:
    """A model as devices hold it."""

    name: str
    """Digest of the payload that led to it: of all of it, or of the last change."""
    state: State
    """What that decodes to."""
    changes: Mapping[str, bytes] = field(default_factory=dict)
    """Name of an earlier model -> payload of the change from it to the next, oldest first."""


def next_model(
    before: SentModel | None, state: State, bits: int, generator: np.random.Generator
) -> SentModel:
    """The model next to ``state`` that a rounded change leads to.

    Args:
        before: the last one that devices were sent; None: there is none, and ``state`` goes as it
            is.
        state: the server's, name -> float32 array.
        bits: of a changed weight, 2 to 8.
        generator: dither of the rounding.

    Returns:
        The model, with as many changes as are smaller together than it is itself.
    """
    if before is None:
        return _beginning(state)
    metadata = {BASE_HASH_KEY: before.name}
    dither = dither_with_feedback(bits, generator)
    change, _ = encode_delta(state, before.state, bits, None, dither, metadata)
    reached = decode_state(change, base=before.state)
    if any(not np.array_equal(reached[name], kept) for name, kept in keep_valid(reached).items()):
        return _beginning(state)
    changes = {**before.changes, before.name: change}
    num_bytes = sum(values.nbytes for values in reached.values())
    while sum(map(len, changes.values())) >= num_bytes:
        del changes[next(iter(changes))]
    return SentModel(name=payload_hash(change), state=reached, changes=changes)


def rebase(state: State, base: State, target: State) -> State:
    """``target`` with the changes of a device that trained from ``base``, which stood for it.

    Args:
        state: what the device trained, name -> float32 array.
        base: what it was sent; more entries do not matter, as in ``target``.
        target: what that was before it was rounded.
    """
    # numpy turns what it computes from arrays of shape () into a scalar.
    return {
        name: np.asarray(values + (target[name] - base[name])) for name, values in state.items()
    }


def _beginning(state: State) -> SentModel:
    return SentModel(name=payload_hash(encode_float(state, "float32", {})), state=state)
