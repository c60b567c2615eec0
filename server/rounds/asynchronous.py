"""Asynchronous, buffered training (FedBuff): a stage without common rounds.

Devices train at the same time, each from the version of the model that was new when it was asked.
A round, here, is a step of the server: it ends when enough good updates are in (fedbuff). A device
that has answered is free to be asked again at once, with the version that is new by then.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from common.errors import UserError
from common.events import log_event
from common.messages import NUM_EXAMPLES, Reply
from server.exchange.courier import Traffic
from server.exchange.replies import Judgement, Refusal, RefusalKind
from server.model.aggregation import State, is_finite, lift_codes
from server.records.round_lines import (
    describe_refusals,
    device_lines,
    float32_reply_bytes,
    round_totals,
)
from server.records.summary import UNFINISHED_BYTES, UNFINISHED_DEVICES
from server.rounds.asynchronous_state import from_progress, to_progress
from server.rounds.crew import Answer, Crew, publish
from server.rounds.session import Evaluate, Session, measure
from server.rounds.statistics import renew_statistics
from server.strategies.fedbuff import UpdateBuffer
from server.strategies.flower import averaging, make_strategy
from server.strategies.stage_plan import StagePlan


@dataclass(kw_only=True)
class _Tally:
    """What came back in a round."""

    accepted: list[Reply] = field(default_factory=list)
    """Updates already given away."""
    refused: list[Refusal] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    good_bytes: int = 0
    """Of accepted replies."""
    spared: set[int] = field(default_factory=set)
    """Partition ids of devices that failed and are not asked again in this round."""

    def add(self, answer: Answer, judgement: Judgement) -> None:
        traffic = answer.exchange.total()
        self.traffic.add(traffic)
        self.refused += judgement.refused
        if judgement.accepted:
            self.accepted += [replace(reply, update=b"") for reply in judgement.accepted]
            self.good_bytes += traffic.upload_bytes
        # One whose update was too old has done nothing wrong.
        elif judgement.refused[0].kind is not RefusalKind.STALE:
            self.spared.add(answer.task.device.partition_id)


def run_asynchronous_stage(
    session: Session,
    plan: StagePlan,
    state: State,
    *,
    evaluate: Evaluate | None = None,
    device_interval: int = 0,
) -> State:
    """All rounds of a stage with FedBuff; returns the global state after the last.

    A device that gives no good reply is left alone until the next round. A round in which nobody is
    left to ask is recorded as skipped and leaves the state as it is; what its buffer holds is kept.
    What devices are still training when the last round ends is given up; the last round's line
    counts them.

    Args:
        session: the run.
        plan: the stage.
        state: the global state at the start, name -> float32 array.
        evaluate: called after every evaluation.interval rounds and the last one.
        device_interval: rounds between two evaluations on the devices; 0: none.

    Raises:
        UserError: if devices stay away, or not one round gave a new state.
    """
    settings = session.config.strategy
    session.reporter.stage(plan.stage, plan.num_rounds)
    # For evaluations on devices, which take their turns as in every other strategy.
    evaluator = make_strategy(averaging(settings), plan)
    crew, buffer = Crew(session, plan.min_replies), UpdateBuffer()
    problem = ""
    start = session.checkpoints.start(plan.stage, state, evaluator)
    state, float32_bytes = start.state, start.float32_bytes
    if start.progress is None:
        num_steps = 0
        version = publish(plan, 0, num_steps, state)
    else:
        earlier = from_progress(start.progress, plan, state, session.registry)
        num_steps, buffer, version = earlier.num_steps, earlier.buffer, earlier.version
        crew.num_draws = earlier.num_draws
        if start.num_done < plan.num_rounds:
            for task in earlier.tasks:
                crew.send(task)
    for round_index in range(start.num_done, plan.num_rounds):
        started = time.perf_counter()
        number, tally = round_index + 1, _Tally()
        log_event("round-started", stage=plan.stage.value, round=number, num_training=len(crew))
        session.registry.give_turn()
        while len(buffer) < settings.buffer_size:
            crew.ask(version, tally.spared)
            answer = crew.collect()
            if answer is None:
                break
            staleness = num_steps - answer.task.version.num_steps
            judgement, update = answer.judge(staleness, settings.max_staleness)
            tally.add(answer, judgement)
            session.registry.ask_again(judgement.refused)
            if judgement.accepted:
                _take_in(buffer, answer, judgement.accepted[0], update, staleness)
            for line in device_lines(
                plan.stage, number, "train", judgement, answer.exchange, [answer.task.device]
            ):
                session.recorder.write({**line, "staleness": staleness})
        if tally.refused:
            problem = describe_refusals(tally.refused)
            session.reporter.note(f"{plan.stage} round {number}: no update from {problem}")

        staleness_of_updates = buffer.staleness
        is_done = len(buffer) >= settings.buffer_size
        if is_done:
            stepped = {**state, **buffer.step(state, settings.server_learning_rate)}
            buffer = UpdateBuffer()
            is_done = is_finite(stepped)
        if is_done:
            state = stepped
            num_steps += 1
        if tally.accepted and not float32_bytes:
            sent = {name: state[name] for name in plan.update_shapes}
            float32_bytes = float32_reply_bytes(tally.accepted[0], sent)
        if number < plan.num_rounds:
            version = publish(plan, number, num_steps, state)
            if len(crew):
                crew.ask(version)  # it trains while the server measures

        line = round_totals(
            plan.stage,
            number,
            Judgement(accepted=tally.accepted, refused=tally.refused),
            tally.traffic,
            num_asked=len(tally.accepted) + len(tally.refused),
            good_bytes=tally.good_bytes,
            float32_bytes=float32_bytes,
        )
        line["skipped"] = not is_done
        line |= _staleness_figures(staleness_of_updates)
        if number == plan.num_rounds:
            line[UNFINISHED_DEVICES] = len(crew)
            line[UNFINISHED_BYTES] = session.courier.under_way.download_bytes
            if plan.renews_statistics:
                state, figures = renew_statistics(session, plan, state, number)
                line |= figures
        line |= measure(session, evaluator, state, number, evaluate, device_interval)
        line["round_seconds"] = time.perf_counter() - started
        line = session.recorder.write(line)
        session.save_checkpoint(
            number,
            state,
            evaluator,
            float32_bytes=float32_bytes,
            progress=to_progress(num_steps, buffer, version, crew),
        )
        session.reporter.round_done(plan.stage, round_index, line)
    if not num_steps:
        raise UserError(
            f"stage {plan.stage}: no round of {plan.num_rounds} had {settings.buffer_size} good "
            f"replies and a finite result{'; ' + problem if problem else ''}"
        )
    return state


def _take_in(
    buffer: UpdateBuffer, answer: Answer, reply: Reply, update: State, staleness: int
) -> None:
    version = answer.task.version
    base = version.expected.base
    assert base is not None
    if version.base_deployed:
        update |= lift_codes(update, base, version.base_deployed)
    buffer.add(update, base, num_examples=int(reply.metrics[NUM_EXAMPLES]), staleness=staleness)


def _staleness_figures(staleness: list[int]) -> dict[str, Any]:
    """Of the updates in a step, or in the buffer of a skipped round."""
    if not staleness:
        return {"mean_staleness": None, "max_staleness": None}
    return {
        "mean_staleness": math.fsum(staleness) / len(staleness),
        "max_staleness": max(staleness),
    }
