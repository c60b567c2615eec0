"""A copy of a network, as `copy.deepcopy` makes it, without its search through every attribute.

A module has a dozen attributes, most of them empty dictionaries of hooks: deepcopy spends its time
on those. An emulated device copies a model in every round.
"""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import Tensor, nn

_IMMUTABLE = (bool, int, float, str, type(None))


def copy_module(module: nn.Module) -> nn.Module:
    """An independent copy: what modules share in ``module``, they share in the copy."""
    return cast(nn.Module, _copy_module(module, {}))


def _copy_module(module: nn.Module | None, memo: dict[int, Any]) -> nn.Module | None:
    if module is None or id(module) in memo:
        return None if module is None else memo[id(module)]
    twin: nn.Module = module.__class__.__new__(module.__class__)
    memo[id(module)] = twin
    attributes = dict(vars(module))
    modules = attributes.pop("_modules")
    # Past nn.Module's __setattr__, which would look for parameters among them.
    vars(twin).update({name: _copy_value(value, memo) for name, value in attributes.items()})
    vars(twin)["_modules"] = {name: _copy_module(child, memo) for name, child in modules.items()}
    return twin


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _IMMUTABLE):
        return value
    if type(value) is tuple and all(isinstance(item, _IMMUTABLE) for item in value):
        return value
    if type(value) is dict:
        return {name: _copy_tensor(item, memo) for name, item in value.items()}
    if isinstance(value, dict | set) and not value:
        return type(value)()
    return copy.deepcopy(value, memo)


def _copy_tensor(value: Any, memo: dict[int, Any]) -> Any:
    """A parameter (without its gradient, as by deepcopy), a buffer, or what else there is."""
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is nn.Parameter:
        twin: Any = nn.Parameter(value.detach().clone(), value.requires_grad)
    elif type(value) is Tensor and not value.requires_grad:
        twin = value.clone()
    else:
        return copy.deepcopy(value, memo)
    memo[id(value)] = twin
    return twin
