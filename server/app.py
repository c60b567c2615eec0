"""The server's Flower app: settings -> teacher -> quantized model -> rounds -> summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid
from torch import nn

from common.checkpoints import content_hash, load_checkpoint, resolve_teacher, save_checkpoint
from common.clock import Clock
from common.config import Config
from common.data.data_fingerprint import data_fingerprint
from common.data.datasets import Dataset, configured_dataset
from common.data.input_spec import InputSpec
from common.data.partition import configured_split
from common.errors import UserError
from common.events import EVENTS_FILE, EventFile, bound_fields, print_events
from common.messages import QueryRequest, Stage
from common.models import create_model, load_state
from common.payloads.updates import encode_float
from common.seeding import torch_generator
from server.checkpoints.resumption import Checkpoints, Harness
from server.exchange.courier import Courier, Traffic
from server.exchange.guarded_grid import GuardedGrid
from server.exchange.registry import DeviceRegistry
from server.model.aggregation import State
from server.model.evaluation import Evaluation
from server.model.global_model import GlobalModel
from server.model.mixed_model import quantized_model
from server.records.plots import plot_curves
from server.records.recorder import (
    Annotate,
    Recorder,
    check_run_folder,
    claimed,
    default_run_folder,
    no_annotation,
)
from server.records.reporting import (
    EventReporter,
    Reporter,
    log_reply,
    logged_failure,
    quiet_flower,
)
from server.records.split_plot import plot_split
from server.records.summary import RunFacts, summarise
from server.records.tensorboard_log import TensorBoardLog
from server.refusals import RefusedRunError, marked_refusals, refusing
from server.requirements import (
    check_mixed_bits,
    refuse_attack,
    refuse_emulation,
    required_replies,
)
from server.rounds.session import Session
from server.rounds.stages import calibrate, copied_state, train_quantized, warm_up
from server.strategies.privacy_accountant import PrivacyAccountant

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says; an error ends the run as failed."""
    print_events()
    with bound_fields(run_id=str(context.run_id)), marked_refusals():
        with logged_failure(), refusing():
            config = Config.from_flat(context.run_config)
            refuse_attack(config)
        # Only between machines are messages read again from what a stranger sent.
        timeout = config.federation.round_timeout
        view = GuardedGrid(grid, timeout_seconds=timeout) if isinstance(grid, HttpGrid) else grid
        run_federation(view, config, None, default_run_folder(config))


def run_federation(
    grid: Grid,
    config: Config,
    reporter: Reporter | None,
    run_folder: Path,
    *,
    clock: Clock | None = None,
    annotate: Annotate = no_annotation,
    device_states: Path | None = None,
    harness: Harness | None = None,
) -> dict[str, Any]:
    """One federation from its beginning, or from where it was killed, to its end.

    Returns what summary.json holds.

    Nothing is written before settings, data, checkpoint and devices are known to be good.

    Args:
        grid: Flower's grid, of any engine.
        config: of the run.
        reporter: told what happens, as the log of events is (see `common.events`).
        run_folder: where results go; new or empty, unless config.run.resume names it.
        clock: what waiting for devices goes by; None: the machine's own.
        annotate: asked what else belongs into every recorded line and into the summary.
        device_states: where the engine keeps the states of emulated devices, if it does.
        harness: what emulates the devices' hardware, if they are emulated.

    Raises:
        UserError: for what a user can mend: settings, data, checkpoint, folder, devices.
    """
    events = EventFile(run_folder / EVENTS_FILE)
    with bound_fields(run=run_folder.name), events, logged_failure(), ExitStack() as contexts:
        reporter = EventReporter(reporter)
        started = time.perf_counter()
        is_there = run_folder.is_dir()
        with refusing():
            if not (is_there and config.run.resume):
                check_run_folder(run_folder)
        if is_there:
            contexts.enter_context(claimed(run_folder, reporter.note))
        with refusing():
            checkpoints = Checkpoints(
                run_folder, config, devices=device_states, harness=harness, note=reporter.note
            )
            started -= checkpoints.earlier.get("wall_seconds", 0.0)
            check_mixed_bits(config)
            if harness is None:
                refuse_emulation(config)
            min_devices = required_replies(config)
            tensorboard = TensorBoardLog(run_folder) if config.run.tensorboard else None
            accountant = None if config.privacy.mechanism == "none" else PrivacyAccountant(config)
            dataset = configured_dataset(config.data)
            module, is_trained = _float_module(config, dataset)
        reporter.start(config, run_folder)
        timeout = config.federation.round_timeout if harness is None else harness.deadline_seconds
        courier = Courier(grid, timeout_seconds=timeout, clock=clock)
        introduction = QueryRequest(inputs=InputSpec.of(dataset)).to_record()
        mixed_bits = config.device_bits if config.federation.mixed_bits else ()
        registry = DeviceRegistry(courier, reporter.note, introduction, mixed_bits)
        contexts.enter_context(quiet_flower())
        if checkpoints.has_busy_devices:
            registry.refresh()  # they answer, whoever else is there
        else:
            registry.wait_for(min_devices, timeout_seconds=config.federation.round_timeout)
        registry.traffic.add(Traffic(**checkpoints.earlier.get("query_traffic", {})))
        if not is_there:
            contexts.enter_context(claimed(run_folder, reporter.note))
            check_run_folder(run_folder)  # another run may have come first
        checkpoints.restore_files()
        kept_bytes = checkpoints.kept_bytes
        listeners = [log_reply, *([tensorboard.add] if tensorboard else [])]
        with (
            Recorder(
                run_folder, config, annotate, kept_bytes=kept_bytes, listeners=listeners
            ) as recorder,
            tensorboard or nullcontext(),
        ):
            events.open()
            if tensorboard:
                tensorboard.replay(recorder.rounds)
            session = Session(
                config=config,
                courier=courier,
                registry=registry,
                recorder=recorder,
                reporter=reporter,
                checkpoints=checkpoints,
                started=started,
                accountant=accountant,
            )
            if accountant:
                accountant.replay(recorder.rounds)
            if any(device.emulated for device in registry.devices):
                _draw(reporter, _draw_split, config, dataset, run_folder)
            facts = _run_stages(session, module, dataset, is_trained=is_trained)
            facts["wall_seconds"] = time.perf_counter() - started
            summary = summarise(config, recorder.rounds, RunFacts(**facts))
            if accountant:
                summary["privacy"] = accountant.summary()
            summary = recorder.write_summary(summary)
            checkpoints.clear()
            _draw(reporter, plot_curves, recorder.rounds, summary, run_folder / "curves.png")
        reporter.finish(summary)
        return summary


def _run_stages(
    session: Session, module: nn.Module, dataset: Dataset, *, is_trained: bool
) -> dict[str, Any]:
    """Teacher, quantized model, rounds; returns the facts of the run, the time aside."""
    config, note, checkpoints = session.config, session.reporter.note, session.checkpoints
    float_model = GlobalModel(module, dataset, config)
    images = data_fingerprint(dataset)
    _refuse_change(checkpoints, "data_fingerprint", images, "data set")
    teacher = _teacher(session, float_model, dataset, is_trained=is_trained)
    teacher_hash = content_hash(teacher)
    _refuse_change(checkpoints, "teacher_hash", teacher_hash, "teacher")
    session.courier.set_teacher(teacher_hash, encode_float(teacher, "float32", {}))
    session.registry.believe_teacher_at(checkpoints.earlier.get("teacher_partitions", []))
    if checkpoints.devices is not None:  # real ones have lost what they held in the earlier run
        session.registry.believe_model_at(dict(checkpoints.earlier.get("model_at", [])))
    float_figures = float_model.evaluate(teacher)
    note(f"float model: {float_figures.accuracy:.2f} % Top-1")

    quantized = quantized_model(float_model.module, dataset, config)
    past_calibration = checkpoints.is_past(Stage.CALIBRATION)
    state = copied_state(quantized) if past_calibration else calibrate(session, quantized)
    if "before" not in checkpoints.facts:
        checkpoints.facts["before"] = asdict(quantized.evaluate(state))
    before = Evaluation(**checkpoints.facts["before"])
    note(f"quantized model before training: {before.accuracy:.2f} % Top-1")
    train_quantized(session, quantized, state, teacher_hash=teacher_hash)
    return {
        "float_model": float_figures,
        "before": before,
        "teacher_hash": teacher_hash,
        "data_fingerprint": images,
        "num_devices": len(session.registry.devices),
        "query_traffic": session.registry.traffic,
    }


def _refuse_change(checkpoints: Checkpoints, name: str, digest: str, what: str) -> None:
    """Keep a digest with the checkpoints; refuse another one than that of a run that goes on."""
    if checkpoints.facts.setdefault(name, digest) != digest:
        raise RefusedRunError(
            f"the {what} is not the one that the run in '{checkpoints.run_folder}' began with"
        )


def _teacher(
    session: Session, float_model: GlobalModel, dataset: Dataset, *, is_trained: bool
) -> State:
    """The float model's state: from a checkpoint file, this run's earlier part, or the warm-up."""
    if is_trained:
        return copied_state(float_model)
    config, train = session.config, dataset.train
    path = session.recorder.folder / "teacher.safetensors"
    if session.checkpoints.is_past(Stage.FLOAT):
        in_channels = train.images.shape[1]
        return load_checkpoint(path, config.model.name, train.num_classes, in_channels)
    teacher = warm_up(session, float_model)
    save_checkpoint(path, teacher, {"model": config.model.name, "dataset": dataset.name})
    return teacher


def _float_module(config: Config, dataset: Dataset) -> tuple[nn.Module, bool]:
    """The float model, and whether it comes trained, from a checkpoint."""
    num_classes, in_channels = dataset.train.num_classes, dataset.train.images.shape[1]
    module = create_model(
        config.model.name,
        num_classes=num_classes,
        in_channels=in_channels,
        generator=torch_generator(config.run.seed, "model"),
    )
    path = resolve_teacher(config.model.teacher, config.model.name, dataset.name)
    if path is not None:
        load_state(module, load_checkpoint(path, config.model.name, num_classes, in_channels))
    return module, path is not None


def _draw_split(config: Config, dataset: Dataset, run_folder: Path) -> None:
    labels = dataset.train.labels
    parts = configured_split(labels, config.data, config.run.seed)
    plot_split(labels, parts, dataset.train.class_names, run_folder / "split.png")


def _draw(reporter: Reporter, draw: Callable[..., None], *args: object) -> None:
    """Draw a picture; a server without the package for it goes on without the picture."""
    try:
        draw(*args)
    except UserError as error:
        reporter.note(str(error))
