"""The stages of a run: float warm-up, calibration, quantization-aware rounds."""

from __future__ import annotations

from common.config import ASYNCHRONOUS, Config
from common.messages import Stage
from common.models import model_state
from common.qat import activation_step_names
from server.model.aggregation import State
from server.model.global_model import BestKeeper, GlobalModel
from server.records.summary import of_stage
from server.requirements import required_replies
from server.rounds.asynchronous import run_asynchronous_stage
from server.rounds.session import Session
from server.rounds.synchronous import run_stage
from server.strategies.flower import averaging, make_strategy
from server.strategies.packed_updates import PackedUpdates
from server.strategies.privacy import GaussianMechanism
from server.strategies.stage_plan import StagePlan


def warm_up(session: Session, model: GlobalModel) -> State:
    """Federated float rounds from fresh weights; returns the teacher's state.

    They are averaged, or aggregated by the configured strategy where that is a robust one. The
    server evaluates the float model after the rounds that evaluation.interval names; the best is
    not looked for: the teacher is the last one.
    """
    state = copied_state(model)
    strategy = float_strategy(session.config, state)
    return run_stage(session, strategy, state, evaluate=model.evaluate)


def float_strategy(config: Config, state: State) -> PackedUpdates:
    """How the warm-up aggregates states like this one."""
    plan = StagePlan(
        stage=Stage.FLOAT,
        num_rounds=config.warmup.num_rounds,
        downlink_format=config.whole_format,
        min_replies=required_replies(config),
        mechanism=GaussianMechanism.of(config),
        seed=config.run.seed,
        update_shapes=_shapes(state),
    )
    return make_strategy(averaging(config.strategy), plan)


def calibrate(session: Session, model: GlobalModel) -> State:
    """The prepared model's state; activation steps, if it has any, from one round on the devices.

    They are averaged over the devices, weighted by images.
    """
    state = copied_state(model)
    names = activation_step_names(model.module)
    if not names:
        return state
    plan = StagePlan(
        stage=Stage.CALIBRATION,
        num_rounds=1,
        downlink_format=session.config.whole_format,
        min_replies=required_replies(session.config),
        mechanism=GaussianMechanism.of(session.config),
        seed=session.config.run.seed,
        update_shapes={name: state[name].shape for name in names},
        entries=model.entries,
    )
    return run_stage(session, make_strategy(averaging(session.config.strategy), plan), state)


def train_quantized(
    session: Session, model: GlobalModel, state: State, *, teacher_hash: str
) -> None:
    """QuaRC's rounds with the configured strategy; best and last model go to the run folder."""
    config = session.config
    plan = StagePlan(
        stage=Stage.QUANTIZED,
        num_rounds=config.federation.num_rounds,
        downlink_format=config.whole_format,
        downlink_bits=config.federation.downlink_bits if config.sends_changes else 0,
        min_replies=required_replies(config),
        mechanism=GaussianMechanism.of(config),
        seed=config.run.seed,
        update_shapes=_shapes(model.entries.view(state, model.entries.bits[0])),
        teacher_hash=teacher_hash,
        entries=model.entries,
        quantize={bits: part.quantize for bits, part in model.by_bits.items()},
        lifts_codes=config.federation.update_format == "codes",
        holdout_fraction=config.data.holdout_fraction,
        renews_statistics=config.training.batch_norm_images > 0,
        weighs_by_error=config.federation.bit_weighting == "error",
    )
    earlier = of_stage(session.recorder.rounds, Stage.QUANTIZED)
    best_so_far = max((line.get("accuracy", -1.0) for line in earlier), default=-1.0)
    evaluate = BestKeeper(model, session.recorder.folder, best_so_far).evaluate
    device_interval = config.evaluation.device_interval
    if config.strategy.name == ASYNCHRONOUS:
        run_asynchronous_stage(
            session, plan, state, evaluate=evaluate, device_interval=device_interval
        )
        return
    strategy = make_strategy(config.strategy, plan, learning_rate=config.training.learning_rate)
    run_stage(session, strategy, state, evaluate=evaluate, device_interval=device_interval)


def copied_state(model: GlobalModel) -> State:
    """The model's state, on its own: its modules take other states later."""
    return model.entries.merge(
        {
            bits: {name: values.copy() for name, values in model_state(part.module).items()}
            for bits, part in model.by_bits.items()
        }
    )


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in state.items()}
