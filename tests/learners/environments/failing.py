"""An environment with mistakes of its author in it, registered as failing:Mistaken-v0."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Mistaken(gymnasium.Env[Any, Any]):
    """One number to see, two actions; the reward is the action. It raises when it has made so many steps, or at a reset."""

    def __init__(self, *, fails_at_step: int = -1, fails_at_reset: bool = False, num_states: int = 0) -> None:
        self.observation_space = Discrete(num_states) if num_states else Box(-1, 1, (1,))
        self.action_space = Discrete(2)
        self._fails_at_step, self._fails_at_reset = fails_at_step, fails_at_reset
        self._num_steps = self._at = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._fails_at_reset:
            raise KeyError("no map")
        self._at = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._num_steps += 1
        self._at += 1
        if self._num_steps == self._fails_at_step:
            raise ZeroDivisionError("the wind\nhas no speed.")
        return self._seen(), float(action), self._at == 5, False, {}

    def _seen(self) -> Any:
        return 0 if isinstance(self.observation_space, Discrete) else np.zeros(1, np.float32)


class Cheaper(gymnasium.RewardWrapper[Any, Any]):
    """A wrapper of a user."""

    def __init__(self, env: gymnasium.Env[Any, Any], price: float) -> None:
        super().__init__(env)
        self._price = price

    def reward(self, reward: Any) -> float:
        return float(reward) - self._price


gymnasium.register("Mistaken-v0", entry_point=f"{__name__}:Mistaken")
