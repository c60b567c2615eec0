"""Tests of client.rounds: what a device answers, on thirty handwritten digits."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from client.deadline import Pace
from client.device import Device, float_model, quantized_model
from client.rounds import (
    calibration_round,
    float_round,
    quantized_round,
    statistics_round,
)
from client.state import TeacherStore, load_coreset, load_model, load_pace, load_residual
from common.checkpoints import content_hash
from common.config import Config
from common.data.augmentation import normalize
from common.data.datasets import load_dataset
from common.inference import predict_logits
from common.messages import NUM_EXAMPLES, Reply, Stage, Status, TrainRequest
from common.models import load_state, model_state
from common.payloads import wire
from common.payloads.updates import decode_state, encode_delta, encode_float
from common.payloads.wire import Codes, WireError
from common.qat import activation_step_names, prepare, quantized_weights

State = dict[str, NDArray[np.float32]]
NUM_TRAIN = 30
WEIGHT = "conv1.weight"

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: no test finds the teacher of another."""
    monkeypatch.setenv("FEDQUARC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def device() -> Device:
    dataset = load_dataset("digits")
    return Device(
        partition_id=3,
        dataset=dataset,
        train=dataset.train.subset(torch.arange(NUM_TRAIN)),
        holdout=dataset.train.subset(torch.arange(NUM_TRAIN, 40)),
    )


def make_config(**changes: Any) -> Config:
    flat: dict[str, Any] = {
        "training.batch-size": 10,
        "warmup.batch-size": 10,
        "coreset.selection": "quarc",
        "coreset.fraction": 0.5,
        "federation.update-format": "float32",
    }
    keys = {name.replace("__", ".").replace("_", "-"): v for name, v in changes.items()}
    return Config.from_flat({**flat, **keys})


def make_teacher(config: Config, device: Device) -> nn.Module:
    return float_model(config, device)


def make_request(config: Config, device: Device, **changes: Any) -> TrainRequest:
    """A request with the prepared teacher as the global model."""
    teacher = make_teacher(config, device)
    quantized = changes.get("stage", Stage.QUANTIZED) is not Stage.FLOAT
    model = prepare(teacher, config.quantization) if quantized else teacher
    fields: dict[str, Any] = {
        "stage": Stage.QUANTIZED,
        "round_index": 0,
        "num_rounds": 4,
        "model": encode_float(model_state(model), "float32", {}),
        "model_hash": "base",
    }
    if quantized:
        state = model_state(teacher)
        fields["teacher"] = encode_float(state, "float32", {})
        fields["teacher_hash"] = content_hash(state)
    return TrainRequest(**{**fields, **changes})


def answer(
    config: Config, device: Device, records: RecordDict | None = None, **changes: Any
) -> Reply:
    request = make_request(config, device, **changes)
    return quantized_round(config, device, request, RecordDict() if records is None else records)


def differs(left: State, right: State) -> bool:
    return any(not np.array_equal(left[name], right[name]) for name in left)


class TestFloatRound:
    def answer(self, config: Config, device: Device, **changes: Any) -> Reply:
        request = make_request(config, device, stage=Stage.FLOAT, **changes)
        return float_round(config, device, request, RecordDict())

    def test_trains_on_all_images(self, device: Device) -> None:
        """Two epochs of thirty images in the warm-up's batches of fifteen: four steps."""
        config = make_config(warmup__batch_size=15)
        started = time.perf_counter()
        reply = self.answer(config, device, round_index=2)
        elapsed = time.perf_counter() - started
        assert (reply.status, reply.partition_id, reply.round_index) == (Status.OK, 3, 2)
        assert reply.metrics[NUM_EXAMPLES] == NUM_TRAIN
        assert reply.metrics["num-steps"] == 4
        assert reply.metrics["train-loss"] > 0
        assert 0 < reply.metrics["train-seconds"] < elapsed
        state = decode_state(reply.update)
        base = model_state(make_teacher(config, device))
        assert list(state) == list(base)
        assert differs(state, base)

    def test_repeats_itself(self, device: Device) -> None:
        config = make_config()
        updates = [self.answer(config, device, round_index=i).update for i in (1, 1, 2)]
        assert updates[0] == updates[1]
        assert differs(decode_state(updates[0]), decode_state(updates[2]))

    def test_learns_from_labels_whatever_the_loss_of_later_rounds(self, device: Device) -> None:
        plain = self.answer(make_config(), device)
        other = self.answer(make_config(training__correction="clc-channel"), device)
        assert plain.update == other.update

    def test_divergence(self, device: Device) -> None:
        reply = self.answer(make_config(warmup__learning_rate=1e30), device)
        assert reply.status is Status.DIVERGED
        assert reply.reason
        assert reply.update == b""


class TestStatisticsRound:
    def answer(self, device: Device, num_images: int, **changes: Any) -> dict[str, np.ndarray]:
        config = make_config(training__batch_norm_images=num_images, data__augment=False)
        request = make_request(config, device, stage=Stage.STATISTICS, **changes)
        reply = statistics_round(config, device, request, RecordDict())
        assert reply.status is Status.OK
        assert reply.metrics[NUM_EXAMPLES] == NUM_TRAIN
        return decode_state(reply.update)

    def test_answers_statistics_alone(self, device: Device) -> None:
        """ResNet-8 has a stem, three blocks of two layers and two shortcuts: nine layers."""
        names = set(self.answer(device, 16))
        assert len(names) == 2 * 9
        assert all(name.endswith((".running_mean", ".running_var")) for name in names)

    def test_the_first_layers_are_those_of_its_inputs(self, device: Device) -> None:
        """Of all images, not augmented: the mean of what the stem's convolution makes of them, with
        the weights that came."""
        config = make_config(data__augment=False)
        model = quantized_model(config, device)
        state = decode_state(make_request(config, device).model)
        state["conv1.weight"] = -state["conv1.weight"]
        load_state(model, state)
        inputs = normalize(device.train.images, device.dataset.mean, device.dataset.std)
        with torch.no_grad():
            maps = model.get_submodule("conv1")(inputs)
        sent = encode_float(state, "float32", {})
        measured = self.answer(device, NUM_TRAIN, model=sent)["bn1.running_mean"]
        np.testing.assert_allclose(measured, maps.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)

    def test_looks_at_as_many_images_as_it_is_told_to(self, device: Device) -> None:
        some, more = (self.answer(device, number)["bn1.running_mean"] for number in (8, 16))
        assert not np.array_equal(some, more)
        np.testing.assert_array_equal(some, self.answer(device, 8)["bn1.running_mean"])


class TestCalibrationRound:
    def answer(self, config: Config, device: Device, **changes: Any) -> Reply:
        request = make_request(config, device, stage=Stage.CALIBRATION, **changes)
        return calibration_round(config, device, request, RecordDict())

    def test_answers_activation_steps_alone(self, device: Device) -> None:
        config = make_config(quantization__activation_bits=4, quantization__quantizer="lsq+")
        reply = self.answer(config, device)
        names = activation_step_names(quantized_model(config, device))
        state = decode_state(reply.update)
        assert set(state) == set(names)
        assert all(state[name] > 0 for name in names if name.endswith(".step"))
        assert all(state[name] != 1 for name in names)
        assert reply.metrics[NUM_EXAMPLES] == NUM_TRAIN
        assert reply.update == self.answer(config, device).update

    def test_looks_at_as_many_images_as_it_is_told_to(self, device: Device) -> None:
        """Three batches are all there is: four are the same, one is not."""
        updates = [
            self.answer(
                make_config(
                    quantization__activation_bits=4, quantization__calibration_batches=batches
                ),
                device,
            ).update
            for batches in (1, 3, 4)
        ]
        assert updates[0] != updates[1]
        assert updates[1] == updates[2]

    def test_fits_the_model_that_came(self, device: Device) -> None:
        """Twice the output of the first normalisation is twice the next layer's input."""
        config = make_config(quantization__activation_bits=4)
        state = decode_state(make_request(config, device).model)
        state |= {f"bn1.{name}": 2 * state[f"bn1.{name}"] for name in ("weight", "bias")}
        replies = (
            self.answer(config, device),
            self.answer(config, device, model=encode_float(state, "float32", {})),
        )
        step, doubled = (
            decode_state(reply.update)["layer1.0.conv1.input_quantizer.step"] for reply in replies
        )
        assert doubled == 2 * step


class TestTeacher:
    def test_missing(self, device: Device) -> None:
        reply = answer(make_config(), device, teacher=b"")
        assert reply.status is Status.TEACHER_MISSING
        assert reply.update == b""
        assert reply.metrics == {}

    def test_is_kept_for_later_rounds(self, device: Device) -> None:
        config, records = make_config(), RecordDict()
        first = answer(config, device, records)
        second = answer(config, device, records, teacher=b"", round_index=1)
        assert first.status is second.status is Status.OK
        assert second.teacher_hash == make_request(config, device).teacher_hash

    def test_a_damaged_one_is_missing(self, device: Device, cache: Path) -> None:
        config = make_config()
        answer(config, device)
        (path,) = cache.rglob("teacher.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
        assert answer(config, device, teacher=b"").status is Status.TEACHER_MISSING
        assert answer(config, device).status is Status.OK

    def test_of_another_hash_is_refused(self, device: Device) -> None:
        with pytest.raises(ValueError, match="does not have the announced hash"):
            answer(make_config(), device, teacher_hash="ab12")

    def test_no_room_for_it(self, device: Device, cache: Path) -> None:
        """A file is where its folder should be. The round is what it is with room, but the device
        does not say that it has the teacher, so that the server sends it again."""
        config, blocker = make_config(coreset__selection="res"), cache / "teachers"
        blocker.touch()
        without = answer(config, device)
        assert (without.status, without.teacher_hash) == (Status.OK, "")
        assert answer(config, device, teacher=b"").status is Status.TEACHER_MISSING
        with pytest.raises(ValueError, match="does not have the announced hash"):
            answer(config, device, teacher_hash="ab12")
        blocker.unlink()
        kept = answer(config, device)
        assert kept.teacher_hash == make_request(config, device).teacher_hash
        assert kept.update == without.update

    def test_its_outputs_are_computed_once(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two selections, and a third by the device after a restart."""
        computed = []
        outputs = TeacherStore.outputs

        def count(store: TeacherStore, key: str, images: str, compute: Any, *rest: Any) -> Any:
            def counted() -> Any:
                computed.append(key)
                return compute()

            return outputs(store, key, images, counted, *rest)

        monkeypatch.setattr(TeacherStore, "outputs", count)
        config, records = make_config(coreset__interval=1), RecordDict()
        answer(config, device, records)
        answer(config, device, records, round_index=1)
        answer(config, device, RecordDict(), round_index=2)
        assert len(computed) == 1

    def test_its_outputs_on_a_pool_are_computed_for_every_selection(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A coreset of 15 images out of a pool of 1.2 times as many, 18 others in every round."""
        pools: list[set[int]] = []

        def predict(*arguments: Any, indices: Tensor, **settings: Any) -> Tensor:
            pools.append(set(indices.tolist()))
            return predict_logits(*arguments, indices=indices, **settings)

        monkeypatch.setattr("client.rounds.predict_logits", predict)
        config = make_config(coreset__interval=1, coreset__balanced=False, coreset__pool=1.2)
        records = RecordDict()
        for round_index in range(2):
            metrics = answer(config, device, records, round_index=round_index).metrics
            assert metrics["coreset-size"] == 15
            assert (metrics["num-scored"], metrics["num-teacher-scored"]) == (18, 18)
        first, second = pools
        assert len(first) == len(second) == 18
        assert first != second


class TestHeldModel:
    def test_the_first_round_holds_the_model_that_changes_lead_on_from(
        self, device: Device
    ) -> None:
        """Round 2 from a change by nothing: the update that the whole model gives."""
        config = make_config(federation__downlink_format="delta")
        records, first = RecordDict(), make_request(config, device)
        assert quantized_round(config, device, first, records).model_hash == "base"
        state = decode_state(first.model)
        change, _ = encode_delta(state, state, 4, None, None, {"base-hash": "base"})
        whole = replace(first, round_index=1)
        request = replace(whole, model=b"", model_hash="next", changes={"base": change})
        other = RecordDict()
        quantized_round(config, device, first, other)
        expected = quantized_round(config, device, whole, other)
        reply = quantized_round(config, device, request, records)
        assert reply.model_hash == "next"
        assert decode_state(reply.update)[WEIGHT].tobytes() == (
            decode_state(expected.update)[WEIGHT].tobytes()
        )

    def test_one_that_is_not_held_is_missing_and_looked_for_before_the_teacher(
        self, device: Device
    ) -> None:
        config = make_config(federation__downlink_format="delta")
        reply = answer(config, device, model=b"", teacher=b"", changes={"older": b"change"})
        assert reply.status is Status.MODEL_MISSING
        assert (reply.update, reply.model_hash) == (b"", "")

    def test_where_models_go_whole_none_is_held(self, device: Device) -> None:
        records = RecordDict()
        assert answer(make_config(), device, records).model_hash == ""
        assert load_model(records) == ("", {})


class TestCoreset:
    def test_half_of_every_class(self, device: Device) -> None:
        """A coreset of C images, one epoch in batches of ten; the loss is weighted by C."""
        records = RecordDict()
        reply = answer(make_config(), device, records)
        counts = device.train.labels.bincount(minlength=10)
        size = sum(max(1, round(int(count) / 2)) for count in counts if count)
        coreset = load_coreset(records, device.train.digest)
        assert coreset is not None
        assert reply.metrics["coreset-size"] == reply.metrics[NUM_EXAMPLES] == size
        assert len(coreset.indices) == size
        assert reply.metrics["num-steps"] == -(-size // 10)
        assert reply.metrics["select-seconds"] > 0

    def test_outlives_the_round_until_it_is_due(self, device: Device) -> None:
        """Every two epochs, one a round: chosen at 0, 2 and 4."""
        config, records, epochs = make_config(coreset__interval=2), RecordDict(), []
        for round_index in range(4):
            answer(config, device, records, round_index=round_index)
            coreset = load_coreset(records, device.train.digest)
            assert coreset is not None
            epochs.append(coreset.epoch)
        assert epochs == [0, 0, 2, 2]

    def test_teacher_outputs_on_its_views_outlive_the_round(self, device: Device) -> None:
        """One epoch a round, two views, a new coreset after three rounds: the teacher is needed in
        rounds 0 and 1, its outputs are there in round 2, and round 3 begins anew."""
        config = make_config(coreset__interval=3, training__teacher_views=2)
        records, kept = RecordDict(), []
        for round_index in range(4):
            metrics = answer(config, device, records, round_index=round_index).metrics
            kept.append(metrics["num-teacher-kept"] / metrics["num-seen"])
        assert kept == [0, 0, 1, 0]

    def test_belongs_to_the_devices_images(self, device: Device) -> None:
        """A real device's folder was given a photograph that comes before all others: every index
        means another image. The coreset and the teacher's outputs on it are of no use, though
        neither is due and all indices are in range."""
        config = make_config(coreset__interval=4, training__teacher_views=1, data__augment=False)
        grown = replace(
            device, train=device.dataset.train.subset(torch.tensor([40, *range(NUM_TRAIN)]))
        )
        records = RecordDict()
        answer(config, device, records)
        assert answer(config, device, records, round_index=1).metrics["num-teacher-kept"] > 0
        reply = answer(config, grown, records, round_index=2)
        assert reply.metrics["num-teacher-kept"] == 0
        assert load_coreset(records, device.train.digest) is None
        coreset = load_coreset(records, grown.train.digest)
        assert coreset is not None
        assert coreset.epoch == 2

    def test_is_chosen_anew_within_a_round(self, device: Device) -> None:
        """Round 1 of three epochs is epochs 3, 4, 5; every two epochs from there: 3 and 5."""
        config, records = (
            make_config(coreset__interval=2, training__local_epochs=3),
            RecordDict(),
        )
        reply = answer(config, device, records, round_index=1)
        coreset = load_coreset(records, device.train.digest)
        assert coreset is not None
        assert coreset.epoch == 5
        assert reply.metrics["num-steps"] == 3 * -(-len(coreset.indices) // 10)

    def test_scores_of_training_outlive_the_round(self, device: Device) -> None:
        """What a round has trained on has scores in the next, which draws by them."""
        config, records = (
            make_config(coreset__selection="res-online", coreset__interval=1),
            RecordDict(),
        )
        seen: set[int] = set()
        for round_index in range(2):
            answer(config, device, records, round_index=round_index)
            coreset = load_coreset(records, device.train.digest)
            assert coreset is not None
            assert coreset.scores is not None
            seen |= set(coreset.indices.tolist())
            assert set((~coreset.scores.isnan()).nonzero().squeeze(1).tolist()) == seen

    def test_full(self, device: Device) -> None:
        reply = answer(make_config(coreset__selection="full"), device)
        assert reply.metrics[NUM_EXAMPLES] == NUM_TRAIN

    def test_full_is_never_chosen_again(self, device: Device) -> None:
        """Two epochs a round, two views: from the second round on the teacher's outputs are there,
        whatever the interval."""
        config = make_config(
            coreset__selection="full",
            coreset__interval=1,
            training__teacher_views=2,
            training__local_epochs=2,
        )
        records, kept = RecordDict(), []
        for round_index in range(4):
            metrics = answer(config, device, records, round_index=round_index).metrics
            kept.append(metrics["num-teacher-kept"])
        assert kept == [0, 2 * NUM_TRAIN, 2 * NUM_TRAIN, 2 * NUM_TRAIN]
        coreset = load_coreset(records, device.train.digest)
        assert coreset is not None
        assert coreset.epoch == 0


class TestPace:
    @pytest.mark.parametrize(
        ("adaptive", "told", "is_kept"),
        [(True, False, True), (True, True, False), (False, False, False)],
    )
    def test_is_kept_where_it_is_needed_and_not_told(
        self, device: Device, adaptive: bool, told: bool, is_kept: bool
    ) -> None:
        pace = Pace(seconds_per_sample=1e-6, seconds_per_scored_sample=1e-6) if told else None
        records = RecordDict()
        answer(make_config(coreset__adaptive=adaptive), replace(device, pace=pace), records)
        assert ("seconds-per-sample" in load_pace(records)) == is_kept


class TestUpdates:
    def test_float32_is_the_trained_state(self, device: Device) -> None:
        config = make_config()
        reply = answer(config, device)
        base = decode_state(make_request(config, device).model)
        state = decode_state(reply.update)
        assert list(state) == list(base)
        assert differs(state, base)
        assert all(np.isfinite(values).all() for values in state.values())

    def test_codes_are_the_low_bit_model(self, device: Device) -> None:
        """Codes times steps of the weights that the float32 reply of the same round holds."""
        config = make_config(federation__update_format="codes")
        records = RecordDict()
        update = answer(config, device, records).update
        tensors, metadata = wire.decode(update)
        assert metadata["format"] == "codes"
        assert metadata["round"] == 0
        exact = decode_state(answer(make_config(), device).update)
        student = quantized_model(config, device)
        load_state(student, exact)
        expected = quantized_weights(student)
        sent = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Codes)}
        assert sent.keys() == expected.keys()
        for name, codes in expected.items():
            assert (
                sent[name].bits == codes.bits == (8 if name in ("conv1.weight", "fc.weight") else 2)
            )
            assert np.array_equal(sent[name].codes, codes.codes)
            assert np.array_equal(sent[name].scale, codes.scale)
        decoded = decode_state(update)
        rest = exact.keys() - sent.keys()
        assert all(np.array_equal(decoded[name], exact[name]) for name in rest)
        assert load_residual(records) == {}

    def test_delta_and_what_it_loses_are_the_whole_change(self, device: Device) -> None:
        """Decoded + residual = the float32 reply; the next round's delta makes up for the loss:
        decoded + new residual = float32 reply + old residual.
        """
        config = make_config(federation__update_format="delta", federation__delta_bits=4)
        records, exact_records = RecordDict(), RecordDict()
        before: State = {}
        for round_index in range(2):
            request = make_request(config, device, round_index=round_index)
            reply = quantized_round(config, device, request, records)
            base = decode_state(request.model)
            decoded = decode_state(reply.update, base=base, base_hash="base")
            residual = load_residual(records)
            exact = decode_state(
                answer(make_config(), device, exact_records, round_index=round_index).update
            )
            for name, values in exact.items():
                expected = values + before.get(name, np.float32(0))
                np.testing.assert_allclose(
                    decoded[name] + residual[name], expected, rtol=1e-4, atol=1e-5
                )
            assert any(values.any() for values in residual.values())
            before = {name: values.copy() for name, values in residual.items()}

    def test_delta_is_relative_to_its_base(self, device: Device) -> None:
        config = make_config(federation__update_format="delta")
        reply = answer(config, device)
        base = decode_state(make_request(config, device).model)
        with pytest.raises(WireError, match="base-hash"):
            decode_state(reply.update, base=base, base_hash="another")

    def test_without_error_feedback_nothing_is_kept(self, device: Device) -> None:
        config = make_config(federation__update_format="delta", federation__error_feedback=False)
        records = RecordDict()
        answer(config, device, records)
        assert load_residual(records) == {}

    @pytest.mark.parametrize("update_format", ["codes", "delta", "float32"])
    def test_a_seed_gives_the_same_bytes(self, device: Device, update_format: str) -> None:
        updates = [
            answer(make_config(federation__update_format=update_format, run__seed=seed), device)
            for seed in (1, 1, 2)
        ]
        assert updates[0].update == updates[1].update
        assert updates[0].update != updates[2].update

    def test_asked_again_a_device_draws_other_numbers(self, device: Device) -> None:
        updates = [answer(make_config(), device, repetition=again).update for again in (0, 1, 1, 2)]
        assert updates[1] == updates[2]
        assert len(set(updates)) == 3

    def test_low_bit_formats_are_small(self, device: Device) -> None:
        """Nearly all values of resnet8 are two-bit codes, 1/16 of float32, or four-bit deltas, 1/8;
        names, shapes and what stays float are a few kB.
        """
        sizes = {
            update_format: len(
                answer(make_config(federation__update_format=update_format), device).update
            )
            for update_format in ("codes", "delta", "float32")
        }
        assert sizes["codes"] < 0.1 * sizes["float32"]
        assert sizes["delta"] < 0.2 * sizes["float32"]

    @pytest.mark.parametrize("granularity", ["tensor", "channel"])
    def test_quantized_activations(self, device: Device, granularity: str) -> None:
        config = make_config(
            quantization__activation_bits=4,
            quantization__granularity=granularity,
            federation__update_format="codes",
        )
        reply = answer(config, device)
        state = decode_state(reply.update)
        student = quantized_model(config, device)
        load_state(student, state)
        assert set(activation_step_names(student)) <= state.keys()

    def test_the_float_control(self, device: Device) -> None:
        reply = answer(make_config(quantization__weight_bits=32), device)
        assert not [name for name in decode_state(reply.update) if "quantizer" in name]
        assert reply.status is Status.OK


class TestTraining:
    def test_the_proximal_term_holds_the_device_to_the_global_model(self, device: Device) -> None:
        """Also past a new coreset: with mu = 10, the change over four epochs is smaller."""
        config = make_config(
            training__local_epochs=4, coreset__interval=1, training__schedule="constant"
        )
        base = decode_state(make_request(config, device).model)
        changes = []
        for mu in (0.0, 10.0):
            state = decode_state(answer(config, device, proximal_mu=mu).update)
            name = "layer1.0.conv1.weight"
            changes.append(float(np.abs(state[name] - base[name]).sum()))
        assert changes[1] < 0.5 * changes[0]

    def test_divergence_is_answered_and_nothing_is_sent(self, device: Device) -> None:
        config = make_config(training__learning_rate=1e30, federation__update_format="delta")
        records = RecordDict()
        reply = answer(config, device, records, round_index=1)
        assert (reply.status, reply.round_index) == (Status.DIVERGED, 1)
        assert "not finite" in reply.reason or "loss is" in reply.reason
        assert reply.update == b""
        assert reply.metrics == {}
        assert load_residual(records) == {}

    def test_the_learning_rate_falls_over_all_rounds(self, device: Device) -> None:
        """At the end of a linear schedule of four rounds, round 3 moves less than round 0."""
        config = make_config(training__schedule="linear", training__momentum=0.0)
        base = decode_state(make_request(config, device).model)
        changes = []
        for round_index in (0, 3):
            state = decode_state(answer(config, device, round_index=round_index).update)
            name = "layer1.0.conv1.weight"
            changes.append(float(np.abs(state[name] - base[name]).sum()))
        assert changes[1] < 0.5 * changes[0]


@pytest.mark.parametrize(
    ("stage", "answer_round", "is_training", "whole", "limited"),
    [
        (Stage.FLOAT, float_round, True, 10, 2),
        (Stage.QUANTIZED, quantized_round, True, 10, 2),
        (Stage.QUANTIZED, quantized_round, False, NUM_TRAIN, 8),
        (Stage.STATISTICS, statistics_round, True, 20, 7),
    ],
)
def test_a_pass_takes_as_many_images_as_fit(
    stage: Stage, answer_round: Any, is_training: bool, whole: int, limited: int, device: Device
) -> None:
    """A batch of ten in training, or the least of two where memory is used up; all images at once
    for scores, or the least of eight; twenty for statistics, or three parts of at most eight."""
    config = make_config(
        coreset__balanced=False, coreset__fraction=0.67, training__batch_norm_images=20
    )
    request = make_request(config, device, stage=stage)
    for max_memory, largest in ((10**6, limited), (0, whole)):
        passed: list[int] = []

        def note(module: nn.Module, inputs: Any, passed: list[int] = passed) -> None:
            if module.training is is_training:
                passed.append(len(inputs[0]))

        hook = register_module_forward_pre_hook(note)
        try:
            small = replace(device, max_memory_bytes=max_memory, used_memory_bytes=10**6)
            answer_round(config, small, request, RecordDict())
        finally:
            hook.remove()
        assert max(passed) == largest


def test_a_payload_of_another_architecture_is_refused(device: Device) -> None:
    other = make_config(model__name="resnet20")
    request = make_request(other, device)
    with pytest.raises(ValueError, match="does not fit the model"):
        quantized_round(make_config(), device, request, RecordDict())


def test_a_truncated_payload_is_refused(device: Device) -> None:
    config = make_config()
    request = make_request(config, device)
    with pytest.raises(WireError, match="checksum"):
        answer(config, device, model=request.model[:-1])
