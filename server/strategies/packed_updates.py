"""Packed quantized updates under any of Flower's strategies.

`PackedUpdates` is put before a strategy class of Flower. It sends packed requests instead of
Flower's records, and hands the strategy what it expects: replies with float arrays, checked and
decoded. Averaging, server optimizers and robust aggregation are Flower's own code.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from common.messages import METRICS, NUM_EXAMPLES, EvaluateRequest, Reply, Stage, TrainRequest
from common.payloads.updates import encode_codes, encode_float
from common.seeding import numpy_generator
from server.exchange.registry import SampledGrid
from server.exchange.replies import Expectation, Judgement
from server.model.aggregation import (
    State,
    deployed_weights,
    evaluation_metrics,
    is_finite,
    is_learned,
    keep_valid,
    lift_codes,
)
from server.model.bit_entries import relative_error
from server.model.forms import (
    from_chunks,
    pack_model,
    payload_hash,
    to_chunks,
    to_record,
    to_state,
)
from server.model.sent_model import SentModel, next_model, rebase
from server.strategies.device_groups import DeviceGroups
from server.strategies.privacy import GaussianMechanism, noise_generator
from server.strategies.stage_plan import StagePlan

ARRAYS = "arrays"
TRAIN_LOSS = "train-loss"
EVALUATION_METRICS = (NUM_EXAMPLES, "correct", "correct-top5", "loss-sum")


class PackedUpdates(FedAvg):
    """Mixin before a Flower strategy: packed requests out, checked float arrays in.

    Args:
        plan: the stage that the strategy is for.
        learned_only: hand the strategy learned entries only and average the others plainly.
        parameters: of the Flower strategy.
    """

    OWN_ATTRIBUTES = frozenset({"plan", "learned_only", "judgement", "_groups"})
    """What is no memory of the strategy: the plan sets it, or every round anew."""

    judgement: Judgement
    """The replies of the last round, updates already given away."""

    _groups: DeviceGroups
    """Whom the last requests were for."""

    def __init__(self, *, plan: StagePlan, learned_only: bool, **parameters: Any) -> None:
        super().__init__(
            # The grid's view holds the sample alone: all of it is asked.
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            weighted_by_key=NUM_EXAMPLES,
            arrayrecord_key=ARRAYS,
            **parameters,
        )
        self.plan = plan
        self.learned_only = learned_only
        self.sent: dict[str, dict[str, Any]] = {}
        """Bit-width -> the fields of the last `SentModel`, which the next is a change of."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Packed train requests for the sample that ``grid`` shows."""
        assert isinstance(grid, SampledGrid)
        state = to_state(arrays)
        self._groups = groups = DeviceGroups.of(grid.devices, is_mixed=self.plan.entries.is_mixed)
        requests = {}
        for bits in groups:
            view = self.plan.entries.view(state, bits)
            payload, model = self._sent(view, bits, server_round - 1)
            requests[bits] = TrainRequest(
                stage=self.plan.stage,
                round_index=server_round - 1,
                num_rounds=self.plan.num_rounds,
                model=payload,
                model_hash=model.name,
                changes=model.changes,
                teacher_hash=self.plan.teacher_hash,
                weight_bits=bits,
            )
            groups.target[bits] = view if self.plan.downlink_bits else model.state
            groups.expected[bits] = Expectation(
                partition_of=groups.partition_of(bits),
                round_index=server_round - 1,
                shapes=self.plan.update_shapes,
                base=model.state,
                base_hash=model.name,
                metric_names=(NUM_EXAMPLES, TRAIN_LOSS) if self._is_training() else (NUM_EXAMPLES,),
                num_samples={device.partition_id: device.num_samples for device in grid.devices},
            )
        # What devices' changes are added to is also what server optimizers start from.
        visible = to_chunks(groups.target[min(groups)], self._visible_names())
        messages = super().configure_train(server_round, visible, config, grid)
        proximal_mu = float(cast(float, config.get("proximal-mu", 0.0)))
        contents = {
            bits: replace(request, proximal_mu=proximal_mu).to_record()
            for bits, request in requests.items()
        }
        return groups.fill(messages, contents)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new values of the entries that updates hold; None where there are too few."""
        judgement = self._groups.judge(replies)
        self.judgement = Judgement(
            accepted=[replace(reply, update=b"") for reply in judgement.accepted],
            refused=judgement.refused,
        )
        if self._num_counting(judgement) < self.plan.min_replies:
            return None, None
        if self.plan.mechanism is not None:
            judgement = self._released(self.plan.mechanism, judgement, server_round - 1)
        names = self._visible_names()
        decoded, averaged_plainly = [], []
        bits_of = self._groups.bits_of
        device_bits = [bits_of[reply.partition_id] for reply in judgement.accepted]
        deployed = self._deployed()
        weights = self._weights(judgement.accepted, device_bits, deployed)
        for reply, bits, weight in zip(judgement.accepted, device_bits, weights, strict=True):
            # Given away one by one: two copies of every device's state would be one too many.
            state = judgement.states.pop(0)
            if self.plan.lifts_codes:
                state |= lift_codes(state, self._groups.base(bits), deployed[bits])
            if self.plan.downlink_bits:
                state = rebase(state, self._groups.base(bits), self._groups.target[bits])
            metrics = MetricRecord({NUM_EXAMPLES: weight})
            # Flower takes replies with the same metrics only; of other stages' nobody needs a loss.
            if self._is_training() and TRAIN_LOSS in reply.metrics:
                metrics[TRAIN_LOSS] = reply.metrics[TRAIN_LOSS]
            decoded.append(_float_message(to_chunks(state, names), metrics))
            averaged_plainly.append(
                {name: state[name].copy() for name in self.plan.update_shapes if name not in names}
            )
        with _cheap_garbage_collection():
            chunks, averages = super().aggregate_train(server_round, decoded)
        if chunks is None:
            return None, None
        aggregated = self.plan.entries.average(averaged_plainly, weights, device_bits)
        aggregated |= from_chunks(chunks, {name: self.plan.update_shapes[name] for name in names})
        in_order = {n: aggregated[n] for n in self.plan.update_shapes if n in aggregated}
        aggregated = keep_valid(in_order | aggregated)
        if not is_finite(aggregated):
            return None, None
        return to_record(aggregated), averages

    def _num_counting(self, judgement: Judgement) -> int:
        """The replies that a round needs a number of: the good ones.

        With privacy it is all: what is wrong with one may depend on its device's images.
        """
        if self.plan.mechanism is None:
            return len(judgement.accepted)
        refused = {refusal.partition_id for refusal in judgement.refused}
        return len(refused | {reply.partition_id for reply in judgement.accepted})

    def _released(
        self, mechanism: GaussianMechanism, judgement: Judgement, round_index: int
    ) -> Judgement:
        """One reply in place of all: the noisy mean, the only thing that strategies see of them."""
        ((bits, sample),) = self._groups.devices.items()
        base = self._groups.base(bits)
        state = mechanism.release(
            {name: base[name] for name in self.plan.update_shapes},
            judgement.states,
            num_asked=len(sample),
            generator=noise_generator(self.plan.seed, self.plan.stage, round_index, sample),
        )
        reply = Reply(partition_id=sample[0].partition_id, metrics={NUM_EXAMPLES: 1})
        return Judgement(accepted=[reply], states=[state])

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Packed evaluate requests for the sample that ``grid`` shows."""
        assert isinstance(grid, SampledGrid)
        state = to_state(arrays)
        self._groups = groups = DeviceGroups.of(grid.devices, is_mixed=self.plan.entries.is_mixed)
        trained_share = 1 - self.plan.holdout_fraction
        contents = {}
        for bits in groups:
            view = self.plan.entries.view(state, bits)
            payload, _ = self._packed(view, bits, is_trained=False)
            contents[bits] = EvaluateRequest(
                stage=self.plan.stage,
                round_index=server_round - 1,
                model=payload,
                weight_bits=bits,
            ).to_record()
            groups.expected[bits] = Expectation(
                partition_of=groups.partition_of(bits),
                round_index=server_round - 1,
                metric_names=EVALUATION_METRICS,
                min_examples=0,
                num_samples={
                    device.partition_id: math.ceil(device.num_samples / trained_share)
                    for device in grid.devices
                },
            )
        messages = super().configure_evaluate(server_round, ArrayRecord(), config, grid)
        return groups.fill(messages, contents)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
        """Accuracies and loss over all held-out images of the good replies together."""
        self.judgement = self._groups.judge(replies)
        metrics = evaluation_metrics(self.judgement.accepted)
        return MetricRecord({name: value for name, value in metrics.items() if value is not None})

    def _packed(self, view: State, bits: int, *, is_trained: bool) -> tuple[bytes, State]:
        """A whole model for devices of a bit-width, and what it decodes to.

        To be looked at only, a low-bit model goes as its codes: a fraction of the bytes, and the
        same outputs.
        """
        if is_trained or not self.plan.quantize:
            return pack_model(view, self.plan.downlink_format)
        return encode_codes(view, self.plan.quantize[bits](view), {}), view

    def _sent(self, view: State, bits: int, round_index: int) -> tuple[bytes, SentModel]:
        """The model that devices of a bit-width start from: the whole, and what they hold then."""
        if not self.plan.downlink_bits:
            payload, base = self._packed(view, bits, is_trained=self._is_training())
            return payload, SentModel(name=payload_hash(payload), state=base)
        before = self.sent.get(str(bits))
        model = next_model(
            SentModel(**before) if before else None,
            view,
            self.plan.downlink_bits,
            numpy_generator(self.plan.seed, "rounding-downlink", round_index, bits),
        )
        self.sent[str(bits)] = dict(vars(model))
        return encode_float(model.state, "float32", {}), model

    def _is_training(self) -> bool:
        return self.plan.stage in (Stage.FLOAT, Stage.QUANTIZED)

    def _deployed(self) -> dict[int, State]:
        """Bit-width -> the weights that its devices were sent, as deployed; only where needed."""
        if not (self.plan.lifts_codes or self.plan.weighs_by_error):
            return {}
        return {
            bits: deployed_weights(self.plan.quantize[bits](self._groups.base(bits)))
            for bits in self._groups
        }

    def _weights(
        self, replies: Iterable[Reply], device_bits: Iterable[int], deployed: Mapping[int, State]
    ) -> list[float]:
        """The weight of each good reply: its images, or these over its bit-width's error."""
        errors = dict.fromkeys(self._groups, 1.0)
        if self.plan.weighs_by_error:
            errors = {
                bits: relative_error(self._groups.base(bits), deployed[bits]) for bits in errors
            }
        return [
            reply.metrics[NUM_EXAMPLES] / errors[bits]
            for reply, bits in zip(replies, device_bits, strict=True)
        ]

    def _visible_names(self) -> list[str]:
        """The entries that the strategy aggregates, in a fixed order."""
        names = [name for name in self.plan.update_shapes if name not in self.plan.entries.own]
        return [name for name in names if is_learned(name)] if self.learned_only else names


def _float_message(chunks: ArrayRecord, metrics: MetricRecord) -> Message:
    """A good reply in the form that Flower's strategies read."""
    content = RecordDict({ARRAYS: chunks, METRICS: metrics})
    return Message(content=content, dst_node_id=0, message_type=MessageType.TRAIN)


@contextmanager
def _cheap_garbage_collection() -> Iterator[None]:
    """Make Flower's full collections, in some strategies one for every reply, look at new objects
    only: over all of torch's each would take half a second.
    """
    # Garbage that is frozen comes back as old, where it stays: of 200 rounds it was 40 MB.
    gc.collect(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
