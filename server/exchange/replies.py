"""Judging replies: what a device sent is checked before anything is made of it.

A reply that fails a check is refused with a reason and the round goes on with the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from common.messages import NUM_EXAMPLES, Reply, Status
from common.models import RUNNING_VARIANCE
from common.payloads.updates import BASE_HASH_KEY, FORMAT_KEY, Update, decode_update
from common.payloads.wire import WireError
from common.qat import STEP_SUFFIX
from server.exchange.foreign_text import printable
from server.model.aggregation import State, keep_valid

MAX_EXAMPLES = 10_000_000
"""More images than this on one device are not believed: they would outweigh all others."""

MAX_GROWTH = 2
"""A device may have gained images since it registered, but not many times as many."""

MAX_METRIC = 1e15
"""Larger figures are no measurements; sums and products of these stay finite."""

MAX_MAGNITUDE = 1e8
"""Larger entries are no weights; sums of these, and their squares, stay finite in float32."""

ROUNDING = 256
"""A rounded change may put a small step or variance below zero, by this part of what it was."""

COUNTS = ("correct", "correct-top5")
"""Metrics that count some of the reply's images."""

WHOLE = (*COUNTS, "coreset-size", "num-steps", "num-seen")
"""Metrics that count something."""

MAX_METRICS = 32
_METRIC_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


class RefusalKind(StrEnum):
    """Why a device's reply does not count."""

    NO_REPLY = "no-reply"
    """None came, or an error in its place."""
    MALFORMED = "malformed"
    WRONG_DEVICE = "wrong-device"
    DUPLICATE = "duplicate"
    WRONG_ROUND = "wrong-round"
    STALE = "stale"
    """Made from a model that is too many rounds old (asynchronous training)."""
    DIVERGED = "diverged"
    NO_DATA = "no-data"
    NO_INPUT_SPEC = "no-input-spec"
    PAUSED = "paused"
    BAD_METRICS = "bad-metrics"
    BAD_UPDATE = "bad-update"


DECLINED = {
    Status.DIVERGED: RefusalKind.DIVERGED,
    Status.NO_DATA: RefusalKind.NO_DATA,
    Status.NO_INPUT_SPEC: RefusalKind.NO_INPUT_SPEC,
    Status.PAUSED: RefusalKind.PAUSED,
}
"""What a device that says that it cannot contribute is recorded as."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A device whose reply does not count."""

    partition_id: int
    kind: RefusalKind
    reason: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The replies of one round, good ones by partition id."""

    accepted: list[Reply] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    """Decoded updates of ``accepted``; empty where replies carry none."""
    refused: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a good reply of a round looks like."""

    partition_of: Mapping[int, int]
    """Node id -> partition id of the devices that were asked."""
    round_index: int
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Name -> shape of the entries of an update; None where none is expected."""
    base: State | None = None
    """The state that a delta is relative to."""
    base_hash: str = ""
    metric_names: tuple[str, ...] = (NUM_EXAMPLES,)
    """Metrics that must be there."""
    min_examples: int = 1
    """Fewest images that a reply may stand for."""
    num_samples: Mapping[int, int] = field(default_factory=dict)
    """Partition id -> images that the device has: as many for training as it registered with, and,
    where it evaluates, those held out from them as well; 0 or absent: unknown."""


class _RefusedError(ValueError):
    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def judge_replies(messages: Iterable[Message], expected: Expectation) -> Judgement:
    """Sort replies into good ones, decoded, and refused ones.

    Good replies are ordered by partition id, so that sums over them do not depend on who was
    first.
    """
    accepted: dict[int, tuple[Reply, State]] = {}
    refused: list[Refusal] = []
    for message in messages:
        # A device is who the grid says it is, whatever it writes into its reply.
        partition_id = expected.partition_of.get(message.metadata.src_node_id, -1)
        try:
            reply = _check_reply(message, partition_id, expected)
            if partition_id in accepted:
                raise _RefusedError(RefusalKind.DUPLICATE, "a second reply in one round")
            accepted[partition_id] = (reply, _decode(reply, expected))
        except _RefusedError as error:
            refused.append(
                Refusal(partition_id=partition_id, kind=error.kind, reason=printable(str(error)))
            )
    ordered = [accepted[partition_id] for partition_id in sorted(accepted)]
    return Judgement(
        accepted=[reply for reply, _ in ordered],
        states=[state for _, state in ordered if state],
        refused=sorted(refused, key=lambda refusal: refusal.partition_id),
    )


def join_judgements(judgements: Iterable[Judgement]) -> Judgement:
    """The judgements of several groups of devices as one, by partition id."""
    parts = list(judgements)
    replies = [reply for part in parts for reply in part.accepted]
    order = sorted(range(len(replies)), key=lambda index: replies[index].partition_id)
    states = [state for part in parts for state in part.states]
    refused = [refusal for part in parts for refusal in part.refused]
    return Judgement(
        accepted=[replies[index] for index in order],
        states=[states[index] for index in order] if states else [],
        refused=sorted(refused, key=lambda refusal: refusal.partition_id),
    )


def _check_reply(message: Message, partition_id: int, expected: Expectation) -> Reply:
    try:
        reply = Reply.from_record(message.content)
    except ValueError as error:
        raise _RefusedError(RefusalKind.MALFORMED, str(error)) from error
    if partition_id < 0 or reply.partition_id != partition_id:
        raise _RefusedError(
            RefusalKind.WRONG_DEVICE,
            f"partition id {reply.partition_id}: expected "
            f"{partition_id if partition_id >= 0 else 'a device that was asked'}",
        )
    if reply.status in DECLINED:
        raise _RefusedError(DECLINED[reply.status], reply.reason)
    if reply.status is not Status.OK:
        raise _RefusedError(RefusalKind.MALFORMED, f"unexpected status {reply.status}")
    if reply.round_index != expected.round_index:
        raise _RefusedError(
            RefusalKind.WRONG_ROUND,
            f"round {reply.round_index}: expected {expected.round_index}",
        )
    _check_metrics(reply, expected)
    return reply


def _check_metrics(reply: Reply, expected: Expectation) -> None:
    def refuse(reason: str) -> _RefusedError:
        return _RefusedError(RefusalKind.BAD_METRICS, reason)

    if len(reply.metrics) > MAX_METRICS:
        raise refuse(f"{len(reply.metrics)} metrics: expected at most {MAX_METRICS}")
    for name in expected.metric_names:
        if name not in reply.metrics:
            raise refuse(f"metric {name!r} is missing")
    for name, value in reply.metrics.items():
        if not _METRIC_NAME.fullmatch(name):
            raise refuse(f"metric name {name[:40]!r}: expected lower-case words and hyphens")
        if not 0 <= value <= MAX_METRIC:  # a NaN is in no range
            shown = f"{value:g}" if isinstance(value, float) else "a whole number"
            raise refuse(f"{name} is {shown}: expected a number from 0 to {MAX_METRIC:g}")
    num_examples = reply.metrics[NUM_EXAMPLES]
    registered = expected.num_samples.get(reply.partition_id, 0)
    most = min(MAX_EXAMPLES, MAX_GROWTH * registered) if registered else MAX_EXAMPLES
    if type(num_examples) is not int or not expected.min_examples <= num_examples <= most:
        raise refuse(
            f"{NUM_EXAMPLES} = {num_examples}: expected a whole number from "
            f"{expected.min_examples} to {most}"
        )
    for name in WHOLE:
        if type(reply.metrics.get(name, 0)) is not int:
            raise refuse(f"{name} = {reply.metrics[name]:g}: expected a whole number")
    for name in COUNTS:
        if reply.metrics.get(name, 0) > num_examples:
            raise refuse(f"{name} = {reply.metrics[name]}: expected at most {num_examples}")


def _decode(reply: Reply, expected: Expectation) -> State:
    """The update's entries in the order of ``expected.shapes``, which strategies rely on."""
    if expected.shapes is None:
        return {}
    if not reply.update:
        raise _RefusedError(RefusalKind.BAD_UPDATE, "the reply carries no update")
    try:
        update = decode_update(
            reply.update,
            base=expected.base,
            base_hash=expected.base_hash,
            expected_shapes=expected.shapes,
        )
    except WireError as error:
        raise _RefusedError(RefusalKind.BAD_UPDATE, str(error)) from error
    _check_origin(update, expected)
    _check_values(update, expected)
    # A rounded change may end just outside of what a strategy can work with.
    return keep_valid({name: update.state[name] for name in expected.shapes})


def _check_origin(update: Update, expected: Expectation) -> None:
    """An update that says what it was made for is of this round, and made from this model."""
    for key, value in (("round", expected.round_index), (BASE_HASH_KEY, expected.base_hash)):
        if update.metadata.get(key, value) != value:
            raise _RefusedError(
                RefusalKind.BAD_UPDATE,
                f"an update for {key} {update.metadata[key]!a:.80}: expected {value!r}",
            )


def _check_values(update: Update, expected: Expectation) -> None:
    """Magnitudes that can be added and squared, steps > 0, variances >= 0."""
    is_delta = update.metadata[FORMAT_KEY] == "delta"
    if not _are_weights(update.flat):
        name = next(name for name, values in update.state.items() if not _are_weights(values))
        raise _RefusedError(
            RefusalKind.BAD_UPDATE, f"{name!r}: a value is beyond {MAX_MAGNITUDE:g}"
        )
    for name, values in update.state.items():
        is_step = name.endswith(STEP_SUFFIX)
        if not is_step and not name.endswith(RUNNING_VARIANCE):
            continue
        if is_delta and expected.base is not None:
            is_valid = values >= -np.abs(expected.base[name]) / ROUNDING
        else:
            is_valid = values > 0 if is_step else values >= 0
        if not is_valid.all():
            raise _RefusedError(
                RefusalKind.BAD_UPDATE,
                f"{name!r}: {'a step must be > 0' if is_step else 'a variance must be >= 0'}",
            )


def _are_weights(values: NDArray[np.float32]) -> bool:
    return bool((np.abs(values) <= MAX_MAGNITUDE).all())
