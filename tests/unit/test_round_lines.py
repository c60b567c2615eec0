"""Tests of server.records.round_lines."""

from common.messages import Reply, Stage
from server.exchange.courier import Exchange, Traffic
from server.exchange.registry import RegisteredDevice
from server.exchange.replies import Judgement, Refusal, RefusalKind
from server.records.round_lines import describe_refusals, device_lines, round_line


def refusals(*reasons: str) -> list[Refusal]:
    return [
        Refusal(partition_id=number, kind=RefusalKind.NO_REPLY, reason=reason)
        for number, reason in enumerate(reasons)
    ]


def test_devices_with_one_reason_are_named_together() -> None:
    assert (
        describe_refusals(refusals("late", "gone", "late")) == "devices 0, 2: late; device 1: gone"
    )


def test_many_devices_and_many_reasons_are_counted() -> None:
    """Five are late: three are named; of the five reasons the last two, three devices, are not."""
    reasons = ["late"] * 5 + ["a", "b", "c", "c", "d"]
    assert describe_refusals(refusals(*reasons)) == (
        "devices 0, 1, 2 and 2 more: late; device 5: a; device 6: b; 3 more"
    )


def test_lines_of_a_round_by_hand() -> None:
    """Device 0 makes up names of metrics that are ours; device 1 diverged. As float32 updates there
    would be 320 bytes of the one and, as they are, 8 of the other."""
    sample = [
        RegisteredDevice(
            partition_id=k, node_id=100 + k, num_samples=50, emulated=True, weight_bits=bits
        )
        for k, bits in ((0, 0), (1, 4))
    ]
    metrics = {"num-examples": 10, "train-loss": 0.5, "status": 7, "upload-bytes": 1}
    judgement = Judgement(
        accepted=[Reply(partition_id=0, metrics=metrics)],
        refused=[Refusal(partition_id=1, kind=RefusalKind.DIVERGED, reason="nan")],
    )
    exchange = Exchange(
        traffic={
            100: Traffic(upload_bytes=40, download_bytes=5),
            101: Traffic(upload_bytes=8, download_bytes=6),
        }
    )
    good, refused = device_lines(Stage.QUANTIZED, 2, "train", judgement, exchange, sample)
    place = {"stage": "quantized", "round": 2}
    for k, line in enumerate((good, refused)):
        ours = {"kind": "device", **place, "task": "train", "partition_id": k}
        assert {name: line[name] for name in ours} == ours
    assert (good["status"], good["reason"], good["upload_bytes"]) == ("ok", "", 40)
    assert "weight_bits" not in good
    assert refused["weight_bits"] == 4
    assert (good["num_examples"], good["num_samples"]) == (10, 50)
    assert (refused["status"], refused["reason"]) == ("diverged", "nan")
    assert (refused["upload_bytes"], refused["download_bytes"]) == (8, 6)
    line = round_line(Stage.QUANTIZED, 2, judgement, exchange, sample, float32_bytes=320)
    ours = {"kind": "round", **place, "train_loss": 0.5}
    assert {name: line[name] for name in ours} == ours
    assert (line["num_asked"], line["num_accepted"], line["refused"]) == (2, 1, {"diverged": 1})
    assert (line["upload_bytes"], line["download_bytes"]) == (48, 11)
    assert line["float32_upload_bytes"] == 320 + 8
