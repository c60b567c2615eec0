"""The global model as a device gets it: whole, or as what has changed since one that it holds."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import RecordDict

from client.state import State, load_model, save_model
from common.config import Config
from common.messages import TrainRequest
from common.payloads.updates import decode_state


@lru_cache(maxsize=2)
def decode_model(payload: bytes) -> State:
    """The state that a whole model's payload holds, read-only.

    Kept, since the emulated devices of one process are sent the same model one after the other; two
    where a run has several bit-widths.
    """
    return _read_only(decode_state(payload))


def receive_model(config: Config, request: TrainRequest, records: RecordDict) -> State | None:
    """The model that a request is about, read-only; held for changes to come, where there are any.

    Args:
        config: of the run; says whether there are.
        request: of a training.
        records: of this device; hold the last model that it was sent.

    Returns:
        name -> float32 array; None: the request's changes begin from none that this device holds.

    Raises:
        WireError: a payload is not as it should be.
    """
    if request.model:
        state = decode_model(request.model)
    else:
        name, state = load_model(records)
        names = [*request.changes, request.model_hash]
        if name not in names:
            return None
        for earlier in names[names.index(name) : -1]:
            state = decode_state(request.changes[earlier], base=state, base_hash=earlier)
    if config.sends_changes:
        save_model(records, request.model_hash, state)
    return _read_only(state)


def _read_only(state: State) -> State:
    for values in state.values():
        values.flags.writeable = False
    return state
