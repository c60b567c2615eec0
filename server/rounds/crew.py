"""Devices that train at the same time, each from the version of the model that it was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field, replace

from flwr.app import Message, MessageType

from common.messages import NUM_EXAMPLES, TrainRequest
from common.seeding import numpy_generator
from server.exchange.courier import Exchange
from server.exchange.registry import RegisteredDevice
from server.exchange.replies import Expectation, Judgement, Refusal, RefusalKind, judge_replies
from server.model.aggregation import State, deployed_weights
from server.model.forms import pack_model, payload_hash
from server.records.round_lines import with_failures
from server.rounds.session import Session
from server.strategies.packed_updates import TRAIN_LOSS
from server.strategies.stage_plan import StagePlan


@dataclass(frozen=True, kw_only=True)
class Version:
    """The global model as devices are sent it between two steps of the server."""

    num_steps: int
    """Steps that the server had taken."""
    state: State
    """The global state, before it was packed."""
    request: TrainRequest
    expected: Expectation
    """Of a good reply; which device it comes from is added for every task."""
    base_deployed: State
    """Where updates are codes: quantized weights as deployed; else empty."""
    asked: Counter[int] = field(default_factory=Counter)
    """Partition id -> how often it was asked with this version."""


def publish(plan: StagePlan, round_index: int, num_steps: int, state: State) -> Version:
    """The version of the model that round ``round_index`` (from 0) begins with."""
    payload, base = pack_model(state, plan.downlink_format)
    quantized = plan.quantize[plan.entries.bits[0]](base) if plan.lifts_codes else {}
    digest = payload_hash(payload)
    request = TrainRequest(
        stage=plan.stage,
        round_index=round_index,
        num_rounds=plan.num_rounds,
        model=payload,
        model_hash=digest,
        teacher_hash=plan.teacher_hash,
    )
    expected = Expectation(
        partition_of={},
        round_index=round_index,
        shapes=plan.update_shapes,
        base=base,
        base_hash=digest,
        metric_names=(NUM_EXAMPLES, TRAIN_LOSS),
    )
    return Version(
        num_steps=num_steps,
        state=state,
        request=request,
        expected=expected,
        base_deployed=deployed_weights(quantized),
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a device is doing."""

    device: RegisteredDevice
    version: Version
    repetition: int
    """How often the device was asked with this version before."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a task."""

    task: Task
    exchange: Exchange

    def judge(self, staleness: int, max_staleness: int) -> tuple[Judgement, State]:
        """Whether it counts, in a judgement of one device, and the state that it decodes to."""
        device, expected = self.task.device, self.task.version.expected
        partition_of = {device.node_id: device.partition_id}
        if staleness > max_staleness and self.exchange.replies:
            refusal = Refusal(
                partition_id=device.partition_id,
                kind=RefusalKind.STALE,
                reason=f"{staleness} round(s) behind: expected at most {max_staleness}",
            )
            return Judgement(refused=[refusal]), {}
        num_samples = {device.partition_id: device.num_samples}
        judgement = judge_replies(
            self.exchange.replies,
            replace(expected, partition_of=partition_of, num_samples=num_samples),
        )
        state = judgement.states[0] if judgement.states else {}
        return with_failures(judgement, self.exchange, partition_of), state


class Crew:
    """The devices that are training now, and the seeded choice of the next.

    Args:
        session: of the run.
        min_devices: fewest devices that must be there where nobody is training.
    """

    def __init__(self, session: Session, min_devices: int) -> None:
        self.session = session
        self.min_devices = min_devices
        self.num_draws = 0
        """Choices so far."""
        self._tasks: dict[int, Task] = {}
        """By node id."""

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def tasks(self) -> list[Task]:
        """What devices are doing, in the order in which they were asked."""
        return list(self._tasks.values())

    def ask(self, version: Version, spared: Set[int] = frozenset()) -> None:
        """Send ``version`` to devices that are free until strategy.concurrency are training.

        Args:
            version: what they train from.
            spared: partition ids of devices that are left alone.

        Raises:
            UserError: if nobody is training and too few devices are there for too long.
        """
        config, registry = self.session.config, self.session.registry
        if self._tasks or spared:
            registry.refresh()
        else:
            timeout_seconds = config.federation.round_timeout
            registry.wait_for(self.min_devices, timeout_seconds=timeout_seconds)
        busy = {task.device.partition_id for task in self._tasks.values()}
        # A node that came back as another device still owes the answer to its task.
        others = [d for d in registry.devices if d.node_id not in self._tasks]
        free = [d for d in others if d.partition_id not in busy | spared]
        num_wanted = min(config.strategy.concurrency - len(busy), len(free))
        if not num_wanted:
            return
        generator = numpy_generator(config.run.seed, "sampling-asynchronous", self.num_draws)
        self.num_draws += 1
        for index in generator.permutation(len(free))[:num_wanted].tolist():
            device = free[index]
            repetition = version.asked[device.partition_id]
            version.asked[device.partition_id] += 1
            self.send(Task(device=device, version=version, repetition=repetition))

    def collect(self) -> Answer | None:
        """Wait for the next answer; None where nobody is training."""
        exchange = self.session.courier.collect()
        if not exchange.traffic:
            return None
        (node_id,) = exchange.traffic
        return Answer(task=self._tasks.pop(node_id), exchange=exchange)

    def send(self, task: Task) -> None:
        """Have a device begin a task."""
        node_id = task.device.node_id
        request = replace(task.version.request, repetition=task.repetition)
        self._tasks[node_id] = task
        # It may be over, for real, before it is in virtual time: a checkpoint between the two needs
        # the state from which the device can begin again.
        self.session.checkpoints.hold(node_id)
        self.session.courier.post(
            Message(request.to_record(), dst_node_id=node_id, message_type=MessageType.TRAIN)
        )
