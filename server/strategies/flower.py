"""Flower's strategies by name, with their parameters, on packed quantized updates.

Server optimizers (fedavgm, fedadam, fedyogi, fedadagrad, qfedavg) act on what is learned on the
weights' scale: weights, biases, batch normalisation's affine parameters. Its running statistics
and the quantizer steps are averaged plainly, whatever the strategy: momentum would drive a
variance below zero, and Adam's step of fixed size is not a quantizer step's. All other strategies
see every entry. FedBuff is none of Flower's: server.rounds.asynchronous.
"""

from __future__ import annotations

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

from common.config import StrategyConfig
from server.requirements import ROBUST_STRATEGIES
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
