"""Flower's strategies by name, with their parameters, on packed quantized updates.

Server optimizers (fedavgm, fedadam, fedyogi, fedadagrad, qfedavg) act on what is learned on the
weights' scale: weights, biases, batch normalisation's affine parameters. Its running statistics
and the quantizer steps are averaged plainly, whatever the strategy: momentum would drive a
variance below zero, and Adam's step of fixed size is not a quantizer step's. All other strategies
see every entry. FedBuff is none of Flower's: server.rounds.asynchronous.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from common.config import Config, StrategyConfig
from common.errors import UserError
from server.strategies.packed_updates import TRAIN_LOSS, PackedUpdates
from server.strategies.stage_plan import StagePlan


class FedAvgMOnSentModels(FedAvgM):
    """FedAvgM whose step starts from what devices were sent, as those of Flower's FedAdam do.

    Flower's own goes on from its last result: what rounding that on the way down takes away would
    count as a change that devices made, and stay in the momentum.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)


STRATEGIES: Mapping[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgMOnSentModels,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
    "multikrum": MultiKrum,
    "bulyan": Bulyan,
    "qfedavg": QFedAvg,
}

SERVER_OPTIMIZERS = frozenset({"fedavgm", "fedadam", "fedyogi", "fedadagrad", "qfedavg"})
"""Strategies that take a step of their own instead of an average."""


ROBUST_STRATEGIES = frozenset({"fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"})
"""Strategies that bear some hostile devices."""


def averaging(config: StrategyConfig) -> StrategyConfig:
    """The strategy of the stages before quantization-aware training.

    Robust strategies protect them as well; server optimizers are for the training proper, in
    their place stands a plain average.
    """
    return config if config.name in ROBUST_STRATEGIES else StrategyConfig(name="fedavg")


def make_strategy(
    config: StrategyConfig, plan: StagePlan, *, learning_rate: float = 0.01
) -> PackedUpdates:
    """The named strategy of Flower, on packed updates.

    Args:
        config: name and parameters; those of other strategies are ignored.
        plan: the stage that it is for.
        learning_rate: the devices', which qfedavg estimates a Lipschitz constant from.
    """
    base = STRATEGIES[config.name]
    packed = type(f"Packed{base.__name__}", (PackedUpdates, base), {})
    parameters = strategy_parameters(config, learning_rate=learning_rate)
    strategy = packed(plan=plan, learned_only=config.name in SERVER_OPTIMIZERS, **parameters)
    assert isinstance(strategy, PackedUpdates)
    return strategy


def strategy_parameters(config: StrategyConfig, *, learning_rate: float) -> dict[str, float | str]:
    """The named strategy's own parameters, under Flower's names."""
    optimizer: dict[str, float | str] = {"eta": config.server_learning_rate, "tau": config.tau}
    moments: dict[str, float | str] = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    malicious: dict[str, float | str] = {"num_malicious_nodes": config.num_malicious}
    parameters: dict[str, dict[str, float | str]] = {
        "fedavgm": {
            "server_learning_rate": config.server_learning_rate,
            "server_momentum": config.server_momentum,
        },
        "fedprox": {"proximal_mu": config.proximal_mu},
        "fedadam": optimizer | moments,
        "fedyogi": optimizer | moments,
        "fedadagrad": optimizer,
        "fedtrimmedavg": {"beta": config.trim_fraction},
        "krum": malicious,
        "multikrum": malicious | {"num_nodes_to_select": config.num_to_select},
        "bulyan": malicious,
        "qfedavg": {
            "client_learning_rate": learning_rate,
            "q": config.fairness_q,
            "train_loss_key": TRAIN_LOSS,
        },
    }
    return parameters.get(config.name, {})


def check_mixed_bits(config: Config) -> None:
    """Refuse what makes no sense where devices train at different bit-widths.

    Raises:
        UserError: naming the settings.
    """
    mixed_bits, name = config.federation.mixed_bits, config.strategy.name
    if mixed_bits and name in ROBUST_STRATEGIES:
        raise UserError(
            f"strategy.name = {name!r}: expected none of {', '.join(sorted(ROBUST_STRATEGIES))} "
            f"with federation.mixed-bits = {mixed_bits!r} (what each bit-width has of its own is "
            f"averaged plainly: it would be open to hostile devices)"
        )
    if config.federation.bit_weighting == "error" and name == "qfedavg":
        raise UserError(
            "federation.bit-weighting = 'error': expected 'samples' with strategy.name = "
            "'qfedavg', which weighs by loss"
        )


def required_replies(config: Config) -> int:
    """Fewest good replies that make a round: federation.min-devices, or more for robust strategies.

    Krum and Multi-Krum need 2f + 3 replies to resist f hostile devices (Blanchard et al., NeurIPS
    2017), Bulyan 4f + 3 (El Mhamdi et al., ICML 2018); Multi-Krum also f more than it selects, or
    it selects hostile ones. Of fewer than 1 / beta replies a trimmed mean trims none.

    Raises:
        UserError: if there are not that many devices.
    """
    strategy, num_devices = config.strategy, config.data.num_devices
    name, hostile = strategy.name, strategy.num_malicious
    needed = 1
    because = f"strategy.num-malicious = {hostile}"
    if name in ("krum", "multikrum"):
        needed = 2 * hostile + 3
    if name == "bulyan":
        needed = 4 * hostile + 3
    if name == "multikrum" and strategy.num_to_select + hostile > needed:
        needed = strategy.num_to_select + hostile
        because += f", strategy.num-to-select = {strategy.num_to_select}"
    if name == "fedtrimmedavg" and strategy.trim_fraction > 0:
        needed = math.ceil(1 / strategy.trim_fraction)
        because = f"strategy.trim-fraction = {strategy.trim_fraction:g}"
    if needed > num_devices:
        raise UserError(
            f"{because}: {name} needs at least {needed} devices for it, data.num-devices is "
            f"{num_devices}"
        )
    return max(needed, config.federation.min_devices)
