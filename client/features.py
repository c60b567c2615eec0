"""Intermediate layer outputs, captured in the forward pass that makes the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class FeatureTap:
    """While entered, keeps the outputs of the named layers of the latest forward pass.

    Without names it does nothing and costs nothing.
    """

    def __init__(self, model: nn.Module, layer_names: Sequence[str]) -> None:
        self._layers = [model.get_submodule(name) for name in layer_names]
        self._handles: list[RemovableHandle] = []
        self._outputs: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_hook(self._keeper(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def take(self) -> list[Tensor]:
        """The outputs of the latest forward pass, in the order of the names; forgets them."""
        outputs = [self._outputs[index] for index in range(len(self._layers))]
        self._outputs.clear()
        return outputs

    def _keeper(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            self._outputs[index] = output

        return hook
