"""From records to tensors, and how a batch is cut for ranks and for memory.

Shapes: B trajectories, T tokens that the policy chose in one. A score of a step lies at such a token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.errors import ConfigError, DataError
from cluster.types import Reward, Sample, ScoredBatch, TrajectoryGroup
from learners.network.micro_batch import TokenBatch, TokenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """A scored batch as tensors. Produced by `collate`, consumed by the learner's preparation."""

    tokens: TokenBatch
    scores_B: Tensor  # float32, of whole completions
    step_scores_BT: Tensor  # float32, of steps, at their last tokens; 0 elsewhere
    greedy_scores_B: Tensor  # float32, of the greedy completion of the same prompt; 0 where there is none
    group_B: Tensor  # int64, number of the group
    ends_truncated_B: Tensor  # bool, cut at the length limit

    @property
    def totals_B(self) -> Tensor:
        """What the scorers gave: each completion's own score and those of its steps."""
        return self.scores_B + self.step_scores_BT.sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBatch:
    """What the epochs over one batch need. Produced by the learner's preparation, consumed by its update."""

    tokens: TokenBatch
    rollout_logprobs_BT: Tensor  # float32, nats, of the engine that sampled
    old_logprobs_BT: Tensor  # float32, nats, of the weights at batch start; zero where the only step takes its own
    ref_logprobs_BT: Tensor  # float32, nats, of the frozen reference; zero where no KL is used
    old_values_BT: Tensor  # float32, score points, before each token
    advantages_BT: Tensor  # float32, whitened if configured
    returns_BT: Tensor  # float32, score points, from unwhitened advantages
    importance_weights_BT: Tensor  # float32, engine-mismatch correction; ones where it is off


def collate(batch: ScoredBatch, device: torch.device) -> TrainingBatch:
    """All trajectories of a step, in order."""
    samples = [sample for scored in batch.groups for sample in scored.samples]
    rewards = [reward for scored in batch.groups for reward in scored.rewards]
    greedy_scores = [scored.greedy_score for scored in batch.groups]
    groups = [group for group, scored in enumerate(batch.groups) for _ in scored.rewards]
    group_B = torch.tensor(groups, dtype=torch.int64, device=device)
    tokens = token_batch([(scored.group, scored.samples) for scored in batch.groups], device)
    return TrainingBatch(
        tokens=tokens,
        scores_B=torch.tensor(
            [reward.total - sum(step.score for step in reward.steps) for reward in rewards], dtype=torch.float32, device=device
        ),
        step_scores_BT=_step_scores(rewards, tokens.mask_BT),
        greedy_scores_B=torch.tensor(greedy_scores, dtype=torch.float32, device=device)[group_B],
        group_B=group_B,
        ends_truncated_B=torch.tensor([sample.finish_reason == "length" for sample in samples], device=device),
    )


def token_batch(groups: Sequence[tuple[TrajectoryGroup, Sequence[Sample]]], device: torch.device) -> TokenBatch:
    """The tokens of groups, of each of them those samples that are given. Nothing is fetched yet."""
    samples = [sample for _, chosen in groups for sample in chosen]
    if not samples:
        raise DataError("the learner got a batch without trajectories; every rollout of the step failed")
    num_tokens_B = torch.tensor([sample.num_tokens for sample in samples], device=device)
    return TokenBatch(
        rows=TokenRows([(group.tokens, group.samples.index(sample)) for group, chosen in groups for sample in chosen]),
        segment_lengths=tuple(sample.segment_lengths for sample in samples),
        mask_BT=torch.arange(int(num_tokens_B.max()), device=device) < num_tokens_B.unsqueeze(1),
    )


def check_bootstrap(batch: ScoredBatch) -> None:
    """Raise `ConfigError` where a cut completion has a score of its whole text: the critic's value of what follows would count
    that score again, and at gamma = 1 settle at score / (1 - share of cut completions)."""
    rewards = [reward for scored in batch.groups for reward in scored.rewards]
    samples = [sample for scored in batch.groups for sample in scored.samples]
    judged_whole = [
        reward.total
        for sample, reward in zip(samples, rewards, strict=True)
        if sample.finish_reason == "length"
        and not (reward.steps and math.isclose(reward.total, sum(step.score for step in reward.steps), abs_tol=1e-6))
    ]
    if judged_whole:
        raise ConfigError(
            f"learner.reward.truncation=bootstrap, but {len(judged_whole)} completions that were cut at the length limit have a "
            f"score of the whole text (the first {judged_whole[0]:g}), and the critic's value of what would follow counts that "
            "score again; set learner.reward.truncation=terminal. bootstrap is for scores of single steps"
        )


def _step_scores(rewards: Sequence[Reward], mask_BT: Tensor) -> Tensor:
    step_scores_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for row, reward in enumerate(rewards):
        for step in reward.steps:
            if not 0 <= step.token_index < int(mask_BT[row].sum()):
                raise DataError(
                    f"a step's score is at token {step.token_index} of a completion of {int(mask_BT[row].sum())}; "
                    "the scorer must name tokens of the completion"
                )
            step_scores_BT[row, step.token_index] += step.score
    return step_scores_BT
