"""The Gaussian mechanism by hand, its epsilon against closed forms, and a private federation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from common.config import Config, StrategyConfig
from common.errors import UserError
from common.messages import Reply, Stage, Status
from common.payloads.updates import encode_float
from server.app import run_federation
from server.exchange.registry import RegisteredDevice
from server.model.forms import to_record, to_state
from server.strategies.flower import make_strategy
from server.strategies.packed_updates import PackedUpdates
from server.strategies.privacy import GaussianMechanism, noise_generator, sampling_seed
from server.strategies.privacy_accountant import PrivacyAccountant
from tests.records import recorded
from tests.unit.fake_grid import FakeGrid
from tests.unit.test_server_app import SilentReporter, answer
from tests.unit.test_strategies_flower import STEP, VARIANCE, WEIGHT, State, plan, state, view_of

CENTRAL: dict[str, Any] = {"privacy.mechanism": "central"}
STATELESS: dict[str, Any] = {
    **CENTRAL,
    "federation.fraction": 0.1,
    "federation.error-feedback": False,
    "coreset.selection": "full",
}
"""A tenth of the devices is drawn, and they keep nothing."""


def clip_to(norm: float, noise: float = 0.0) -> GaussianMechanism:
    return GaussianMechanism(clipping_norm=norm, noise_multiplier=noise)


def device(partition_id: int, *, emulated: bool) -> RegisteredDevice:
    return RegisteredDevice(
        partition_id=partition_id, node_id=partition_id, num_samples=10, emulated=emulated
    )


def test_clips_the_whole_change_and_divides_by_all_that_were_asked() -> None:
    """Changes (3, 4) over two entries, of norm 5, and (0, 1); C = 2.5, three devices asked.

    The first is halved to (1.5, 2), the second stays: the mean change is (1.5, 3) / 3 = (0.5, 1).
    """
    base = {"a": np.array([1.0], np.float32), "b": np.array(2.0, np.float32)}
    states = [
        {"a": np.array([4.0], np.float32), "b": np.array(6.0, np.float32)},
        {"a": np.array([1.0], np.float32), "b": np.array(3.0, np.float32)},
    ]
    result = clip_to(2.5).release(base, states, num_asked=3, generator=np.random.default_rng(0))
    assert result["a"].tolist() == [1.5]
    assert result["b"].tolist() == 3.0
    assert result["b"].shape == ()
    assert {values.dtype for values in result.values()} == {np.dtype(np.float32)}


def test_devices_that_did_not_change_anything_or_did_not_answer_leave_the_base() -> None:
    base = {"a": np.array([1.0, 2.0], np.float32)}
    for states in ([], [base]):
        result = clip_to(1.0).release(base, states, num_asked=1, generator=np.random.default_rng(0))
        assert result["a"].tolist() == [1.0, 2.0]


def test_the_noise_has_its_scale() -> None:
    """z = 2, C = 3, m = 10: standard deviation 0.6; of 200,000 draws its estimate has an error of
    0.6 / sqrt(400,000) = 0.00095, the mean's is 0.0013: five of each are allowed.
    """
    base = {"a": np.zeros(200_000, np.float32)}
    noise = clip_to(3.0, 2.0).release(
        base, [base], num_asked=10, generator=np.random.default_rng(1)
    )["a"]
    assert abs(noise.std() - 0.6) < 0.005
    assert abs(noise.mean()) < 0.007


def test_one_device_moves_the_release_by_no_more_than_its_share() -> None:
    """The sensitivity: whatever one of three sends in place of another, 2 C / m apart at most."""
    generator = np.random.default_rng(2)
    base = {"a": np.zeros(50, np.float32), "b": np.ones((3, 4), np.float32)}

    def random_state(scale: float) -> State:
        return {
            name: (values + scale * generator.standard_normal(values.shape)).astype(np.float32)
            for name, values in base.items()
        }

    others = [random_state(1.0), random_state(100.0)]
    releases = [
        clip_to(0.7, 1.0).release(
            base, [*others, one], num_asked=3, generator=np.random.default_rng(3)
        )
        for one in (random_state(1e-3), random_state(1.0), random_state(1e6))
    ]
    flat = [np.concatenate([values.ravel() for values in one.values()]) for one in releases]
    for one in flat:
        for other in flat:
            assert np.linalg.norm(one - other) <= 2 * 0.7 / 3 + 1e-5


def test_noise_is_secret_where_devices_are_real() -> None:
    """Devices know the seed: with one real device among them, two draws from it differ."""
    emulated = [device(0, emulated=True), device(1, emulated=True)]
    mixed = [*emulated, device(2, emulated=False)]

    def draw(devices: list[RegisteredDevice], round_index: int = 0) -> float:
        return float(noise_generator(0, Stage.QUANTIZED, round_index, devices).normal())

    assert draw(emulated) == draw(emulated)
    assert draw(emulated) != draw(emulated, 1)
    assert draw(mixed) != draw(mixed)
    private, public = Config.from_flat(CENTRAL), Config()
    assert sampling_seed(private, emulated) == private.run.seed
    assert sampling_seed(public, mixed) == public.run.seed
    assert sampling_seed(private, mixed) != sampling_seed(private, mixed)


def private_round(name: str, states: list[State], **replies: Any) -> tuple[PackedUpdates, Any]:
    """A round of three devices with C = 1 and no noise; all send other numbers of images."""
    strategy = make_strategy(
        StrategyConfig(name=name, server_learning_rate=1.0, server_momentum=0.0),
        plan(mechanism=clip_to(1.0), min_replies=3),
    )
    start = state(0.0, 1.0, 0.5)
    messages = list(
        strategy.configure_train(1, to_record(start), ConfigRecord(), view_of(len(states)))
    )
    answers = []
    for index, one in enumerate(states):
        reply = Reply(
            partition_id=index,
            round_index=0,
            update=encode_float(one, "float32", {}),
            metrics={"num-examples": 10 + 500 * index, "train-loss": 1.0},
        )
        if index in replies.get("diverged", ()):
            reply = Reply(partition_id=index, round_index=0, status=Status.DIVERGED)
        answers.append(Message(reply.to_record(), reply_to=messages[index]))
    for index in replies.get("silent", ()):
        del answers[index]
    aggregated, _ = strategy.aggregate_train(1, answers)
    return strategy, None if aggregated is None else to_state(aggregated)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm"])
def test_strategies_get_the_clipped_mean_and_images_do_not_weigh(name: str) -> None:
    """Weights move by (3, 4) / 5 = (0.6, 0.8) once clipped, by (0, 0) and by (0, 0): mean a third.

    Statistics and steps did not move.
    """
    start = state(0.0, 1.0, 0.5)
    moved = {**start, WEIGHT: np.array([3.0, 4.0], np.float32)}
    _, result = private_round(name, [moved, start, start])
    np.testing.assert_allclose(result[WEIGHT], [0.2, 0.8 / 3], rtol=1e-5)
    np.testing.assert_allclose(result[VARIANCE], [1.0, 1.0])
    np.testing.assert_allclose(result[STEP], 0.5)


def test_statistics_and_steps_are_clipped_as_well() -> None:
    """A variance moved by 10 and a step of 0.5 by 1, twice its size: the norm is sqrt(104).

    Scaled to 1, the step moves by 0.5 * 2 / sqrt(104).
    """
    start = state(0.0, 1.0, 0.5)
    moved = {
        **start,
        VARIANCE: np.array([11.0, 1.0], np.float32),
        STEP: np.array(1.5, np.float32),
    }
    _, result = private_round("fedavg", [moved, start, start])
    share = 1 / math.sqrt(104) / 3
    np.testing.assert_allclose(result[VARIANCE], [1 + 10 * share, 1.0], rtol=1e-6)
    np.testing.assert_allclose(result[STEP], 0.5 + share, rtol=1e-6)


def test_what_is_wrong_with_a_reply_does_not_show() -> None:
    """Of three, one diverged: the round counts, with a zero in its place.

    One that says nothing is missing: too few, nothing is released.
    """
    start = state(0.0, 1.0, 0.5)
    moved = {**start, WEIGHT: np.array([0.3, 0.0], np.float32)}
    strategy, result = private_round("fedavg", [moved, start, start], diverged=[2])
    np.testing.assert_allclose(result[WEIGHT], [0.1, 0.0], rtol=1e-5)
    assert [refusal.partition_id for refusal in strategy.judgement.refused] == [2]
    assert private_round("fedavg", [moved, start, start], silent=[2])[1] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy.name": "krum"}, r"strategy.name = 'krum': expected one of fedavg, fedprox"),
        ({"strategy.name": "qfedavg"}, r"strategy.name = 'qfedavg'"),
        ({"federation.update-format": "codes"}, r"update-format = 'codes': expected 'delta'"),
        ({"federation.mixed-bits": "2,4"}, r"federation.mixed-bits = '2,4': expected none with"),
        ({"training.batch-norm-images": 8}, r"batch-norm-images = 8: expected 0 with privacy"),
        ({"fleet.over-selection": 1.5}, r"fleet.over-selection = 1.5: expected 1 with"),
        ({"privacy.clipping-norm": 0.0}, r"privacy.clipping-norm = 0.0: expected float, > 0"),
    ],
)
def test_what_privacy_does_not_go_with(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.from_flat({**CENTRAL, **settings})


def exact_delta(epsilon: float, sigma: float) -> float:
    """Delta of one Gaussian release with noise of sigma sensitivities (Balle and Wang, 2018)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    half = 1 / (2 * sigma)
    return phi(half - epsilon * sigma) - math.exp(epsilon) * phi(-half - epsilon * sigma)


@pytest.mark.parametrize(("noise", "num_rounds"), [(2.0, 1), (8.0, 16), (4.0, 2)])
def test_epsilon_lies_between_the_exact_one_and_that_of_zcdp(noise: float, num_rounds: int) -> None:
    """T releases are one of sigma = z / (2 sqrt(T)): 1, 1 and 1.414.

    Exact for sigma 1 and delta 1e-5: 4.377 (Balle and Wang). By zCDP (Bun and Steinke, 2016):
    rho + 2 sqrt(rho ln(1 / delta)), rho = 1 / (2 sigma^2): 5.30. Renyi accounting is between them.
    """
    pytest.importorskip("dp_accounting")
    accountant = PrivacyAccountant(
        Config.from_flat({**CENTRAL, "privacy.noise-multiplier": noise, "privacy.delta": 1e-5})
    )
    assert accountant.epsilon == 0.0
    for _ in range(num_rounds):
        accountant.spend(num_asked=10, num_devices=10)
    sigma = noise / (2 * math.sqrt(num_rounds))
    rho = 1 / (2 * sigma**2)
    assert exact_delta(accountant.epsilon, sigma) <= 1e-5
    assert accountant.epsilon <= rho + 2 * math.sqrt(rho * math.log(1e5))
    if sigma == 1.0:
        assert exact_delta(4.377, sigma) == pytest.approx(1e-5, rel=0.01)
        assert 4.377 <= accountant.epsilon <= 5.30


def test_sampling_counts_only_where_devices_keep_nothing() -> None:
    """A coreset, what rounding lost, teacher outputs on views, a pace: any of these is kept.

    Nor does it count where all that are there are drawn.
    """
    pytest.importorskip("dp_accounting")
    rounds_nothing = {"federation.error-feedback": True, "federation.update-format": "float32"}
    unamplified: list[dict[str, Any]] = [
        {"coreset.selection": "random"},
        {"federation.error-feedback": True},
        {"training.teacher-views": 1},
        {"training.partial-work": True},
        {"federation.fraction": 1.0},
    ]

    def epsilon(settings: dict[str, Any], *, is_amplified: bool, num_devices: int = 100) -> float:
        accountant = PrivacyAccountant(Config.from_flat({**STATELESS, **settings}))
        accountant.spend(num_asked=10, num_devices=num_devices)
        assert accountant.summary()["amplified_by_sampling"] is is_amplified
        return accountant.epsilon

    amplified = {epsilon(settings, is_amplified=True) for settings in ({}, rounds_nothing)}
    full = {epsilon(settings, is_amplified=False) for settings in unamplified}
    full.add(epsilon({}, is_amplified=True, num_devices=10))
    assert len(amplified) == len(full) == 1
    assert amplified.pop() < full.pop()


def test_an_earlier_part_of_a_run_counts_and_skipped_rounds_do_not() -> None:
    pytest.importorskip("dp_accounting")
    config = Config.from_flat(STATELESS)
    whole, first, second = (PrivacyAccountant(config) for _ in range(3))
    lines: list[dict[str, Any]] = [
        {"skipped": skipped, "num_asked": 3} for skipped in (False, True, False)
    ]
    for line in lines:
        line |= first.record(line, num_devices=30)
    assert lines[0]["epsilon"] == lines[1]["epsilon"] < lines[2]["epsilon"]
    second.replay(lines)
    for _ in range(2):
        whole.spend(num_asked=3, num_devices=30)
    assert first.epsilon == second.epsilon == whole.epsilon
    assert second.num_releases == 2


def test_without_noise_nothing_is_private() -> None:
    accountant = PrivacyAccountant(Config.from_flat({**CENTRAL, "privacy.noise-multiplier": 0.0}))
    accountant.spend(num_asked=3, num_devices=3)
    assert accountant.epsilon == math.inf


def test_a_federation_says_what_it_spent(tmp_path: Path) -> None:
    """Two warm-up and two quantized rounds are four releases; the account is the accountant's."""
    pytest.importorskip("sklearn")
    pytest.importorskip("dp_accounting")
    config = Config.from_flat(
        {
            **CENTRAL,
            "data.num-devices": 3,
            "warmup.num-rounds": 2,
            "federation.num-rounds": 2,
            "evaluation.device-interval": 0,
            "evaluation.threads": 1,
        }
    )
    summary = run_federation(FakeGrid(answer), config, SilentReporter(), tmp_path / "run")
    accountant = PrivacyAccountant(config)
    for _ in range(4):
        accountant.spend(num_asked=3, num_devices=3)
    assert summary["privacy"] == accountant.summary()
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["privacy"]["epsilon"] == accountant.epsilon
    epsilons = [line["epsilon"] for line in recorded(tmp_path / "run", "round")]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == accountant.epsilon
