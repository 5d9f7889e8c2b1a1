"""What a trained network does without exploration: observations in, actions out, for several episodes side by side."""

from collections.abc import Callable, Mapping, Sequence
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
        self._memory: Any = None  # of a recurrent module: its state as dicts of tensors, [episodes, ...]

    def begin(self, num_episodes: int) -> None:
        if self._module.is_stateful():
            start = self._module.get_initial_state()
            self._memory = _of_each(start, lambda tensor: torch.as_tensor(tensor).expand(num_episodes, *tensor.shape).clone())

    def act(self, observations: Sequence[Any], episodes: Sequence[int]) -> list[Any]:
        rows: list[Any] = [flatten(self._observation_space, each) if self._is_flat else each for each in observations]
        batch: dict[str, Any] = {Columns.OBS: torch.from_numpy(np.stack(rows).astype(np.float32))}
        with torch.no_grad():
            found = self._next(batch, list(episodes)) if self._module.is_stateful() else self._module.forward_inference(batch)
        if Columns.ACTIONS in found:
            actions = found[Columns.ACTIONS]
        else:
            distribution = self._module.get_inference_action_dist_cls().from_logits(found[Columns.ACTION_DIST_INPUTS])
            actions = distribution.to_deterministic().sample()
        chosen = list(actions.cpu().numpy())
        if isinstance(self._action_space, Box):  # networks act between -1 and 1
            return [unsquash_action(action, self._action_space) for action in chosen]
        return chosen

    def _next(self, batch: Mapping[str, Any], episodes: list[int]) -> dict[str, Any]:
        """Of a recurrent module, which reads texts of one step here and keeps in mind what came before."""
        given = {
            Columns.OBS: batch[Columns.OBS].unsqueeze(1),
            Columns.STATE_IN: _of_each(self._memory, lambda kept: kept[episodes]),
        }
        found = self._module.forward_inference(given)
        _keep(self._memory, found.pop(Columns.STATE_OUT), episodes)
        return {name: value.squeeze(1) for name, value in found.items()}


def _of_each(state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(state, Mapping):
        return {name: _of_each(value, change) for name, value in state.items()}
    return change(state)


def _keep(memory: Any, state: Any, episodes: list[int]) -> None:
    """What a module does not give back, such as that of a critic which is not asked, stays as it was."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            _keep(memory[name], value, episodes)
        else:
            memory[name][episodes] = value
