"""What metrics.jsonl says of a round and of each device in it: pure functions of what came back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from common.messages import Reply, Stage, record_bytes
from common.payloads.updates import encode_float
from server.exchange.courier import Exchange, Traffic
from server.exchange.registry import RegisteredDevice
from server.exchange.replies import Judgement, Refusal, RefusalKind
from server.model.aggregation import State, training_metrics


def with_failures(
    judgement: Judgement, exchange: Exchange, partition_of: Mapping[int, int]
) -> Judgement:
    """The judgement with the devices that gave no reply among the refused."""
    missing = [
        Refusal(partition_id=partition_of[node_id], kind=RefusalKind.NO_REPLY, reason=reason)
        for node_id, reason in exchange.failures.items()
    ]
    refused = sorted([*judgement.refused, *missing], key=lambda refusal: refusal.partition_id)
    return Judgement(accepted=judgement.accepted, refused=refused)


def round_line(
    stage: Stage,
    number: int,
    judgement: Judgement,
    exchange: Exchange,
    sample: Sequence[RegisteredDevice],
    *,
    float32_bytes: int,
) -> dict[str, Any]:
    """One round's figures.

    Args:
        stage: of the run.
        number: of the round in its stage, from 1.
        judgement: of all devices that were asked.
        exchange: the messages.
        sample: the devices that were asked.
        float32_bytes: size of a good reply, did it carry a float32 update.
    """
    good = {reply.partition_id for reply in judgement.accepted}
    good_bytes = sum(
        exchange.traffic[device.node_id].upload_bytes
        for device in sample
        if device.partition_id in good
    )
    return round_totals(
        stage,
        number,
        judgement,
        exchange.total(),
        num_asked=len(sample),
        good_bytes=good_bytes,
        float32_bytes=float32_bytes,
    )


def round_totals(
    stage: Stage,
    number: int,
    judgement: Judgement,
    total: Traffic,
    *,
    num_asked: int,
    good_bytes: int,
    float32_bytes: int,
) -> dict[str, Any]:
    """One round's figures from its sums.

    Args:
        stage: of the run.
        number: of the round in its stage, from 1.
        judgement: of all devices that were asked.
        total: bytes of all messages.
        num_asked: devices that were asked.
        good_bytes: the part of the uploaded bytes that is good replies'.
        float32_bytes: size of a good reply, did it carry a float32 update.
    """
    # Only good replies surely hold a whole update; the others count as they are.
    other_bytes = total.upload_bytes - good_bytes
    num_accepted = len(judgement.accepted)
    return {
        "kind": "round",
        "stage": stage.value,
        "round": number,
        "num_asked": num_asked,
        "num_accepted": num_accepted,
        "refused": refusal_counts(judgement.refused),
        **training_metrics(judgement.accepted),
        **asdict(total),
        "float32_upload_bytes": other_bytes + num_accepted * float32_bytes,
    }


def device_lines(
    stage: Stage,
    number: int,
    task: str,
    judgement: Judgement,
    exchange: Exchange,
    sample: Sequence[RegisteredDevice],
) -> Iterator[dict[str, Any]]:
    """One line per device that was asked to "train" or "evaluate", by partition id."""
    replies = {reply.partition_id: reply for reply in judgement.accepted}
    refusals = {refusal.partition_id: refusal for refusal in judgement.refused}
    for device in sample:
        reply = replies.get(device.partition_id)
        refusal = None if reply else refusals[device.partition_id]
        metrics = reply.metrics if reply else {}
        yield {
            # First, so that no name that a device makes up replaces one of ours.
            **{name.replace("-", "_"): value for name, value in metrics.items()},
            "kind": "device",
            "stage": stage.value,
            "round": number,
            "task": task,
            "partition_id": device.partition_id,
            "num_samples": device.num_samples,
            **({"weight_bits": device.weight_bits} if device.weight_bits else {}),
            "status": refusal.kind.value if refusal else "ok",
            "reason": refusal.reason if refusal else "",
            **asdict(exchange.traffic[device.node_id]),
        }


def refusal_counts(refused: Sequence[Refusal]) -> dict[str, int]:
    """Kind -> number of refused replies."""
    return dict(sorted(Counter(refusal.kind.value for refusal in refused).items()))


def describe_refusals(refused: Sequence[Refusal], most: int = 3) -> str:
    """``device 1: broke off; devices 2, 5 and 7 more: late``: ``most`` of reasons and devices."""
    devices: dict[str, list[int]] = {}
    for refusal in refused:
        devices.setdefault(refusal.reason, []).append(refusal.partition_id)
    parts = []
    for reason, numbers in list(devices.items())[:most]:
        named = ", ".join(map(str, numbers[:most]))
        others = f" and {len(numbers) - most} more" if len(numbers) > most else ""
        parts.append(f"device{'s' if len(numbers) > 1 else ''} {named}{others}: {reason}")
    num_unsaid = sum(len(numbers) for numbers in list(devices.values())[most:])
    if num_unsaid:
        parts.append(f"{num_unsaid} more")
    return "; ".join(parts)


def float32_reply_bytes(reply: Reply, state: State) -> int:
    """Size of the serialized message of this reply, did it carry ``state`` as float32."""
    update = encode_float(state, "float32", {"round": reply.round_index})
    return record_bytes(replace(reply, update=update).to_record())
