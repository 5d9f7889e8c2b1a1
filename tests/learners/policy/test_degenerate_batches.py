"""Batches at the edge: an end of sequence first, a row without any token, a group of one. Finite, and equal to values by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from cluster.processes.object_store import HeldObject
from cluster.types import ScoredBatch, ScoredGroup, sample_of
from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.gae import gae
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.aggregation import LossTokens, constant_length, sequence_mean, token_mean
from learners.algorithms.losses.ppo_clip import ppo_clip_loss
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.presets import PRESETS
from tests.records import single_turn

NAN = float("nan")
END_FIRST_AND_NOTHING = tensor([[True, False], [False, False]])  # one completion of one token; one row that is left out


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        (token_mean(END_FIRST_AND_NOTHING, num_tokens=1), 1.0),
        (sequence_mean(END_FIRST_AND_NOTHING, num_tokens=1, num_trajectories=1), 1.0),
        (constant_length(END_FIRST_AND_NOTHING, num_tokens=1, num_trajectories=1, max_tokens=4), 0.25),
    ],
)
def test_the_end_first_is_one_action_and_a_row_without_tokens_is_none(tokens: LossTokens, share: float) -> None:
    logprobs = tensor([[math.log(1.1), NAN], [NAN, NAN]], requires_grad=True)
    advantages = tensor([[2.0, NAN], [NAN, NAN]])
    zeros, ones = torch.zeros(2, 2), torch.ones(2, 2)
    loss = ppo_clip_loss(logprobs, zeros, advantages, ones, tokens, clip_eps=0.2, clip_eps_high=0.2).loss
    loss.backward()
    assert_close(loss, tensor(-2.2 * share))  # -1.1 * 2, of one token
    assert_close(logprobs.grad, tensor([[-2.2 * share, 0.0], [0.0, 0.0]]))


def test_the_end_first_gets_the_whole_reward() -> None:
    rewards, values = tensor([[3.0, NAN], [NAN, NAN]]), tensor([[0.5, NAN], [NAN, NAN]])
    advantages = gae(rewards, values, torch.zeros(2), END_FIRST_AND_NOTHING, gamma=1.0, gae_lambda=0.95)
    assert_close(advantages, tensor([[2.5, 0.0], [0.0, 0.0]]))  # 3 - .5, nothing after it


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_group_of_one_has_nothing_to_compare_with(estimator: Callable[..., torch.Tensor]) -> None:
    """The others are two, with 1 and 3 around a mean of 2."""
    advantages = estimator(tensor([7.0, 1.0, 3.0]), tensor([0, 1, 1]))
    assert advantages[0] == 0
    assert advantages[1] == -advantages[2] != 0


@pytest.mark.parametrize("algorithm", PRESETS)
def test_every_method_takes_a_step_on_completions_of_one_token(
    tiny_model: str,
    ppo_config: Callable[..., PolicyLearnerConfig],
    scored_batch: Callable[..., ScoredBatch],
    tmp_path: Path,
    algorithm: str,
) -> None:
    config = ppo_config(algorithm=algorithm, minibatch_size=8)
    start = StartingPoint(model_path=tiny_model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    learner = PolicyLearner(start, config)
    metrics = learner.update(_ends_first(scored_batch(group_size=2))).metrics
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert metrics["optim/grad_norm"] > 0
    assert learner.policy_version >= 1


def _ends_first(batch: ScoredBatch) -> ScoredBatch:
    """The same scores, each completion cut to its first token, which ends it."""

    def cut(scored: ScoredGroup) -> ScoredGroup:
        prompts = [tokens.segments[0].token_ids[~tokens.segments[0].action_mask] for tokens in scored.group.tokens.fetch()]
        ended = tuple(single_turn(prompt.tolist(), (0,), logprobs=(-5.5,)) for prompt in prompts)
        samples = tuple(sample_of(old.sample_index, new, "stop") for old, new in zip(scored.group.samples, ended, strict=True))
        return replace(scored, group=replace(scored.group, samples=samples, tokens=HeldObject(ended)))

    return replace(batch, groups=tuple(cut(scored) for scored in batch.groups))
