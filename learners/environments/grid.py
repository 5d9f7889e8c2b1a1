"""A policy on the map of FrozenLake or CliffWalking. Other environments have no map that we know."""

from typing import Any

import numpy as np
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from learners.environments.finite import Environment
from learners.environments.markov_model import Array
from learners.evaluation.returns import Grid

FROZEN_LAKE_ARROWS = ("left", "down", "right", "up")  # in the order of its actions
CLIFF_WALKING_ARROWS = ("up", "right", "down", "left")
UNDECIDED = {"H", "G", "C"}  # cells in which no action is taken


def grid_of(environment: Environment, policy_SA: Array, values_S: Array) -> Grid | None:
    """None where it has no map, or where wrappers may have made other states of the map's cells."""
    env: Any = environment.env.unwrapped
    if environment.is_wrapped:
        return None
    if isinstance(env, FrozenLakeEnv):
        cells, names = [[letter.decode() for letter in row] for row in env.desc], FROZEN_LAKE_ARROWS
    elif isinstance(env, CliffWalkingEnv):
        cells, names = _cliff(*env.shape), CLIFF_WALKING_ARROWS
    else:
        return None
    shape = len(cells), len(cells[0])
    arrows = np.array(names)[policy_SA.argmax(axis=1)].reshape(shape)
    return Grid(
        cells=tuple(map(tuple, cells)),
        values=tuple(tuple(map(float, row)) for row in values_S.reshape(shape)),
        arrows=tuple(
            tuple("" if cells[row][column] in UNDECIDED else str(arrows[row, column]) for column in range(shape[1]))
            for row in range(shape[0])
        ),
    )


def _cliff(num_rows: int, num_columns: int) -> list[list[str]]:
    """The lowest row is start, cliff, goal. Sutton & Barto 2018, example 6.6."""
    return [[" "] * num_columns for _ in range(num_rows - 1)] + [["S", *["C"] * (num_columns - 2), "G"]]
