"""One set of latent weights for several bit-widths: how a global state holds what they don't share.

Where devices train at different bit-widths, weights, biases, batch normalisation's affine
parameters and activation steps are shared. Each bit-width has entries of its own for the steps of
weights whose bits differ (first and last layer have the same everywhere) and for batch
normalisation's running statistics: they describe the activations that weights of these bits give,
and a mean over bit-widths fits none of them (as in Jin et al., "AdaBits", CVPR 2020, and Yu et
al., "Slimmable neural networks", ICLR 2019). ``bn1.running_mean`` of a 4-bit device's state is
``bn1.4bit.running_mean`` in the global one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from common.models import is_statistic, model_state
from common.qat import STEP_SUFFIX, quantized_layers
from server.model.aggregation import State, average_states

ONE_WIDTH = 0
"""Stands for the bit-width of a run that has one only."""

SMALLEST_ERROR = 1e-3
"""Errors below count as this: no bit-width may outweigh all others."""


@dataclass(frozen=True, kw_only=True)
class BitEntries:
    """The entries that a global state holds once for each bit-width; by default there are none."""

    bits: tuple[int, ...] = (ONE_WIDTH,)
    """The bit-widths, ascending."""
    names: tuple[str, ...] = ()
    """All entries of a device's state, in the model's order."""
    own: frozenset[str] = frozenset()
    """Those of them that every bit-width has of its own."""

    @classmethod
    def of(cls, prepared: Mapping[int, nn.Module]) -> BitEntries:
        """The entries of one architecture prepared at several bit-widths, by bit-width."""
        bits = tuple(sorted(prepared))
        layer_bits = [_layer_bits(prepared[width]) for width in bits]
        names = tuple(model_state(prepared[bits[0]]))
        steps = {
            f"{name}.weight_quantizer{STEP_SUFFIX}"
            for name in layer_bits[0]
            if len({widths[name] for widths in layer_bits}) > 1
        }
        statistics = set(filter(is_statistic, names))
        return cls(bits=bits, names=names, own=frozenset(steps | statistics))

    @property
    def is_mixed(self) -> bool:
        """Whether there are several bit-widths."""
        return len(self.bits) > 1

    def key(self, name: str, bits: int) -> str:
        """The global name of a device's entry."""
        if name not in self.own:
            return name
        module, _, entry = name.rpartition(".")
        return f"{module}.{bits}bit.{entry}"

    def view(self, state: State, bits: int) -> State:
        """What a device of a bit-width is sent of a global state."""
        if not self.is_mixed:
            return state
        return {name: state[self.key(name, bits)] for name in self.names}

    def merge(self, states: Mapping[int, State]) -> State:
        """A global state of one state per bit-width; what they share is the first one's."""
        merged: State = {}
        for name in next(iter(states.values())):
            for bits in self.bits:
                merged.setdefault(self.key(name, bits), states[bits][name])
        return merged

    def average(
        self, states: Iterable[State], weights: Iterable[float], device_bits: Iterable[int]
    ) -> State:
        """Global entries from devices' states: own ones averaged over their bit-width's devices.

        A bit-width without devices has no entries of its own in the result.

        Args:
            states: of one device each, with the same entries.
            weights: of the same devices.
            device_bits: of the same devices.
        """
        rows = list(zip(states, weights, device_bits, strict=True))
        shared = [{n: s[n] for n in s if n not in self.own} for s, _, _ in rows]
        result = average_states(shared, [weight for _, weight, _ in rows])
        for bits in self.bits if self.is_mixed else ():
            mine = [row for row in rows if row[2] == bits]
            if mine:
                own = [{self.key(n, bits): s[n] for n in s if n in self.own} for s, _, _ in mine]
                result |= average_states(own, [weight for _, weight, _ in mine])
        return result


def relative_error(latent: State, deployed: State) -> float:
    """The relative quantization error ||w_q - w|| / ||w|| of a model's quantized weights.

    Args:
        latent: name -> weights; may hold other entries.
        deployed: name -> the quantized ones among them as deployed, step * code.
    """
    error = math.fsum(float(((deployed[n] - latent[n]) ** 2).sum()) for n in deployed)
    norm = math.fsum(float((latent[n] ** 2).sum()) for n in deployed)
    return max(SMALLEST_ERROR, math.sqrt(error / norm)) if norm > 0 else 1.0


def _layer_bits(prepared: nn.Module) -> dict[str, int]:
    return {
        name: layer.weight_quantizer.bits
        for name, layer in quantized_layers(prepared)
        if layer.weight_quantizer is not None
    }
