"""Any state of RLlib as arrays and JSON, so that no checkpoint holds a pickle; and back, type by type.

An array becomes `{"array": its name}` in the JSON. So do lists of numbers and of equally long tuples of them, of which a replay
buffer has tens of thousands. What JSON has no word for becomes an object with one key that names the type.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cluster.errors import CannotResumeError

MIN_PACKED = 16  # shorter lists stay readable
KINDS = "biuf"  # of numpy's types: what safetensors holds


def split(state: Any) -> tuple[dict[str, np.ndarray], Any]:
    """(arrays by name, the rest as JSON values). Raises `TypeError` for what is neither."""
    arrays: dict[str, np.ndarray] = {}
    return arrays, _split(state, "", arrays)


def join(arrays: Mapping[str, np.ndarray], rest: Any) -> Any:
    """What `split` was given. Raises `CannotResumeError` where the two do not belong together."""
    try:
        return _join(arrays, rest)
    except (KeyError, ValueError, TypeError) as error:
        raise CannotResumeError(f"the checkpoint's arrays do not fit its JSON: {error}; resume with --fresh") from error


def _split(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    match value:
        case torch.Tensor():
            return {"tensor": _kept(value.detach().cpu().numpy(), path, arrays)}
        case np.ndarray() if value.dtype.kind in KINDS:
            return {"array": _kept(value, path, arrays)}
        case np.ndarray():
            return {"objects": _split(value.tolist(), path, arrays)}
        case np.generic():
            return {"scalar": [value.dtype.str, _split(value.item(), path, arrays)]}
        case Mapping():
            pairs = [[_split(key, path, arrays), _split(item, f"{path}/{key}", arrays)] for key, item in value.items()]
            return {"dict": pairs}
        case tuple():
            return {"tuple": [_split(item, f"{path}/{index}", arrays) for index, item in enumerate(value)]}
        case deque():
            return {"deque": [value.maxlen, _split(list(value), path, arrays)]}
        case list():
            return _split_list(value, path, arrays)
        case float() if not math.isfinite(value):
            return {"float": repr(value)}
        case str() | bool() | int() | float() | None:
            return value
    raise TypeError(f"{path}: {type(value).__name__} is neither an array nor plain: {value!r}")


def _split_list(value: list[Any], path: str, arrays: dict[str, np.ndarray]) -> Any:
    if len(value) >= MIN_PACKED:
        types = {type(item) for item in value}
        if types in ({int}, {float}) and _fits(value):
            return {"list": _kept(np.array(value), path, arrays)}
        if (
            types == {tuple}
            and {type(part) for item in value for part in item} == {int}
            and len({len(item) for item in value}) == 1
        ):
            return {"tuples": _kept(np.array(value, dtype=np.int64), path, arrays)}
    return [_split(item, f"{path}/{index}", arrays) for index, item in enumerate(value)]


def _fits(numbers: Sequence[int | float]) -> bool:
    return isinstance(numbers[0], float) or max(map(abs, numbers)) < 2**62


def _kept(array: np.ndarray, path: str, arrays: dict[str, np.ndarray]) -> str:
    name = f"{len(arrays)}{path}"
    arrays[name] = np.array(array, order="C")
    return name


def _join(arrays: Mapping[str, np.ndarray], rest: Any) -> Any:
    if isinstance(rest, list):
        return [_join(arrays, item) for item in rest]
    if not isinstance(rest, dict):
        return rest
    [(kind, content)] = rest.items()
    match kind:
        case "tensor":
            return torch.from_numpy(arrays[content].copy())
        case "array":
            return arrays[content]
        case "list":
            return arrays[content].tolist()
        case "tuples":
            return [tuple(row) for row in arrays[content].tolist()]
        case "objects":
            return _objects(_join(arrays, content))
        case "scalar":
            return np.dtype(content[0]).type(_join(arrays, content[1]))
        case "dict":
            return {_join(arrays, key): _join(arrays, item) for key, item in content}
        case "tuple":
            return tuple(_join(arrays, item) for item in content)
        case "deque":
            return deque(_join(arrays, content[1]), maxlen=content[0])
        case "float":
            return float(content)
    raise ValueError(f"{kind!r} is no type of a state")


def _objects(items: list[Any]) -> np.ndarray:
    """An array of one dimension, whatever lies in it."""
    found = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        found[index] = item
    return found
