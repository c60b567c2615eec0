"""What a strategy remembers between rounds, as JSON and arrays.

Flower's strategies keep momentum, moments and the last global state in attributes of their own
choice. All attributes are taken that are plain values, arrays or containers of them; functions
come from the settings again. Nothing is pickled: reading runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def strategy_state(strategy: object, leave_out: frozenset[str]) -> tuple[dict[str, Any], Arrays]:
    """The attributes of a strategy, and the arrays that they refer to by name.

    Args:
        strategy: any object.
        leave_out: names of attributes that the settings or the next round set again.

    Raises:
        TypeError: naming an attribute of a type that cannot be kept.
    """
    arrays: Arrays = {}
    attributes = {
        name: _encode(value, name, arrays)
        for name, value in vars(strategy).items()
        if name not in leave_out and not callable(value)
    }
    return attributes, arrays


def restore_strategy(
    strategy: object, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Set the attributes that `strategy_state` took of a strategy of the same kind.

    Raises:
        ValueError: naming an attribute that this strategy does not have, or that is malformed.
    """
    for name, encoded in attributes.items():
        if name not in vars(strategy):
            raise ValueError(f"{type(strategy).__name__} has no attribute {name!r}")
        try:
            setattr(strategy, name, _decode(encoded, arrays))
        except (KeyError, TypeError) as error:
            raise ValueError(f"attribute {name!r} is malformed: {error!r}") from error


def _encode(value: Any, path: str, arrays: Arrays) -> dict[str, Any]:
    if value is None or type(value) in _PLAIN:  # numpy's float64 is a float, and none of these
        return {"value": value}
    if isinstance(value, np.ndarray | np.generic):
        arrays[path] = np.asarray(value)
        return {"array" if isinstance(value, np.ndarray) else "scalar": path}
    if isinstance(value, bytes):
        arrays[path] = np.frombuffer(value, np.uint8)
        return {"bytes": path}
    if isinstance(value, ArrayRecord):
        content = {name: array.numpy() for name, array in value.items()}
        return {"record": _encode(content, path, arrays)["dict"]}
    if isinstance(value, dict):
        return {"dict": {str(k): _encode(v, f"{path}/{k}", arrays) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}/{index}", arrays) for index, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise TypeError(f"attribute {path!r}: a {type(value).__name__} cannot be kept")


_PLAIN = (bool, int, float, str)


def _decode(encoded: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any:
    ((kind, content),) = encoded.items()
    match kind:
        case "value":
            return content
        case "array":
            return arrays[content]
        case "scalar":
            return arrays[content][()]
        case "bytes":
            return arrays[content].tobytes()
        case "record":
            return ArrayRecord({k: Array(_decode(v, arrays)) for k, v in content.items()})
        case "dict":
            return {key: _decode(item, arrays) for key, item in content.items()}
        case "list":
            return [_decode(item, arrays) for item in content]
        case "tuple":
            return tuple(_decode(item, arrays) for item in content)
    raise KeyError(kind)
