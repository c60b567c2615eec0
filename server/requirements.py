"""What a run's settings have to be, beyond what each says for itself.

Apart from the rest of the server, whose imports take seconds: bad settings are refused at once.
"""

from __future__ import annotations

import math

from common.config import Config
from common.errors import UserError

ROBUST_STRATEGIES = frozenset({"fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"})
"""Strategies that bear some hostile devices."""


def check_deployable(config: Config) -> None:
    """Refuse settings that no run with real devices can have, wherever it runs.

    Raises:
        UserError: naming the settings.
    """
    refuse_attack(config)
    refuse_emulation(config)
    check_mixed_bits(config)
    required_replies(config)


def refuse_attack(config: Config) -> None:
    """Refuse an attack where devices run the ClientApp of the project, which is honest."""
    if config.attack.name != "none":
        raise UserError(
            f"attack.name = {config.attack.name!r}: expected 'none' (hostile devices are emulated "
            f"by python -m simulations run, on its local engine)"
        )


def refuse_emulation(config: Config) -> None:
    """Refuse what only a harness does, where there is none."""
    fleet = config.fleet
    if fleet.name:
        raise UserError(
            f"fleet.name = {fleet.name!r}: expected none (hardware is emulated by python -m "
            f"simulations run, on its local engine)"
        )
    if fleet.over_selection > 1:
        raise UserError(
            f"fleet.over-selection = {fleet.over_selection:g}: expected 1 without fleet.name "
            f"(nothing would spare the devices that come last)"
        )
    if fleet.deadline and not config.is_paced:
        raise UserError(
            f"fleet.deadline = {fleet.deadline:g}: expected 0 without fleet.name, unless devices "
            f"keep to it by coreset.adaptive or training.partial-work (a round waits for "
            f"federation.round-timeout)"
        )


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
