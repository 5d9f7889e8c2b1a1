"""Presets end to end: from scores to advantages, with numbers worked out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from learners.algorithms.reward_shaping import RunningMoments
from learners.network.micro_batch import TokenBatch, TokenRows
from learners.policy.batch import TrainingBatch
from learners.policy.preparation import FrozenPass, judged_totals, prepare, shaped_scores, shaped_step_scores
from learners.policy.state import LearnerState
from learners.settings.policy import PolicyLearnerConfig

# Two groups of two completions, of 2, 1, 1 and 2 tokens; the last was cut.
MASK = tensor([[True, True], [True, False], [True, False], [True, True]])
SCORES = tensor([1.0, 3.0, 2.0, 6.0])
GROUPS = tensor([0, 0, 1, 1])


def _batch(**fields: Tensor) -> TrainingBatch:
    tokens = TokenBatch(rows=TokenRows([]), segment_lengths=((3,), (2,), (2,), (3,)), mask_BT=MASK)
    values = {
        "scores_B": SCORES,
        "step_scores_BT": torch.zeros(4, 2),
        "greedy_scores_B": tensor([2.0, 2.0, 5.0, 5.0]),
        "group_B": GROUPS,
        "ends_truncated_B": tensor([False, False, False, True]),
    }
    return TrainingBatch(tokens=tokens, **(values | fields))


def _frozen(*, kl_per_token: float = 0.0) -> FrozenPass:
    logprobs = torch.where(MASK, -1.0, 0.0)
    return FrozenPass(
        rollout_logprobs_BT=logprobs,
        old_logprobs_BT=logprobs,
        ref_logprobs_BT=torch.where(MASK, -1.0 - kl_per_token, 0.0),
        values_BT=torch.zeros(4, 2),
        final_values_B=torch.zeros(4),
    )


def _config(**fields: Any) -> PolicyLearnerConfig:
    return PolicyLearnerConfig.model_validate({"num_steps": 1, "prompts_per_step": 2, "minibatch_size": 4, **fields})


def _advantages(config: PolicyLearnerConfig, *, kl_per_token: float = 0.0) -> Tensor:
    state = LearnerState(kl_coef=config.kl.coef)
    return prepare(_batch(), _frozen(kl_per_token=kl_per_token), config, state, max_completion_tokens=2).advantages_BT


def _on_tokens(values: list[float]) -> Tensor:
    return torch.where(MASK, tensor(values).unsqueeze(1), 0.0)


def test_grpo_preset() -> None:
    # deviations sqrt(2) and sqrt(8): -1 / 1.41421, 1 / 1.41421, -2 / 2.82843, 2 / 2.82843
    assert_close(_advantages(_config(algorithm="grpo")), _on_tokens([-0.70711, 0.70711, -0.70711, 0.70711]), atol=1e-4, rtol=0)


def test_rloo_preset_takes_the_kl_from_the_return() -> None:
    # Returns 1 - .05 * .4 * 2 = .96, 3 - .02 = 2.98, 1.98, 5.96; each minus its sibling's.
    ours = _advantages(_config(algorithm="rloo"), kl_per_token=0.4)
    assert_close(ours, _on_tokens([-2.02, 2.02, -3.98, 3.98]), atol=1e-5, rtol=0)


def test_reinforce_plus_plus_preset_whitens_rewards_to_go_over_all_tokens() -> None:
    # Token returns with KL .4 a token and coefficient .05 (.02 a token): .96, .98 | 2.98 | 1.98 | 5.96, 5.98
    returns = [0.96, 0.98, 2.98, 1.98, 5.96, 5.98]
    mean = sum(returns) / 6
    std = (sum((value - mean) ** 2 for value in returns) / 6) ** 0.5
    a, b, c, d, e, f = ((value - mean) / std for value in returns)
    ours = _advantages(_config(algorithm="reinforce_plus_plus"), kl_per_token=0.4)
    assert_close(ours, tensor([[a, b], [c, 0.0], [d, 0.0], [e, f]]), atol=1e-5, rtol=0)


def test_reinforce_plus_plus_baseline_preset_whitens_what_is_left_of_the_group_mean() -> None:
    # -1, -1 | 1 | -2 | 2, 2 over six tokens: mean 1/6, mean square 15/6
    mean, std = 1 / 6, (15 / 6 - 1 / 36) ** 0.5
    ours = _advantages(_config(algorithm="reinforce_plus_plus_baseline"))
    assert_close(ours, _on_tokens([(value - mean) / std for value in (-1, 1, -2, 2)]), atol=1e-5, rtol=0)


def test_remax_preset() -> None:
    assert_close(_advantages(_config(algorithm="remax")), _on_tokens([-1.0, 1.0, -3.0, 1.0]))


def test_dapo_preset_takes_the_overlong_penalty_from_full_completions() -> None:
    # Limit 2 tokens, buffer max(1, round(.4)) = 1: completions of 2 tokens lose 1, so returns are 0, 3 | 2, 5.
    ours = _advantages(_config(algorithm="dapo"))
    assert_close(ours, _on_tokens([-0.70711, 0.70711, -0.70711, 0.70711]), atol=1e-4, rtol=0)
    batch_scores = shaped_scores(_batch(), _config(algorithm="dapo").reward, LearnerState(kl_coef=0.0), max_completion_tokens=2)
    assert_close(batch_scores, tensor([0.0, 3.0, 2.0, 5.0]))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ({}, [1.0, 3.0, 2.0, 6.0]),
        ({"clip": 2.5}, [1.0, 2.5, 2.0, 2.5]),
        ({"truncation": "penalty", "truncation_score": -1.0}, [1.0, 3.0, 2.0, -1.0]),
        ({"missing_eos_penalty": 4.0}, [1.0, 3.0, 2.0, 2.0]),
        ({"length_penalty": 0.5}, [0.0, 2.5, 1.5, 5.0]),
        ({"normalise": True}, [-2.0, 0.0, -1.0, 3.0]),  # running mean 3, deviation 1
        ({"normalise": True, "clip": 4.0, "missing_eos_penalty": 1.0}, [-2.0, 0.0, -1.0, 0.0]),  # clipped, then scaled
    ],
)
def test_scores_are_shaped_in_order(reward: dict[str, Any], expected: list[float]) -> None:
    state = LearnerState(kl_coef=0.0, score_moments=RunningMoments(count=10, mean=3.0, sum_squares=10.0))
    ours = shaped_scores(_batch(), _config(reward=reward).reward, state, max_completion_tokens=8)
    assert_close(ours, tensor(expected))


def test_step_scores_reach_their_tokens_and_those_before() -> None:
    config = _config(algorithm="reinforce", kl={"coef": 0.0})
    batch = _batch(step_scores_BT=tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.25]]))
    ours = prepare(batch, _frozen(), config, LearnerState(kl_coef=0.0), max_completion_tokens=2).advantages_BT
    assert_close(ours, tensor([[1.5, 1.0], [3.0, 0.0], [2.0, 0.0], [6.25, 6.25]]))


def test_step_scores_are_clipped_and_normalised_with_the_score_of_their_completion() -> None:
    batch = _batch(step_scores_BT=tensor([[0.5, 4.0], [0.0, 0.0], [-4.0, 0.0], [0.0, 0.0]]))
    config = _config(reward={"clip": 2.5, "normalise": True}).reward
    assert_close(judged_totals(batch, config), tensor([1.0 + 0.5 + 2.5, 2.5, 2.0 - 2.5, 2.5]))
    state = LearnerState(kl_coef=0.0, score_moments=RunningMoments(count=10, mean=3.0, sum_squares=40.0))  # deviation 2
    step_scores = shaped_step_scores(batch, config, state)
    assert_close(step_scores, tensor([[0.25, 1.25], [0.0, 0.0], [-1.25, 0.0], [0.0, 0.0]]))
    # A completion's rewards add up to its total in deviations from the mean.
    totals = shaped_scores(batch, config, state, max_completion_tokens=2) + step_scores.sum(1)
    assert_close(totals, (judged_totals(batch, config) - 3.0) / 2.0)
    rewards = prepare(
        batch,
        _frozen(),
        _config(algorithm="reinforce", kl={"coef": 0.0}, reward={"clip": 2.5, "normalise": True}),
        state,
        max_completion_tokens=2,
    ).advantages_BT
    assert_close(rewards[0], tensor([0.25 + 1.25 + (1.0 - 3.0) / 2, 1.25 + (1.0 - 3.0) / 2]))


def test_whitened_rewards_keep_their_mean() -> None:
    config = _config(algorithm="reinforce", kl={"coef": 0.0}, reward={"whiten": True})
    ours = prepare(_batch(), _frozen(), config, LearnerState(kl_coef=0.0), max_completion_tokens=2).advantages_BT
    # Rewards 0, 1 | 3 | 2 | 0, 6: mean 2, variance (4 + 1 + 1 + 0 + 4 + 16) / 6
    std = (26 / 6) ** 0.5
    scaled = [2 + (value - 2) / std for value in (0, 1, 3, 2, 0, 6)]
    expected = [[scaled[0] + scaled[1], scaled[1]], [scaled[2], 0.0], [scaled[3], 0.0], [scaled[4] + scaled[5], scaled[5]]]
    assert_close(ours, tensor(expected), atol=1e-5, rtol=0)


def test_the_old_policy_may_be_the_one_that_sampled() -> None:
    config = _config(mismatch={"old_logprobs": "rollout", "correction": "none"})
    frozen = _frozen()
    prepared = prepare(_batch(), frozen, config, LearnerState(kl_coef=0.0), max_completion_tokens=2)
    assert prepared.old_logprobs_BT is frozen.rollout_logprobs_BT
    assert (prepared.importance_weights_BT == 1).all()


def test_decoupled_ppo_compares_with_the_learner_and_weighs_by_the_engine() -> None:
    # Three policies: the engine sampled at -1, the learner's old weights say -.5: weight exp(.5), the ratio starts at 1.
    frozen = _frozen()
    old = torch.where(MASK, -0.5, 0.0)
    frozen = FrozenPass(
        rollout_logprobs_BT=frozen.rollout_logprobs_BT,
        old_logprobs_BT=old,
        ref_logprobs_BT=old,
        values_BT=frozen.values_BT,
        final_values_B=frozen.final_values_B,
    )
    config = _config(algorithm="decoupled_ppo")
    prepared = prepare(_batch(), frozen, config, LearnerState(kl_coef=0.0), max_completion_tokens=2)
    assert_close(prepared.importance_weights_BT, torch.where(MASK, tensor(0.5).exp(), 1.0))
    assert prepared.old_logprobs_BT is old
