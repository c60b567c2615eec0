"""Tests of common.messages."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import (
    INLINE_BYTES,
    METRICS,
    NUM_EXAMPLES,
    PAYLOADS,
    REPLY,
    REQUEST,
    EvaluateRequest,
    Reply,
    Stage,
    Status,
    TrainRequest,
    message_bytes,
)

text = st.text(max_size=30)
payloads = st.binary(max_size=100)


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's process-wide identity, without which no message can be made."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(record: RecordDict) -> Message:
    return Message(record, dst_node_id=0, message_type=MessageType.TRAIN)


def request(**changes: Any) -> TrainRequest:
    fields: dict[str, Any] = {
        "stage": Stage.QUANTIZED,
        "round_index": 3,
        "num_rounds": 10,
        "model": b"model",
        "model_hash": "ab12",
    }
    return TrainRequest(**{**fields, **changes})


class TestRoundTrips:
    @settings(max_examples=30, deadline=None)
    @given(
        stage=st.sampled_from(Stage),
        model=payloads,
        teacher=payloads,
        model_hash=text,
        teacher_hash=text,
        proximal_mu=st.floats(0, 10),
        weight_bits=st.sampled_from([0, 2, 8]),
        repetition=st.integers(0, 100),
        changes=st.dictionaries(text, payloads.filter(bool), max_size=3),
    )
    def test_train_request(self, **fields: Any) -> None:
        sent = request(**fields)
        received = TrainRequest.from_record(sent.to_record())
        assert received == sent
        assert list(received.changes) == list(sent.changes)

    @settings(max_examples=30, deadline=None)
    @given(
        stage=st.sampled_from(Stage),
        round_index=st.integers(-1, 10**6),
        model=payloads,
        weight_bits=st.sampled_from([0, 4]),
    )
    def test_evaluate_request(self, **fields: Any) -> None:
        sent = EvaluateRequest(**fields)
        assert EvaluateRequest.from_record(sent.to_record()) == sent

    @settings(max_examples=30, deadline=None)
    @given(
        partition_id=st.integers(0, 10**6),
        status=st.sampled_from(Status),
        reason=text,
        update=payloads,
        teacher_hash=text,
        model_hash=text,
        metrics=st.dictionaries(text, st.integers(-100, 100) | st.floats(allow_nan=False)),
    )
    def test_reply(self, **fields: Any) -> None:
        sent = Reply(**fields)
        received = Reply.from_record(sent.to_record())
        assert received.metrics == {NUM_EXAMPLES: 0, **sent.metrics}
        assert {**vars(received), "metrics": sent.metrics} == vars(sent)

    @pytest.mark.parametrize("extra", [0, 1])
    def test_large_payloads_travel_in_chunks(self, extra: int) -> None:
        """Bytes in a ConfigRecord are one piece for Flower: larger ones go as an Array."""
        model = bytes(range(256)) * (INLINE_BYTES // 256) + bytes(extra)
        record = request(model=model, teacher=b"small", changes={"ab": model}).to_record()
        assert ("model" in record.config_records[REQUEST]) == (extra == 0)
        assert (PAYLOADS in record.array_records) == (extra == 1)
        received = TrainRequest.from_record(record)
        assert received.model == model
        assert received.teacher == b"small"
        assert received.changes == {"ab": model}

    def test_an_absent_payload_is_empty(self) -> None:
        record = request(teacher=b"").to_record()
        assert "teacher" not in record.config_records[REQUEST]
        assert TrainRequest.from_record(record).teacher == b""


class TestReplyRecord:
    def test_num_examples_is_always_there(self) -> None:
        """Flower's strategies fail a whole run for one reply without the weight."""
        record = Reply(partition_id=1, status=Status.DIVERGED).to_record()
        assert record.metric_records[METRICS] == {NUM_EXAMPLES: 0}

    @pytest.mark.parametrize("key", ["partition-id", "status", "reason", "round-index"])
    def test_a_missing_field_is_refused(self, key: str) -> None:
        record = Reply(partition_id=1).to_record()
        del record.config_records[REPLY][key]
        with pytest.raises(ValueError, match=f"malformed reply.*{key}"):
            Reply.from_record(record)

    def test_a_missing_record_is_refused(self) -> None:
        with pytest.raises(ValueError, match="malformed reply"):
            Reply.from_record(RecordDict())
        with pytest.raises(ValueError, match="malformed reply"):
            Reply.from_record(RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: 1})}))

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("status", "splendid", "'splendid' is not a valid Status"),
            ("partition-id", "one", "malformed reply"),
            ("partition-id", [1, 2], "malformed reply"),
        ],
    )
    def test_a_wrong_value_is_refused(self, key: str, value: Any, message: str) -> None:
        record = Reply(partition_id=1).to_record()
        record.config_records[REPLY][key] = value
        with pytest.raises(ValueError, match=message):
            Reply.from_record(record)

    def test_metrics_that_are_lists_are_left_out(self) -> None:
        record = Reply(partition_id=1, metrics={"loss": 0.5}).to_record()
        record.metric_records[METRICS]["history"] = [1.0, 2.0]
        assert Reply.from_record(record).metrics == {NUM_EXAMPLES: 0, "loss": 0.5}


class TestMessageBytes:
    @pytest.mark.usefixtures("sender")
    def test_counts_the_payload_and_little_more(self) -> None:
        """Flower adds about 300 bytes to bytes in a ConfigRecord."""
        empty = message_bytes(message(request(model=b"").to_record()))
        full = message_bytes(message(request(model=bytes(100_000)).to_record()))
        assert 100_000 <= full - empty <= 100_050
        assert 0 < empty < 1000

    @pytest.mark.usefixtures("sender")
    def test_counts_chunks(self) -> None:
        size = 3 * INLINE_BYTES
        varied = b"".join(number.to_bytes(8, "little") for number in range(size // 8))
        counted = message_bytes(message(request(model=varied).to_record()))
        assert size <= counted <= size + 4000

    @pytest.mark.usefixtures("sender")
    def test_counts_every_record(self) -> None:
        record = RecordDict({"a": ConfigRecord({"x": 1})})
        one = message_bytes(message(record))
        record["b"] = ConfigRecord({"y": bytes(500)})
        assert message_bytes(message(record)) > one + 500

    @pytest.mark.usefixtures("sender")
    def test_counts_what_flower_sends(self) -> None:
        """Every part once, two that are alike once together; a content that changes, as it is
        now."""
        arrays = ArrayRecord([np.zeros(3, np.float32), np.zeros(3, np.float32)])
        record = RecordDict({"a": ConfigRecord({"x": 1}), "b": arrays})

        def flowers() -> int:
            return sum(len(part.deflate()) for part in get_all_nested_objects(record).values())

        assert message_bytes(message(record)) == flowers()
        record.config_records["a"]["x"] = bytes(1000)
        assert message_bytes(message(record)) == flowers()
        del record["b"]
        assert message_bytes(message(record)) == flowers()
        record["metrics \u00e9"] = MetricRecord({"loss": 0.5})
        assert message_bytes(message(record)) == flowers()
        record["c"] = ConfigRecord({"x": bytes(1000)})
        assert message_bytes(message(record)) == flowers()
        assert message_bytes(message(RecordDict())) == len(RecordDict().deflate())
