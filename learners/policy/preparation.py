"""From a scored batch and the frozen passes over it to what the epochs need: rewards, advantages, weights.

Shapes: B trajectories of the whole batch, T tokens that the policy chose in one. Every rank computes all of it alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.gae import gae
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.reinforce import reward_to_go
from learners.algorithms.advantages.remax import remax
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.masking import on_tokens, row_sum, whiten
from learners.algorithms.mismatch import (
    kept_sequences,
    masked_token_weights,
    truncated_sequence_weights,
    truncated_token_weights,
)
from learners.algorithms.reward_shaping import length_penalty, missing_eos_penalty, normalised, overlong_penalty
from learners.algorithms.token_rewards import token_rewards
from learners.policy.batch import PreparedBatch, TrainingBatch
from learners.policy.state import LearnerState
from learners.settings.policy import AdvantageConfig, MismatchConfig, PolicyLearnerConfig, RewardShapingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPass:
    """Numbers of each token before the first optimizer step. Produced by the learner, consumed by `prepare`."""

    rollout_logprobs_BT: Tensor  # of the engine that sampled
    old_logprobs_BT: Tensor  # zero where `needs_policy_pass` says that nothing asks for them
    ref_logprobs_BT: Tensor  # zero where no KL is used
    values_BT: Tensor  # zero without a critic
    final_values_B: Tensor  # of the state after the last token; zero without a critic


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorInputs:
    """What an estimator may look at. Produced by `prepare`, consumed by `ADVANTAGE_ESTIMATORS`."""

    rewards_BT: Tensor
    mask_BT: Tensor
    group_B: Tensor
    greedy_scores_B: Tensor
    values_BT: Tensor
    bootstrap_values_B: Tensor

    @property
    def returns_B(self) -> Tensor:
        """All rewards of a completion, KL penalties among them."""
        return row_sum(self.rewards_BT, self.mask_BT)

    def on_tokens(self, advantages_B: Tensor) -> Tensor:
        return on_tokens(advantages_B, self.mask_BT)


ADVANTAGE_ESTIMATORS: Mapping[str, Callable[[EstimatorInputs, AdvantageConfig], Tensor]] = {
    "gae": lambda inputs, config: gae(
        inputs.rewards_BT,
        inputs.values_BT,
        inputs.bootstrap_values_B,
        inputs.mask_BT,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    ),
    "reinforce": lambda inputs, config: reward_to_go(inputs.rewards_BT, inputs.mask_BT, gamma=config.gamma),
    "grpo": lambda inputs, config: inputs.on_tokens(grpo(inputs.returns_B, inputs.group_B)),
    "dr_grpo": lambda inputs, config: inputs.on_tokens(dr_grpo(inputs.returns_B, inputs.group_B)),
    "rloo": lambda inputs, config: inputs.on_tokens(rloo(inputs.returns_B, inputs.group_B)),
    "remax": lambda inputs, config: inputs.on_tokens(remax(inputs.returns_B, inputs.greedy_scores_B)),
}

MISMATCH_WEIGHTS: Mapping[str, Callable[[Tensor, Tensor, Tensor, MismatchConfig], Tensor]] = {
    "none": lambda old_BT, rollout_BT, mask_BT, config: torch.ones_like(old_BT),
    "token": lambda old_BT, rollout_BT, mask_BT, config: truncated_token_weights(old_BT, rollout_BT, mask_BT, cap=config.cap),
    "sequence": lambda old_BT, rollout_BT, mask_BT, config: truncated_sequence_weights(
        old_BT, rollout_BT, mask_BT, cap=config.cap
    ),
    "masked_token": lambda old_BT, rollout_BT, mask_BT, config: masked_token_weights(
        old_BT, rollout_BT, mask_BT, lowest=config.band[0], highest=config.band[1]
    ),
}


def needs_policy_pass(config: PolicyLearnerConfig, *, num_trajectories: int) -> bool:
    """Whether anything asks for the policy's or the critic's numbers before the first optimizer step.

    At that step `Objective` takes the old log-probabilities from the step's own forward pass. So they are asked for by a later
    step of the batch, by a KL among the rewards, and in place of them by a critic.
    """
    has_later_steps = config.num_epochs > 1 or num_trajectories > config.minibatch_size
    return has_later_steps or config.critic.kind != "none" or (config.kl.is_used and config.kl.place == "reward")


def prepare(
    batch: TrainingBatch, frozen: FrozenPass, config: PolicyLearnerConfig, state: LearnerState, *, max_completion_tokens: int
) -> PreparedBatch:
    """Everything that stays fixed over the epochs. `state` has seen this batch's scores."""
    mask_BT, num_tokens = batch.tokens.mask_BT, batch.tokens.num_tokens
    rewards_BT = token_rewards(
        frozen.old_logprobs_BT,
        frozen.ref_logprobs_BT,
        shaped_scores(batch, config.reward, state, max_completion_tokens=max_completion_tokens),
        shaped_step_scores(batch, config.reward, state),
        mask_BT,
        kl_coef=state.kl_coef if config.kl.place == "reward" else 0.0,
    )
    if config.reward.whiten:
        rewards_BT = whiten(rewards_BT, mask_BT, count=num_tokens, keep_mean=True)
    bootstraps = config.reward.truncation == "bootstrap"
    inputs = EstimatorInputs(
        rewards_BT=rewards_BT,
        mask_BT=mask_BT,
        group_B=batch.group_B,
        greedy_scores_B=_scaled(_limited(batch.greedy_scores_B, config.reward), config.reward, state),
        values_BT=frozen.values_BT,
        bootstrap_values_B=torch.where(batch.ends_truncated_B & bootstraps, frozen.final_values_B, 0.0),
    )
    advantages_BT = ADVANTAGE_ESTIMATORS[config.advantage.estimator](inputs, config.advantage)
    returns_BT = torch.where(mask_BT, advantages_BT + frozen.values_BT, 0.0)
    if config.advantage.whiten:
        advantages_BT = whiten(advantages_BT, mask_BT, count=num_tokens)
    rollout_logprobs_BT = frozen.rollout_logprobs_BT
    return PreparedBatch(
        tokens=batch.tokens,
        rollout_logprobs_BT=rollout_logprobs_BT,
        old_logprobs_BT=frozen.old_logprobs_BT if config.mismatch.old_logprobs == "learner" else rollout_logprobs_BT,
        ref_logprobs_BT=frozen.ref_logprobs_BT,
        old_values_BT=frozen.values_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        importance_weights_BT=importance_weights(frozen.old_logprobs_BT, rollout_logprobs_BT, mask_BT, config.mismatch),
    )


def importance_weights(old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, config: MismatchConfig) -> Tensor:
    """What the loss of each token is weighted by, because another engine or other weights sampled it. Row by row."""
    weights_BT = MISMATCH_WEIGHTS[config.correction](old_logprobs_BT, rollout_logprobs_BT, mask_BT, config)
    if not config.reject_sequences:
        return weights_BT
    lowest, highest = config.band
    kept_B = kept_sequences(old_logprobs_BT, rollout_logprobs_BT, mask_BT, lowest=lowest, highest=highest)
    return torch.where(kept_B.unsqueeze(1), weights_BT, 0.0)


def judged_totals(batch: TrainingBatch, config: RewardShapingConfig) -> Tensor:
    """totals_B as they enter the running moments: a completion's own score and those of its steps, each within the limits."""
    return _judged_scores(batch, config) + _limited(batch.step_scores_BT, config).sum(1)


def shaped_scores(
    batch: TrainingBatch, config: RewardShapingConfig, state: LearnerState, *, max_completion_tokens: int
) -> Tensor:
    """scores_B of whole completions as rewards."""
    lengths_B = batch.tokens.mask_BT.sum(1)
    buffer_tokens = max(1, round(config.overlong_buffer_frac * max_completion_tokens))
    return (
        _scaled(_judged_scores(batch, config), config, state)
        + missing_eos_penalty(batch.ends_truncated_B, penalty=config.missing_eos_penalty)
        + length_penalty(lengths_B, coef=config.length_penalty)
        + overlong_penalty(
            lengths_B, max_tokens=max_completion_tokens, buffer_tokens=buffer_tokens, factor=config.overlong_penalty
        )
    )


def shaped_step_scores(batch: TrainingBatch, config: RewardShapingConfig, state: LearnerState) -> Tensor:
    """step_scores_BT as rewards. The running mean, that of totals, is taken from completions' own scores once."""
    step_scores_BT = _limited(batch.step_scores_BT, config)
    return step_scores_BT / state.score_moments.std if config.normalise else step_scores_BT


def _judged_scores(batch: TrainingBatch, config: RewardShapingConfig) -> Tensor:
    """scores_B of whole completions: cut ones judged as configured, all within the limits."""
    scores_B = batch.scores_B
    if config.truncation == "penalty":
        scores_B = torch.where(batch.ends_truncated_B, config.truncation_score, scores_B)
    return _limited(scores_B, config)


def _limited(scores: Tensor, config: RewardShapingConfig) -> Tensor:
    return scores if config.clip is None else scores.clamp(-config.clip, config.clip)


def _scaled(scores_B: Tensor, config: RewardShapingConfig, state: LearnerState) -> Tensor:
    return normalised(scores_B, state.score_moments) if config.normalise else scores_B
