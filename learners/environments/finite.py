"""A Gymnasium environment with finitely many states and actions, made from its id."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, Space, Tuple

from cluster.errors import ConfigError
from learners.environments.making import make_environment
from learners.settings.environments.task import GymnasiumTaskConfig

MAX_TABLE_ENTRIES = 10**8


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Produced by `build_environment`, consumed by learners and evaluations. States and actions count from 0."""

    env: gymnasium.Env[Any, Any]
    num_states: int
    num_actions: int
    state_of: Callable[[Any], int]  # of an observation
    first_action: int  # what the environment calls action 0
    is_wrapped: bool  # its states, actions and rewards may not be those of the environment itself

    def reset(self, seed: int) -> int:
        """Begin an episode that is a function of `seed` and the actions; returns its first state."""
        observation, _ = self.env.reset(seed=seed)
        return self.state_of(observation)

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """(next state, reward, whether it is terminal, whether a time limit cuts the episode)."""
        observation, reward, is_terminal, is_cut, _ = self.env.step(self.first_action + action)
        return self.state_of(observation), float(reward), bool(is_terminal), bool(is_cut)


def build_environment(task: GymnasiumTaskConfig, *, render_mode: str | None = None) -> Environment:
    """Raises `ConfigError` for an id or options that Gymnasium refuses, and for spaces that are not finite."""
    env = make_environment(task, render_mode=render_mode)
    found = _finite(env.observation_space)
    if found is None or not isinstance(env.action_space, Discrete):
        raise ConfigError(
            f"task.env={task.env}: tables need finitely many states and actions (Discrete, or a Tuple of Discrete), but it has "
            f"observations {env.observation_space} and actions {env.action_space}; use an environment such as FrozenLake-v1"
        )
    num_states, state_of = found
    num_actions = int(env.action_space.n)
    if num_states * num_actions > MAX_TABLE_ENTRIES:
        raise ConfigError(
            f"task.env={task.env}: a table of {num_states:,} states x {num_actions} actions is too large; at most "
            f"{MAX_TABLE_ENTRIES:,} entries"
        )
    return Environment(
        env=env,
        num_states=num_states,
        num_actions=num_actions,
        state_of=state_of,
        first_action=int(env.action_space.start),
        is_wrapped=bool(task.wrappers),
    )


def _finite(space: Space[Any]) -> tuple[int, Callable[[Any], int]] | None:
    """Number of observations, and the number of each; None where they are not finite."""
    if isinstance(space, Discrete):
        start = int(space.start)
        return int(space.n), lambda observation: int(observation) - start
    if isinstance(space, Tuple) and all(isinstance(part, Discrete) for part in space.spaces):
        sizes = tuple(int(part.n) for part in space.spaces if isinstance(part, Discrete))
        starts = [int(part.start) for part in space.spaces if isinstance(part, Discrete)]
        return int(np.prod(sizes)), lambda observation: int(np.ravel_multi_index(np.subtract(observation, starts), sizes))
    return None
