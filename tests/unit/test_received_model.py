"""The global model on a device: whole, or by changes of one that it holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import RecordDict
from numpy.typing import NDArray

from client.received_model import decode_model, receive_model
from client.state import load_model, save_model
from common.config import Config
from common.messages import Stage, TrainRequest
from common.payloads.updates import encode_delta, encode_float
from common.payloads.wire import WireError

State = dict[str, NDArray[np.float32]]
CHANGES = Config.from_flat({"federation.downlink-format": "delta"})


def state(value: float) -> State:
    return {"w": np.full((2, 3), value, np.float32), "b": np.array([value], np.float32)}


def change(before: float, after: float, base_hash: str) -> bytes:
    """Exact: in each row all values move by the same, and 4 bits hold the largest."""
    metadata = {"base-hash": base_hash}
    return encode_delta(state(after), state(before), 4, None, None, metadata)[0]


def request(*, model: bytes = b"") -> TrainRequest:
    """For model "m2": from m0 by 1 to m1, from there by 2."""
    return TrainRequest(
        stage=Stage.QUANTIZED,
        round_index=2,
        num_rounds=3,
        model=model,
        model_hash="m2",
        changes={} if model else {"m0": change(1, 2, "m0"), "m1": change(2, 4, "m1")},
    )


def holding(name: str, value: float) -> RecordDict:
    records = RecordDict()
    save_model(records, name, state(value))
    return records


def test_a_payload_is_decoded_once_and_stays_as_it_is() -> None:
    payload = encode_float(state(1), "float32", {})
    first, again = decode_model(payload), decode_model(bytes(bytearray(payload)))
    assert first is again
    np.testing.assert_array_equal(first["b"], [1])
    with pytest.raises(ValueError, match="read-only"):
        first["b"][0] = 3


@pytest.mark.parametrize(("name", "value"), [("m0", 1), ("m1", 2), ("m2", 4)])
def test_changes_lead_on_from_the_model_that_is_held(name: str, value: float) -> None:
    """From the first, from the one between, and where it is held already, from none."""
    records = holding(name, value)
    received = receive_model(CHANGES, request(), records)
    assert received is not None
    np.testing.assert_array_equal(received["w"], np.full((2, 3), 4))
    np.testing.assert_array_equal(received["b"], [4])
    with pytest.raises(ValueError, match="read-only"):
        received["b"][0] = 3
    held_name, held = load_model(records)
    assert held_name == "m2"
    np.testing.assert_array_equal(held["w"], received["w"])


@pytest.mark.parametrize("records", [RecordDict(), holding("m9", 1.0)])
def test_changes_of_a_model_that_is_not_held_lead_nowhere(records: RecordDict) -> None:
    before = load_model(records)[0]
    assert receive_model(CHANGES, request(), records) is None
    assert load_model(records)[0] == before


def test_a_change_of_another_model_is_refused() -> None:
    """Under the name of m1, but made of m0."""
    wrong = replace(request(), changes={"m1": change(2, 4, "m0")})
    with pytest.raises(WireError, match="'base-hash': expected 'm1', got 'm0'"):
        receive_model(CHANGES, wrong, holding("m1", 2))


def test_a_whole_model_takes_the_place_of_the_one_that_was_held() -> None:
    records = holding("m9", 1.0)
    whole = request(model=encode_float(state(7), "float32", {}))
    received = receive_model(CHANGES, whole, records)
    assert received is not None
    assert received["b"].tolist() == [7]
    name, held = load_model(records)
    assert (name, held["b"].tolist()) == ("m2", [7])


def test_nothing_is_held_where_models_always_go_whole() -> None:
    records = RecordDict()
    assert receive_model(Config(), request(model=encode_float(state(7), "float32", {})), records)
    assert not records
