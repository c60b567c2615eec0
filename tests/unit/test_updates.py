"""Update formats: what each keeps, error feedback, sizes, and refusal of the wrong update."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.payloads import wire
from common.payloads.updates import (
    decode_state,
    decode_update,
    encode_codes,
    encode_delta,
    encode_float,
    encode_int8,
)
from common.payloads.wire import Codes, Plain, WireError

State = dict[str, np.ndarray]
Encoder = Callable[[State], bytes]

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
VALUES = st.floats(-1e6, 1e6, width=32)
STATES = st.dictionaries(
    st.sampled_from("abcdef"), npst.arrays(np.float32, SHAPES, elements=VALUES), max_size=5
)
ENCODERS: dict[str, Encoder] = {
    "float32": lambda state: encode_float(state, "float32", {}),
    "float16": lambda state: encode_float(state, "float16", {}),
    "int8": lambda state: encode_int8(state, {}),
    "codes": lambda state: encode_codes(state, {}, {}),
    "delta": lambda state: encode_delta(state, zeros_like(state), 4, None, seeded(), {})[0],
}


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def zeros_like(state: Mapping[str, np.ndarray]) -> State:
    return {name: np.zeros_like(values) for name, values in state.items()}


def shapes_of(state: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in state.items()}


def small_state(seed: int = 0) -> State:
    generator = seeded(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.step": (), "bn.bias": (4,), "fc.weight": (5, 4)}
    return {
        name: np.asarray(generator.standard_normal(shape), np.float32)
        for name, shape in shapes.items()
    }


def resnet20_like() -> tuple[State, dict[str, Codes]]:
    """The state of a quantized ResNet-20 for 100 classes, and its weights' codes.

    Float32 values: 269,824 weights in 2 bits (18 convolutions of 3x3: 9 * (6*16*16 + 16*32
    + 5*32*32 + 32*64 + 5*64*64) = 267,264, and 16*32 + 32*64 = 2,560 of two projections), 432 +
    6,400 in 8 bits, 784 channels x 4 vectors, 100 biases, 22 steps: 279,914, so 1,119,656 bytes.
    """
    generator = seeded(20)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}
    norms = {"bn1": 16}
    width_in = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            prefix = f"layer{stage}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (width, width_in, 3, 3)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            norms |= {f"{prefix}.bn1": width, f"{prefix}.bn2": width}
            if width != width_in:
                shapes[f"{prefix}.downsample.0.weight"] = (width, width_in, 1, 1)
                norms[f"{prefix}.downsample.1"] = width
            width_in = width
    shapes["fc.weight"] = (100, 64)
    weights = list(shapes)
    shapes |= {f"{name}_quantizer.step": () for name in weights} | {"fc.bias": (100,)}
    for norm, width in norms.items():
        vectors = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{norm}.{vector}": (width,) for vector in vectors}
    state = {
        name: np.asarray(generator.standard_normal(shape), np.float32)
        for name, shape in shapes.items()
    }
    quantized = {}
    for name in weights:
        bits = 8 if name in ("conv1.weight", "fc.weight") else 2
        codes = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shapes[name], np.int8)
        quantized[name] = Codes(codes, bits, state[f"{name}_quantizer.step"])
    assert 4 * sum(values.size for values in state.values()) == 1_119_656
    return state, quantized


@pytest.mark.parametrize("update_format", ENCODERS)
@given(state=STATES)
@settings(deadline=None, max_examples=30)
def test_any_state_comes_back_in_shape(update_format: str, state: State) -> None:
    """Empty and 0-d tensors included, and within what the format's coarsest rounding allows.

    4 bits: one step, max / 7, or a channel below 2**-100 whole. float16: 2**-11 of the value, or
    2**-25 below its normal range.
    """
    payload = ENCODERS[update_format](state)
    decoded = decode_state(payload, base=zeros_like(state), expected_shapes=shapes_of(state))
    assert list(decoded) == list(state)
    for name, values in state.items():
        assert decoded[name].dtype == np.float32
        assert decoded[name].shape == values.shape
        step = {"delta": 7, "int8": 127}.get(update_format) if values.ndim >= 2 else None
        peak = np.abs(values).max(initial=0)
        tolerance = np.abs(values) * 2**-11 + 2**-25
        if step:
            tolerance = peak / step * (1 + 2**-14) + 2.0**-100
        if update_format in ("float32", "codes"):
            tolerance *= 0
        assert (np.abs(decoded[name] - values) <= tolerance).all()


def test_float32_is_exact_and_new() -> None:
    state = small_state()
    payload = encode_float(state, "float32", {"round": 3})
    decoded = decode_state(payload)
    assert wire.decode(payload)[1] == {"format": "float32", "round": 3}
    for name, values in state.items():
        assert np.array_equal(decoded[name], values)
        decoded[name] += 1  # writable


@pytest.mark.filterwarnings("error")
def test_float16_rounds_to_nearest_even() -> None:
    """Above 1 halves are 2**-10 apart, subnormal ones 2**-24; ties go to the even one."""
    gap, smallest = 2.0**-10, 2.0**-24
    sent = {
        1 + gap / 2: 1.0,
        1 + 3 * gap / 2: 1 + 2 * gap,
        1 + gap * 0.51: 1 + gap,
        -1 - gap / 2: -1.0,
        smallest / 2: 0.0,
        smallest * 1.5: 2 * smallest,
    }
    payload = encode_float({"w": np.array(list(sent), np.float32)}, "float16", {})
    assert decode_state(payload)["w"].tolist() == list(sent.values())


def test_float16_keeps_what_overflows_as_float32() -> None:
    """float16's largest value is 65504."""
    state = {
        "fits": np.array([65504, 1.0], np.float32),
        "overflows": np.array([65505, 0.1], np.float32),
    }
    payload = encode_float(state, "float16", {})
    tensors, _ = wire.decode(payload)
    assert [tensor.encoding for tensor in tensors.values()] == ["float16", "float32"]
    decoded = decode_state(payload)
    assert all(np.array_equal(decoded[name], state[name]) for name in state)


def test_codes_are_the_deployed_weights_exactly() -> None:
    """2 bits: codes 1, -2 with step 0.25 are 0.25, -0.5, whatever the latent weights are."""
    state = small_state()
    codes = Codes(np.resize(np.array([1, -2], np.int8), (5, 4)), 2, np.array(0.25, np.float32))
    decoded = decode_state(encode_codes(state, {"fc.weight": codes}, {}))
    assert list(decoded) == list(state)
    assert decoded["fc.weight"].ravel()[:4].tolist() == [0.25, -0.5, 0.25, -0.5]
    for name in state.keys() - {"fc.weight"}:
        assert np.array_equal(decoded[name], state[name])


def test_int8_by_hand() -> None:
    """Row peaks 127 and 63.5: steps 1 and 0.5. 2.4 -> 2; -0.3 / 0.5 = -0.6 -> -1, which is -0.5."""
    state = {
        "w": np.array([[127, 2.4], [-63.5, -0.3]], np.float32),
        "b": np.array([0.1], np.float32),
    }
    decoded = decode_update(encode_int8(state, {}))
    assert decoded.state["w"].tolist() == [[127, 2], [-63.5, -0.5]]
    assert decoded.state["b"][0] == np.float32(0.1)
    assert sorted(decoded.flat.tolist()) == [-63.5, -0.5, np.float32(0.1), 2, 127]


def test_delta_by_hand() -> None:
    """3 bits, Q_P = 3, peaks of the rows 3 and 6: steps 1 and 2, so that no value needs rounding.

    Bias: 0.5 and 2049 - 2048 = 1 are float16 values.
    """
    base = {"w": np.array([[10, 20], [30, 40]], np.float32), "b": np.array([1, 2048], np.float32)}
    state = {
        "w": np.array([[13, 18], [34, 34]], np.float32),
        "b": np.array([1.5, 2049], np.float32),
    }
    payload, residual = encode_delta(state, base, 3, None, seeded(), {})
    weight = wire.decode(payload)[0]["w"]
    assert isinstance(weight, Codes)
    assert weight.codes.tolist() == [[3, -2], [2, -3]]
    assert weight.scale.tolist() == [1, 2]
    decoded = decode_state(payload, base=base)
    assert all(np.array_equal(decoded[name], state[name]) for name in state)
    assert all(not residual[name].any() for name in state)


@pytest.mark.parametrize("bits", range(2, 9))
def test_error_feedback_loses_nothing_in_the_end(bits: int) -> None:
    """Sum of decoded deltas + last residual = sum of true deltas, up to float32 rounding.

    Each of 25 rounds adds and subtracts numbers below 64 a few times: 25 * 4 * 64 * 2**-24 = 4e-4.
    Without the residual the sum is far off: even an 8-bit step is about 2 / 127 = 0.016.
    """
    sent, true, residual = zeros_like(small_state()), zeros_like(small_state()), None
    base = zeros_like(sent)
    for round_index in range(25):
        state = small_state(seed=round_index)
        payload, residual = encode_delta(state, base, bits, residual, seeded(round_index), {})
        decoded = decode_state(payload, base=base)
        for name in state:
            sent[name] += decoded[name]
            true[name] += state[name]
    assert residual is not None
    for name in true:
        np.testing.assert_allclose(sent[name] + residual[name], true[name], rtol=0, atol=4e-4)
    assert np.abs(sent["conv.weight"] - true["conv.weight"]).max() > 4e-4


def test_delta_is_unbiased() -> None:
    """A decoded value has a standard deviation of at most half a step, step <= peak / 7.

    The mean of n = 2000 draws is within 5 / 2 / sqrt(n) steps + 2**-15 of the dither: 0.056 steps.
    """
    state, draws = small_state(), 2000
    base, generator = zeros_like(state), seeded(1)
    mean = np.zeros((4, 27))
    for _ in range(draws):
        payload, _ = encode_delta(state, base, 4, None, generator, {})
        mean += decode_state(payload, base=base)["conv.weight"].reshape(4, 27)
    true = state["conv.weight"].reshape(4, 27)
    step = np.abs(true).max(axis=1, keepdims=True) / 7
    assert (np.abs(mean / draws - true) <= 0.056 * step).all()


def test_delta_takes_and_returns_the_residual() -> None:
    """The residual of a round is within one step, and a round of zeros sends what is left."""
    state = small_state()
    before = {name: values.copy() for name, values in state.items()}
    base = small_state(seed=1)
    payload, residual = encode_delta(state, base, 4, None, seeded(), {})
    decoded = decode_state(payload, base=base)
    for name in state:
        assert np.array_equal(state[name], before[name])
        np.testing.assert_allclose(decoded[name] + residual[name], state[name], atol=1e-6)
        assert np.abs(residual[name]).max() <= np.abs(state[name] - base[name]).max() / 7
    again, rest = encode_delta(base, base, 8, residual, seeded(), {})
    sent = decode_state(again, base=zeros_like(state))
    for name in state:
        np.testing.assert_allclose(sent[name] + rest[name], residual[name], atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_delta_beyond_float16_goes_as_float32() -> None:
    base = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
    state = {"a": np.array([1e5, 0.1], np.float32), "b": np.array([0.1, 0.2], np.float32)}
    payload, residual = encode_delta(state, base, 4, None, seeded(), {})
    assert [tensor.encoding for tensor in wire.decode(payload)[0].values()] == [
        "float32",
        "float16",
    ]
    assert np.array_equal(decode_state(payload, base=base)["a"], state["a"])
    assert not residual["a"].any()
    assert residual["b"].tolist() == (state["b"] - state["b"].astype(np.float16)).tolist()


def test_delta_of_unchanged_channels_is_zero() -> None:
    base = small_state()
    state = {name: values.copy() for name, values in base.items()}
    state["conv.weight"][2] += 1
    payload, _ = encode_delta(state, base, 4, None, seeded(), {})
    decoded = decode_state(payload, base=base)
    for channel in (0, 1, 3):
        assert np.array_equal(decoded["conv.weight"][channel], base["conv.weight"][channel])
    np.testing.assert_allclose(decoded["conv.weight"][2], state["conv.weight"][2], atol=1e-6)


def test_delta_depends_on_the_generator_alone() -> None:
    """And not on the memory layout: channels_last arrays are strided."""
    state, base = small_state(), small_state(seed=1)
    payload, _ = encode_delta(state, base, 4, None, seeded(7), {})
    strided = {
        name: np.asfortranarray(values) if values.ndim == 4 else values
        for name, values in state.items()
    }
    assert not strided["conv.weight"].flags.c_contiguous
    assert encode_delta(strided, base, 4, None, seeded(7), {})[0] == payload
    assert encode_delta(state, base, 4, zeros_like(state), seeded(7), {})[0] == payload
    assert encode_delta(state, base, 4, None, seeded(8), {})[0] != payload
    assert decode_state(payload, base=strided).keys() == state.keys()


def test_sizes_of_a_resnet20() -> None:
    """Of 1,119,656 bytes of float32; the values alone take 7.81 % and 13.25 %.

    Codes: 269,824 / 4 + 6,832 + 4 * (3,136 + 100 + 22 + 22) = 87,408. Delta: 276,656 / 2, 884
    channel steps of 4 bytes and 3,258 float16 values: 148,380.
    """
    state, quantized = resnet20_like()
    codes = encode_codes(state, quantized, {"base-hash": "0" * 16, "round": 12})
    assert 87_408 < len(codes) <= 0.079 * 1_119_656
    delta, _ = encode_delta(state, zeros_like(state), 4, None, seeded(), {"base-hash": "0" * 16})
    assert 148_380 < len(delta) <= 0.14 * 1_119_656
    assert len(delta) - 148_380 < 700


def test_only_the_right_base() -> None:
    state = small_state()
    payload, _ = encode_delta(state, zeros_like(state), 4, None, seeded(), {"base-hash": "abc"})
    base = zeros_like(state)
    more = {**base, "more": np.zeros(5, np.float32)}
    decode_state(payload, base=more, base_hash="abc", expected_shapes=shapes_of(state))
    with pytest.raises(WireError, match="'base-hash': expected 'xyz', got 'abc'"):
        decode_state(payload, base=base, base_hash="xyz")
    with pytest.raises(WireError, match="no base"):
        decode_state(payload)
    with pytest.raises(WireError, match=r"'bn\.bias': expected shape"):
        decode_state(payload, base={**base, "bn.bias": np.zeros(5, np.float32)})
    with pytest.raises(WireError, match="missing: 'more'"):
        decode_state(payload, base=more)
    less = {name: values for name, values in base.items() if name != "bn.bias"}
    with pytest.raises(WireError, match=r"unexpected: 'bn\.bias'"):
        decode_state(payload, base=less, expected_shapes=shapes_of(state))
    unnamed, _ = encode_delta(state, base, 4, None, seeded(), {})
    with pytest.raises(WireError, match="'base-hash': expected 'abc', got None"):
        decode_state(unnamed, base=base, base_hash="abc")


@pytest.mark.parametrize("metadata", [{}, {"format": "gzip"}, {"format": 3}])
def test_unknown_formats_are_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="'format': unknown"):
        decode_state(wire.encode({"a": Plain(np.zeros(1, np.float32))}, metadata))


@pytest.mark.filterwarnings("error")
def test_a_delta_that_overflows_with_its_base_is_refused() -> None:
    huge = {"fine": np.ones(2, np.float32), "huge": np.array([[3e38, 1]], np.float32)}
    payload, _ = encode_delta(huge, zeros_like(huge), 8, None, seeded(), {})
    with pytest.raises(WireError, match="'huge': base \\+ delta is not finite"):
        decode_state(payload, base=huge)


def test_every_changed_byte_is_refused() -> None:
    state = {"w": np.ones((1, 4), np.float32), "b": np.ones(1, np.float32)}
    payload, _ = encode_delta(state, zeros_like(state), 4, None, seeded(), {})
    for position in range(len(payload)):
        changed = bytearray(payload)
        changed[position] ^= 0x10
        with pytest.raises(WireError):
            decode_state(changed, base=zeros_like(state))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("update_format", ENCODERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["conv.weight", "bn.bias", "conv.step"])
def test_what_is_not_finite_is_refused_by_name(update_format: str, bad: float, name: str) -> None:
    state = small_state()
    state[name] = np.full_like(state[name], bad)
    with pytest.raises(WireError, match=f"tensor '{name}'"):
        ENCODERS[update_format](state)


GENERATOR = seeded()
DOUBLES: Any = np.zeros(4)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda s: encode_float(s, "bfloat16", {}), "float32 or float16, got 'bfloat16'"),
        (lambda s: encode_float(s, "float32", {"format": "x"}), "'format' is set by the encoder"),
        (lambda s: encode_float({"a": DOUBLES}, "float32", {}), "'a' must be float32"),
        (lambda s: encode_codes({"a": DOUBLES}, {}, {}), "'a' must be float32"),
        (lambda s: encode_int8({"a": DOUBLES}, {}), "'a' must be float32"),
        (
            lambda s: encode_delta({"a": DOUBLES}, {"a": DOUBLES}, 4, None, GENERATOR, {}),
            "state 'a' must be float32",
        ),
        (lambda s: encode_delta(s, s, 1, None, GENERATOR, {}), "2 to 8, got 1"),
        (lambda s: encode_delta(s, s, 9, None, GENERATOR, {}), "2 to 8, got 9"),
        (lambda s: encode_delta(s, {}, 4, None, GENERATOR, {}), "base must hold the names"),
        (lambda s: encode_delta(s, s, 4, {}, GENERATOR, {}), "residual must hold the names"),
        (
            lambda s: encode_delta(s, {**s, "bn.bias": s["conv.step"]}, 4, None, GENERATOR, {}),
            r"base 'bn.bias' must be float32 of shape \(4,\)",
        ),
        (
            lambda s: encode_delta(s, s, 4, {**s, "bn.bias": DOUBLES}, GENERATOR, {}),
            "residual 'bn.bias' must be float32 .* got float64",
        ),
        (
            lambda s: encode_codes(
                s, {"fc": Codes(np.zeros(2, np.int8), 2, np.zeros((), np.float32))}, {}
            ),
            "codes of 'fc' .* no such tensor",
        ),
        (
            lambda s: encode_codes(
                s, {"bn.bias": Codes(np.zeros(2, np.int8), 2, np.zeros((), np.float32))}, {}
            ),
            r"codes of 'bn.bias' have shape \(2,\), the state has \(4,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(encode: Encoder, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(small_state())
