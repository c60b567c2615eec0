"""Hostile replies in any number, through all that the server does with a reply.

    python -m tests.fuzz.replies --count 100000 --seed 0

Every reply starts as a good one in one of the update formats, or as another payload of the same
wire format, and is then changed once or a few times: bytes of the payload (with its checksum made
valid again in half of the cases: a forged one), its header as JSON, its values, its length, the
fields and metrics of the reply, or the bytes of the whole message as Flower serializes it. Rounds
of ten such replies and two honest ones are judged and aggregated. What must hold: nothing but
refusals comes of it, an accepted update is finite and has possible steps and variances, the honest
devices are accepted, and memory stays bounded.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from common.config import StrategyConfig
from common.messages import METRICS, PAYLOADS, REPLY, Reply, Stage, TrainRequest
from common.payloads.updates import Metadata, encode_codes, encode_delta, encode_float, encode_int8
from common.payloads.wire_tensors import Codes
from server.exchange.registry import RegisteredDevice, SampledGrid
from server.exchange.replies import MAX_MAGNITUDE
from server.model.forms import to_record, to_state
from server.records.reporting import quiet_flower
from server.strategies.flower import make_strategy
from server.strategies.packed_updates import PackedUpdates
from server.strategies.stage_plan import StagePlan
from tests.unit.fake_grid import FakeGrid, node_id_of

HOSTILE, HONEST = 10, 2
WEIGHT, STEP, VARIANCE = "conv.weight", "conv.weight_quantizer.step", "bn.running_var"
EXTREMES = (0, -1, 1, 2**31, 2**63 - 1, -(2**63), math.nan, math.inf, -math.inf, 1e300, -0.0, 0.5)


@dataclass
class Report:
    """What came of the replies."""

    num_replies: int = 0
    num_accepted: int = 0
    """Hostile ones that pass: a change of a value that stays possible is no fault."""
    num_unreadable: int = 0
    """Messages that Flower itself cannot read: they never reach the server's app."""
    refused: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    """Of a round of twelve replies."""
    grown_bytes: int = 0
    """By how much the process's largest memory rose after the first hundred rounds."""


def base_state() -> dict[str, np.ndarray]:
    """What the devices are sent."""
    rng = np.random.default_rng(0)
    return {
        WEIGHT: rng.normal(size=(8, 4, 3, 3)).astype(np.float32),
        STEP: np.array(0.25, np.float32),
        VARIANCE: np.ones(8, np.float32),
    }


def fuzz(count: int, seed: int) -> Report:
    """Judge and aggregate ``count`` hostile replies.

    Raises:
        AssertionError: if something that must hold does not. Any other error is a finding, too.
    """
    choice, report = random.Random(seed), Report()
    state = base_state()
    plan = StagePlan(
        stage=Stage.QUANTIZED,
        num_rounds=10,
        downlink_format="float32",
        min_replies=HONEST,
        update_shapes={name: values.shape for name, values in state.items()},
    )
    strategy = make_strategy(StrategyConfig(name="fedavg"), plan)
    devices = [
        RegisteredDevice(partition_id=k, node_id=node_id_of(k), num_samples=100, emulated=True)
        for k in range(HOSTILE + HONEST)
    ]
    view = SampledGrid(FakeGrid(lambda *_: None, range(HOSTILE + HONEST)), devices)
    baseline = 0
    with quiet_flower():
        for index in range(math.ceil(count / HOSTILE)):
            if index == 100:
                baseline = _peak_bytes()
            _fuzz_round(strategy, view, state, choice, report)
    if baseline:
        report.grown_bytes = _peak_bytes() - baseline
    return report


def _fuzz_round(
    strategy: PackedUpdates,
    view: SampledGrid,
    state: dict[str, np.ndarray],
    choice: random.Random,
    report: Report,
) -> None:
    messages = list(strategy.configure_train(3, to_record(state), ConfigRecord(), view))
    request = TrainRequest.from_record(messages[0].content)
    replies = []
    for partition_id, message in enumerate(messages):
        reply = _good_reply(partition_id, request, state, choice)
        if partition_id >= HOSTILE:
            replies.append(Message(reply.to_record(), reply_to=message))
            continue
        report.num_replies += 1
        record = hostile_record(reply, state, choice)
        if record is None:
            report.num_unreadable += 1
        else:
            replies.append(Message(record, reply_to=message))
    started = time.perf_counter()
    aggregated, _ = strategy.aggregate_train(3, replies)
    report.slowest_seconds = max(report.slowest_seconds, time.perf_counter() - started)
    accepted = {reply.partition_id for reply in strategy.judgement.accepted}
    assert accepted >= {*range(HOSTILE, HOSTILE + HONEST)}, "an honest device was refused"
    report.num_accepted += len(accepted) - HONEST
    report.refused.update(refusal.kind.value for refusal in strategy.judgement.refused)
    assert all(refusal.reason.isprintable() for refusal in strategy.judgement.refused)
    assert aggregated is not None, "hostile replies cost the round"
    result = to_state(aggregated)
    assert all(bool((np.abs(values) <= MAX_MAGNITUDE).all()) for values in result.values())
    assert result[STEP] > 0
    assert (result[VARIANCE] >= 0).all()


def _good_reply(
    partition_id: int, request: TrainRequest, state: dict[str, np.ndarray], choice: random.Random
) -> Reply:
    changed = {
        name: values * np.float32(choice.uniform(0.9, 1.1)) for name, values in state.items()
    }
    metadata: Metadata = {"round": request.round_index, "base-hash": request.model_hash}
    kind = choice.choice(("delta", "float32", "codes"))
    if kind == "delta":
        rng = np.random.default_rng(choice.getrandbits(32))
        update, _ = encode_delta(changed, state, choice.randint(2, 8), None, rng, metadata)
    elif kind == "codes":
        codes = np.zeros(state[WEIGHT].shape, np.int8)
        quantized = {WEIGHT: Codes(codes, 4, np.array(0.25, np.float32))}
        update = encode_codes(changed, quantized, metadata)
    else:
        update = encode_float(changed, "float32", metadata)
    return Reply(
        partition_id=partition_id,
        round_index=request.round_index,
        update=update,
        metrics={"num-examples": 50, "train-loss": 1.0, "coreset-size": 50, "train-seconds": 0.1},
    )


def hostile_record(
    reply: Reply, state: dict[str, np.ndarray], choice: random.Random
) -> RecordDict | None:
    """A reply made hostile; None where Flower itself can't read what came of it."""
    attack = choice.choice((_bytes, _bytes, _header, _values, _other, _fields, _metrics, _message))
    if attack is _message:
        return _message(reply, choice)
    if attack in (_fields, _metrics):
        return (_fields if attack is _fields else _metrics)(reply, choice)
    payload = {
        _bytes: lambda: _bytes(reply.update, choice),
        _header: lambda: _header(reply.update, choice),
        _values: lambda: _values(reply.update, choice),
        _other: lambda: _other(state, choice),
    }[attack]()
    record = replace(reply, update=payload).to_record()
    if choice.random() < 0.2:
        record = _as_array(record, payload, choice)
    return record


def forge(payload: bytes) -> bytes:
    """The payload with a checksum that is valid."""
    return payload[:-4] + struct.pack("<I", zlib.crc32(payload[:-4]))


def mutate(content: bytes, choice: random.Random) -> bytes:
    """One to eight changes of bytes: flipped, set, cut out, doubled, put in, cut off."""
    data = bytearray(content)
    for _ in range(choice.randint(1, 8)):
        at = choice.randrange(len(data) + 1)
        end = min(len(data), at + choice.randint(1, 16))
        match choice.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << choice.randrange(8)
            case 1 if at < len(data):
                data[at] = choice.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case 4:
                data[at:at] = choice.randbytes(choice.randint(1, 16))
            case 5 if choice.random() < 0.2:
                del data[at:]
    return bytes(data)


def _bytes(payload: bytes, choice: random.Random) -> bytes:
    changed = mutate(payload, choice)
    return forge(changed) if choice.random() < 0.5 else changed


def _header(payload: bytes, choice: random.Random) -> bytes:
    """Another header, well compressed and with a valid checksum."""
    length = int.from_bytes(payload[8:12], "little")
    header = json.loads(zlib.decompress(payload[12 : 12 + length]))
    rows = header["tensors"]
    row = choice.choice(rows)
    match choice.randrange(9):
        case 0:
            row[2] = [choice.choice((0, -1, 2**32 - 1, 2**70, 1.5, "8", None, True, []))] * (
                choice.randint(1, 12)
            )
        case 1:
            row[1] = choice.choice(("codes-2", "codes-9", "float64", "float16", "", 3, None))
        case 2:
            row[0] = choice.choice((WEIGHT, "", "x" * 300, "\x1b[2J", 7, None))
        case 3:
            rows.append(list(row))
        case 4:
            rows.remove(row)
        case 5:
            key = choice.choice(("format", "round", "base-hash", "x"))
            header["metadata"][key] = choice.choice((*EXTREMES, "", "codes", "delta", [1], None))
        case 6:
            header = choice.choice(([], 1, None, {}, {"tensors": rows}, [[]] * 1000))
        case 7:  # a bomb: a kilobyte that becomes a megabyte and more
            header["metadata"]["x"] = "A" * choice.choice((900_000, 5_000_000))
        case 8:
            rows += [[f"t{index}", "float32", [0]] for index in range(choice.choice((10, 20_000)))]
    packed = zlib.compress(json.dumps(header).encode(), 9)
    content = payload[:8] + len(packed).to_bytes(4, "little") + packed + payload[12 + length :]
    return forge(content)


def _values(payload: bytes, choice: random.Random) -> bytes:
    """Hostile numbers in the body: NaN, infinities, the largest, zeros, negative steps."""
    start = 12 + int.from_bytes(payload[8:12], "little")
    data = bytearray(payload)
    for _ in range(choice.randint(1, 4)):
        value = choice.choice((math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 0.0, -1.0, 1e-45))
        with np.errstate(over="ignore"):
            number = np.array(value, choice.choice((np.float32, np.float16))).tobytes()
        at = start + choice.randrange(max(1, (len(data) - 8 - start) // 2)) * 2
        data[at : at + len(number)] = number
    return forge(bytes(data[: len(payload)]))


def _other(state: dict[str, np.ndarray], choice: random.Random) -> bytes:
    """A payload that is good in itself, and not what was asked for."""
    values = {name: values.copy() for name, values in state.items()}
    match choice.randrange(6):
        case 0:
            values[WEIGHT] = values[WEIGHT].reshape(-1)
        case 1:
            del values[choice.choice(list(values))]
        case 2:
            values["more"] = np.zeros(choice.choice((1, 10_000)), np.float32)
        case 3:
            values[choice.choice(list(values))] *= np.float32(choice.choice((-1, 0, 1e30, 1e9)))
        case 4:
            return encode_int8(values, {"round": choice.randrange(5)})
        case 5:
            return encode_float(values, "float16", {"base-hash": "0123"})
    return encode_float(values, "float32", {"round": choice.randrange(5)})


def _as_array(record: RecordDict, payload: bytes, choice: random.Random) -> RecordDict:
    """The payload in an Array, as large ones travel, whose own header may lie."""
    array = Array(np.frombuffer(payload, np.uint8))
    match choice.randrange(4):
        case 0:
            array.data = mutate(array.data, choice)
        case 1:
            array.shape = (choice.choice((0, 2**62, len(payload) + 1)),)
        case 2:
            array.dtype = choice.choice(("object", "float64", ""))
        case 3:
            claimed = b"{'descr': '|O', 'fortran_order': False, 'shape': (9999999999,), }"
            array.data = b"\x93NUMPY\x01\x00" + len(claimed).to_bytes(2, "little") + claimed
    del record[REPLY]["update"]  # type: ignore[union-attr]
    record[PAYLOADS] = ArrayRecord({"update": array})
    return record


def _fields(reply: Reply, choice: random.Random) -> RecordDict:
    record = reply.to_record()
    fields: Any = record[REPLY]
    name = choice.choice(list(fields))
    match choice.randrange(3):
        case 0:
            del fields[name]
        case 1:
            fields[name] = choice.choice(
                (*EXTREMES, "", "ok", "\x1b]0;x\x07", b"", [1], [0.5], True)
            )
        case 2:
            del record[choice.choice((REPLY, METRICS))]
    return record


def _metrics(reply: Reply, choice: random.Random) -> RecordDict:
    record = reply.to_record()
    metrics: Any = record[METRICS]
    name = choice.choice((*metrics, "correct", "Kind", "x" * 100, "select-seconds"))
    if choice.random() < 0.1:
        metrics.update({f"m{index}": 1 for index in range(choice.choice((40, 1000)))})
    elif name in metrics and choice.random() < 0.2:
        del metrics[name]
    else:
        metrics[name] = choice.choice((*EXTREMES, 101, 10**9, [1, 2], [0.5]))
    return record


def _message(reply: Reply, choice: random.Random) -> RecordDict | None:
    """Bytes of the whole serialized message."""
    content = mutate(recorddict_to_proto(reply.to_record()).SerializeToString(), choice)
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(content))
    except Exception:  # AttributeError among them: Flower's own code, before ours is asked
        return None


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.process_time()
    report = fuzz(options.count, options.seed)
    lines = {
        "hostile replies": report.num_replies,
        "seed": options.seed,
        "unreadable for Flower itself": report.num_unreadable,
        "refused": sum(report.refused.values()),
        **{f"  {kind}": number for kind, number in sorted(report.refused.items())},
        "accepted (possible values)": report.num_accepted,
        "slowest round of 12 replies, s": round(report.slowest_seconds, 3),
        "growth of peak memory, bytes": report.grown_bytes,
        "processor time, s": round(time.process_time() - started, 1),
    }
    for name, value in lines.items():
        sys.stdout.write(f"{name:32} {value}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
