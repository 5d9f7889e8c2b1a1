"""What a recurrent network remembers between the steps of an episode. No Ray."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from learners.rllib.greedy import GreedyPolicy

SEEN: Space[Any] = Box(-1, 1, (3,))
ACTIONS: Space[Any] = Discrete(5)


def recurrent_module(*, is_shared: bool) -> RLModule:
    torch.manual_seed(0)
    module = RLModuleSpec(
        module_class=DefaultPPOTorchRLModule,
        observation_space=SEEN,
        action_space=ACTIONS,
        inference_only=True,
        model_config=DefaultModelConfig(fcnet_hiddens=[8], use_lstm=True, lstm_cell_size=8, vf_share_layers=is_shared),
    ).build()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)  # RLlib's own are so small that all episodes are alike
    return module


def whole_episode(module: RLModule, observations_TD: np.ndarray) -> list[int]:
    """The likeliest actions, by one pass over all steps."""
    start: Any = torch.utils._pytree.tree_map(lambda tensor: torch.as_tensor(tensor)[None], module.get_initial_state())
    batch = {Columns.OBS: torch.from_numpy(observations_TD)[None], Columns.STATE_IN: start}
    logits_BTA = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    return [int(action) for action in logits_BTA[0].argmax(-1)]


@pytest.mark.parametrize("is_shared", [True, False], ids=["one encoder", "an encoder each"])
def test_each_episode_has_a_memory_of_its_own(is_shared: bool) -> None:
    module = recurrent_module(is_shared=is_shared)
    policy = GreedyPolicy(module, SEEN, ACTIONS, is_flat=False)
    episodes = np.random.default_rng(0).uniform(-1, 1, (3, 12, 3)).astype(np.float32)
    expected = [whole_episode(module, episode) for episode in episodes]
    assert len({tuple(actions) for actions in expected}) == 3  # not the same whatever is seen
    for _ in range(2):  # a second time as if there had been no first
        policy.begin(3)
        found: list[list[int]] = [[], [], []]
        for step in range(12):
            playing = [index for index in range(3) if index != 1 or step < 5]  # the second ends early
            actions = policy.act([episodes[index, step] for index in playing], playing)
            for index, action in zip(playing, actions, strict=True):
                found[index].append(int(action))
        assert found == [expected[0], expected[1][:5], expected[2]]
