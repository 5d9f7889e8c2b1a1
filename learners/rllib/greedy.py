"""What a trained network does without exploration: observations in, actions out, for several episodes side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from gymnasium.spaces.utils import flatten
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.spaces.space_utils import unsquash_action


class GreedyPolicy:
    """Of an RLlib module. Consumed by `learners.environments.rollouts`."""

    def __init__(self, module: RLModule, observation_space: Space[Any], action_space: Space[Any], *, is_flat: bool) -> None:
        """`is_flat`: the module takes observations as vectors of numbers, which these are not."""
        self._module = module
        self._observation_space = observation_space
        self._action_space = action_space
        self._is_flat = is_flat

    def act(self, observations: Sequence[Any]) -> list[Any]:
        """One action for each."""
        rows: list[Any] = [flatten(self._observation_space, each) if self._is_flat else each for each in observations]
        batch = {Columns.OBS: torch.from_numpy(np.stack(rows).astype(np.float32))}
        with torch.no_grad():
            found = self._module.forward_inference(batch)
        if Columns.ACTIONS in found:
            actions = found[Columns.ACTIONS]
        else:
            distribution = self._module.get_inference_action_dist_cls().from_logits(found[Columns.ACTION_DIST_INPUTS])
            actions = distribution.to_deterministic().sample()
        chosen = list(actions.cpu().numpy())
        if isinstance(self._action_space, Box):  # networks act between -1 and 1
            return [unsquash_action(action, self._action_space) for action in chosen]
        return chosen
