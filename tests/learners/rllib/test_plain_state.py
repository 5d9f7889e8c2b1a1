"""RLlib's state goes to arrays and JSON and comes back, type by type; nothing else is accepted."""

import json
import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from cluster.errors import CannotResumeError
from learners.rllib.plain_state import join, split


def through_files(state: Any) -> Any:
    arrays, rest = split(state)
    return join(load(save(arrays)), json.loads(json.dumps(rest, allow_nan=False)))


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray | torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple | deque):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


@pytest.mark.parametrize(
    "state",
    [
        {"betas": (0.9, 0.999), 0: {"step": 3.0, "exp_avg": np.ones((2, 3), np.float32)}, "none": None, "amsgrad": False},
        [np.float32(0.1), np.int64(2**40), np.array(7), np.zeros((0, 4)), np.arange(6).reshape(2, 3).T],
        torch.arange(4, dtype=torch.int64),
        {"min_tree": [math.inf] * 40, "counts": list(range(40)), "big": [2**70] * 20, "mixed": [1, 2.0] * 20},
        {"indices": [(episode, step) for episode in range(9) for step in range(4)]},
        {"odd": [(1, 2.0)] * 20, "ragged": [(1,), (1, 2)] * 20},
        deque([1, "a"], maxlen=5),
        np.array([None, {"x": 1}, "text"], dtype=object),
        [math.nan, -math.inf, True, "", b"".decode()],
    ],
)
def test_a_state_comes_back_as_it_was(state: Any) -> None:
    assert same(through_files(state), state)


def test_long_lists_of_numbers_are_arrays() -> None:
    arrays, rest = split({"indices": [(i, i) for i in range(1000)], "priorities": [0.5] * 1000})
    assert [array.shape for array in arrays.values()] == [(1000, 2), (1000,)]
    assert len(json.dumps(rest)) < 200


def test_what_is_neither_array_nor_plain_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match="/learner/1: object is neither"):
        split({"learner": [1, object()]})


def test_arrays_that_are_gone_are_told() -> None:
    arrays, rest = split({"a": np.ones(3)})
    with pytest.raises(CannotResumeError, match="do not fit its JSON"):
        join({}, rest)
    with pytest.raises(CannotResumeError, match="is no type of a state"):
        join(arrays, {"pickle": "x"})
