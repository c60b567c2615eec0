"""What travels between server and device: record keys and typed requests and replies.

The only module of common/ that knows Flower. Every message carries at most one ConfigRecord
("request" or "reply"), the packed payloads in it as bytes (or, above Flower's chunk size, as one
uint8 Array), and, in replies, one MetricRecord.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from common.data.input_spec import InputSpec
from common.settings import kebab

REQUEST = "request"
REPLY = "reply"
METRICS = "metrics"
PAYLOADS = "payloads"

NUM_EXAMPLES = "num-examples"
"""Weight of a reply: the images that it was trained or evaluated on."""

WEIGHT_BITS = "weight-bits"
"""Bit-width of a device's weights, said only where a run has several: in its reply to a query, and
in requests to it."""

CHANGES = "changes"
"""In a train request: names of the models that it has changes from, oldest first."""

_CHANGE = "change-"
"""Before such a name: the key of the change's payload."""

INLINE_BYTES = 4 * 1024 * 1024
"""Bytes in a ConfigRecord travel in one piece; larger payloads go into an Array, in chunks."""

ScalarMetric = int | float


class Stage(StrEnum):
    """What a train request asks for."""

    FLOAT = "float"
    """Float training on all local images: a warm-up round."""
    CALIBRATION = "calibration"
    """Activation steps from local images, no training."""
    QUANTIZED = "quantized"
    """Quantization-aware training on the coreset."""
    STATISTICS = "statistics"
    """Batch normalisation's statistics of the trained model on local images, no training."""


class Status(StrEnum):
    """What came of a request on the device."""

    OK = "ok"
    TEACHER_MISSING = "teacher-missing"
    MODEL_MISSING = "model-missing"
    """The device does not hold the model that the changes begin from (any more)."""
    DIVERGED = "diverged"
    NO_DATA = "no-data"
    NO_INPUT_SPEC = "no-input-spec"
    """The device does not know the run's classes and normalisation (any more): query it again."""
    PAUSED = "paused"
    """The device is too hot, or its battery too low, for longer than it may pause."""
    NO_BITS = "no-bits"
    """The device trains at none of the run's weight bit-widths."""


@dataclass(frozen=True, kw_only=True)
class QueryRequest:
    """Who are you? With what a device has to know to bring its own images into the run's form."""

    inputs: InputSpec

    def to_record(self) -> RecordDict:
        """The request as Flower records."""
        fields = {kebab(name): value for name, value in vars(self.inputs).items()}
        lists = {key: list(value) for key, value in fields.items() if isinstance(value, tuple)}
        return _pack(REQUEST, {**fields, **lists}, {})

    @classmethod
    def from_record(cls, record: RecordDict) -> QueryRequest:
        """The request that ``to_record`` made.

        Raises:
            ValueError: if a field is missing or impossible.
        """
        fields, _ = _unpack(record, REQUEST)
        inputs = {key.replace("-", "_"): value for key, value in fields.items()}
        return cls(inputs=InputSpec.from_fields(inputs))


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One round's task for one device."""

    stage: Stage
    round_index: int
    """Index of the round within its stage, from 0."""
    num_rounds: int
    """Rounds of the stage: the schedules span them all."""
    model: bytes
    """Payload of the global model (wire format); empty where ``changes`` lead to it."""
    model_hash: str
    """Name of the global model, which a delta is relative to: the digest of its payload or, where a
    change led to it, of that, whichever of the two the device is sent."""
    changes: Mapping[str, bytes] = field(default_factory=dict)
    """Name of an earlier model -> payload of the change from it to the next one, oldest first; the
    last leads to the global model."""
    teacher_hash: str = ""
    """Content hash of the teacher; empty in the float stage."""
    teacher: bytes = b""
    """Payload of the teacher; empty when the device should have it."""
    proximal_mu: float = 0.0
    """Weight of FedProx's proximal term."""
    weight_bits: int = 0
    """Bit-width to train at; 0: that of the run."""
    repetition: int = 0
    """How often the device was asked with this model before: it draws other numbers each time."""

    def to_record(self) -> RecordDict:
        """The request as Flower records."""
        fields: dict[str, object] = {
            "stage": self.stage.value,
            "round-index": self.round_index,
            "num-rounds": self.num_rounds,
            "model-hash": self.model_hash,
            "teacher-hash": self.teacher_hash,
            "proximal-mu": self.proximal_mu,
            **_bits_field(self.weight_bits),
        }
        if self.repetition:
            fields["repetition"] = self.repetition
        if self.changes:
            fields[CHANGES] = list(self.changes)
        payloads = {_CHANGE + name: payload for name, payload in self.changes.items()}
        return _pack(REQUEST, fields, {"model": self.model, "teacher": self.teacher, **payloads})

    @classmethod
    def from_record(cls, record: RecordDict) -> TrainRequest:
        """The request that ``to_record`` made."""
        fields, payloads = _unpack(record, REQUEST)
        return cls(
            stage=Stage(str(fields["stage"])),
            round_index=int(fields["round-index"]),  # type: ignore[arg-type]
            num_rounds=int(fields["num-rounds"]),  # type: ignore[arg-type]
            model=payloads.get("model", b""),
            model_hash=str(fields["model-hash"]),
            changes={
                name: payloads[_CHANGE + name]
                for name in fields.get(CHANGES, [])  # type: ignore[union-attr]
                if isinstance(name, str)
            },
            teacher_hash=str(fields["teacher-hash"]),
            teacher=payloads.get("teacher", b""),
            proximal_mu=float(fields["proximal-mu"]),  # type: ignore[arg-type]
            weight_bits=int(fields.get(WEIGHT_BITS, 0)),  # type: ignore[arg-type]
            repetition=int(fields.get("repetition", 0)),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """A model to be measured on the device's own held-out images."""

    stage: Stage
    round_index: int
    model: bytes
    weight_bits: int = 0
    """Bit-width of the model; 0: that of the run."""

    def to_record(self) -> RecordDict:
        """The request as Flower records."""
        fields = {
            "stage": self.stage.value,
            "round-index": self.round_index,
            **_bits_field(self.weight_bits),
        }
        return _pack(REQUEST, fields, {"model": self.model})

    @classmethod
    def from_record(cls, record: RecordDict) -> EvaluateRequest:
        """The request that ``to_record`` made."""
        fields, payloads = _unpack(record, REQUEST)
        return cls(
            stage=Stage(str(fields["stage"])),
            round_index=int(fields["round-index"]),  # type: ignore[arg-type]
            model=payloads.get("model", b""),
            weight_bits=int(fields.get(WEIGHT_BITS, 0)),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A device's answer to a train, evaluate or query request."""

    partition_id: int
    status: Status = Status.OK
    reason: str = ""
    """Why the status is not OK, in words."""
    round_index: int = -1
    update: bytes = b""
    """Payload of the update (train)."""
    teacher_hash: str = ""
    """The teacher that the device holds; empty: none, or it could not keep it."""
    model_hash: str = ""
    """The global model that the device holds for changes to come; empty: none."""
    metrics: Mapping[str, ScalarMetric] = field(default_factory=dict)
    """Figures of the round; ``num-examples`` is always among them."""

    def to_record(self) -> RecordDict:
        """The reply as Flower records."""
        fields = {
            "partition-id": self.partition_id,
            "status": self.status.value,
            "reason": self.reason,
            "round-index": self.round_index,
            "teacher-hash": self.teacher_hash,
        }
        if self.model_hash:
            fields["model-hash"] = self.model_hash
        record = _pack(REPLY, fields, {"update": self.update})
        record[METRICS] = MetricRecord({NUM_EXAMPLES: 0, **self.metrics})
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Reply:
        """The reply that ``to_record`` made.

        Raises:
            ValueError: if a field is missing or of the wrong type. No record raises anything else.
        """
        try:
            fields, payloads = _unpack(record, REPLY)
            for name in ("partition-id", "round-index"):
                if type(fields[name]) is not int:
                    raise TypeError(f"{name} is a {type(fields[name]).__name__}")
            metrics = {
                name: value
                for name, value in record.metric_records[METRICS].items()
                if isinstance(value, int | float)
            }
            return cls(
                partition_id=int(fields["partition-id"]),  # type: ignore[arg-type]
                status=Status(str(fields["status"])),
                reason=str(fields["reason"]),
                round_index=int(fields["round-index"]),  # type: ignore[arg-type]
                update=payloads.get("update", b""),
                teacher_hash=str(fields["teacher-hash"]),
                model_hash=str(fields.get("model-hash", "")),
                metrics=metrics,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"malformed reply: {error!r}") from error


def message_bytes(message: Message) -> int:
    """Size in bytes of a message's content as it is serialized for sending."""
    return record_bytes(message.content)


def record_bytes(content: RecordDict) -> int:
    """Size in bytes of the content of a message as it is serialized for sending."""
    kinds = {type(record) for record in content.values()}
    if len(kinds) == len(content) and ArrayRecord not in kinds:
        return _flat_record_bytes(content)
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        no_object_id_recompute,
    )

    # Else it would serialize and hash every part four times over.
    with no_object_id_recompute():
        return sum(len(part.deflate()) for part in get_all_nested_objects(content).values())


def _flat_record_bytes(content: RecordDict) -> int:
    """`record_bytes` of different records without arrays, as all small messages are.

    Flower names every record by its SHA-256. How long names are is known without hashing.
    """
    from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER

    names = ["0" * 64] * len(content)
    body = json.dumps(dict(zip(content, names, strict=True)))
    head = HEAD_VALUE_DIVIDER.join([RecordDict.__qualname__, ",".join(names), str(len(body))])
    records = sum(len(record.deflate()) for record in content.values())
    return records + len(head) + len(HEAD_BODY_DIVIDER) + len(body)


def _bits_field(weight_bits: int) -> dict[str, int]:
    return {WEIGHT_BITS: weight_bits} if weight_bits else {}


def _pack(name: str, fields: Mapping[str, object], payloads: Mapping[str, bytes]) -> RecordDict:
    config = ConfigRecord(dict(fields))  # type: ignore[arg-type]
    arrays = ArrayRecord()
    for key, payload in payloads.items():
        if not payload:
            continue
        if len(payload) <= INLINE_BYTES:
            config[key] = payload
        else:
            arrays[key] = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    record = RecordDict({name: config})
    if arrays:
        record[PAYLOADS] = arrays
    return record


def _unpack(record: RecordDict, name: str) -> tuple[ConfigRecord, dict[str, bytes]]:
    config = record.config_records[name]
    payloads = {key: value for key, value in config.items() if isinstance(value, bytes)}
    for key, array in record.array_records.get(PAYLOADS, ArrayRecord()).items():
        payloads[key] = _array_bytes(array)
    return config, payloads


def _array_bytes(array: Array) -> bytes:
    """The bytes of a uint8 array [n] in npy format 1.0.

    It may come from a stranger: numpy's parser, which would evaluate its header and reserve what
    that claims, is not asked.

    Raises:
        ValueError: anything but such an array.
    """
    data = array.data
    start = 10 + int.from_bytes(data[8:10], "little")
    num_bytes = len(data) - start
    if (
        (array.dtype, array.stype) != ("uint8", "numpy.ndarray")
        or tuple(array.shape) != (num_bytes,)
        or data[:8] != b"\x93NUMPY\x01\x00"
    ):
        raise ValueError("a payload's array must be uint8 [n] in npy format 1.0")
    return data[start:]
