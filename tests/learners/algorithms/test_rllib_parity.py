"""Our advantages and PPO loss equal RLlib's on the same numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner import Learner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets
from torch.testing import assert_close

from learners.algorithms.advantages.gae import gae
from learners.algorithms.aggregation import token_mean
from learners.algorithms.losses.ppo_clip import ppo_clip_loss


@pytest.mark.parametrize("truncated", [False, True])
def test_gae_equals_rllibs(truncated: bool) -> None:
    rng = np.random.default_rng(0)
    rewards, values = (rng.normal(size=6).astype(np.float32) for _ in range(2))
    bootstrap = 0.7 if truncated else 0.0
    # RLlib lengthens an episode by one step, which holds the value of the state after it.
    ends = np.zeros(7, dtype=np.float32)
    terminateds, truncateds = ends.copy(), ends.copy()
    (truncateds if truncated else terminateds)[5] = 1
    targets = compute_value_targets(
        values=np.append(values, np.float32(bootstrap)),
        rewards=np.append(rewards, np.float32(0)),
        terminateds=terminateds,
        truncateds=truncateds,
        gamma=0.9,
        lambda_=0.8,
    )
    advantages = gae(
        torch.from_numpy(rewards)[None],
        torch.from_numpy(values)[None],
        torch.tensor([bootstrap]),
        torch.ones(1, 6, dtype=torch.bool),
        gamma=0.9,
        gae_lambda=0.8,
    )
    assert_close(advantages + torch.from_numpy(values), torch.from_numpy(targets[:6])[None])


@pytest.fixture(scope="module")
def rllib_learner() -> Learner:
    import gymnasium

    space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    config = PPOConfig().training(clip_param=0.2, use_critic=False, use_kl_loss=False, entropy_coeff=0.0, vf_loss_coeff=0.0)
    spaces: dict[str, Any] = {DEFAULT_MODULE_ID: (space, gymnasium.spaces.Discrete(3))}
    learner = config.build_learner(spaces=spaces)
    learner.build()
    return learner


def test_ppo_loss_equals_rllibs(rllib_learner: Learner) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, old_logits = torch.randn(2, 8, 3, generator=generator)
    logits.requires_grad_()
    actions = torch.randint(0, 3, (8,), generator=generator)
    advantages = torch.randn(8, generator=generator)
    old_logprobs = torch.log_softmax(old_logits, -1).gather(1, actions[:, None]).squeeze(1)
    theirs = rllib_learner.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID,
        config=rllib_learner.config,
        batch={
            Columns.ACTIONS: actions,
            Columns.ACTION_LOGP: old_logprobs,
            Columns.ACTION_DIST_INPUTS: old_logits,
            Postprocessing.ADVANTAGES: advantages,
            Postprocessing.VALUE_TARGETS: torch.zeros(8),
        },
        fwd_out={Columns.ACTION_DIST_INPUTS: logits},
    )
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    logprobs = torch.log_softmax(logits, -1).gather(1, actions[:, None]).squeeze(1)
    ours = ppo_clip_loss(
        logprobs[None],
        old_logprobs[None],
        advantages[None],
        torch.ones(1, 8),
        token_mean(torch.ones(1, 8, dtype=torch.bool), num_tokens=8),
        clip_eps=0.2,
        clip_eps_high=0.2,
    ).loss
    (our_gradient,) = torch.autograd.grad(ours, logits)
    assert_close(ours, theirs)
    assert_close(our_gradient, their_gradient)
