"""Tests of server.records.round_lines."""

from server.exchange.replies import Refusal, RefusalKind
from server.records.round_lines import describe_refusals


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
