"""From records to tensors, and how a batch is cut for ranks and for memory.

Shapes: B trajectories, S tokens of prompt + completion, T completion tokens, N valid completion tokens in row-major order.
Everything is right-padded; masks come from lengths, never from token ids, so any id may pad.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.errors import ConfigError, DataError
from cluster.types import Reward, ScoredBatch
from learners.network.micro_batch import TokenBatch, collate_tokens


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
    old_logprobs_BT: Tensor  # float32, nats, of the weights at batch start; zero where the only step takes its own
    ref_logprobs_BT: Tensor  # float32, nats, of the frozen reference; zero where no KL is used
    old_values_BT: Tensor  # float32, score points, before each token
    advantages_BT: Tensor  # float32, whitened if configured
    returns_BT: Tensor  # float32, score points, from unwhitened advantages
    importance_weights_BT: Tensor  # float32, engine-mismatch correction; ones where it is off


def collate(batch: ScoredBatch, device: torch.device) -> TrainingBatch:
    """All trajectories of a step, in order."""
    trajectories = [trajectory for scored in batch.groups for trajectory in scored.trajectories]
    rewards = [reward for scored in batch.groups for reward in scored.rewards]
    greedy_scores = [scored.greedy_score for scored in batch.groups]
    groups = [group for group, scored in enumerate(batch.groups) for _ in scored.rewards]
    group_B = torch.tensor(groups, dtype=torch.int64, device=device)
    tokens = collate_tokens(trajectories, device)
    return TrainingBatch(
        tokens=tokens,
        scores_B=torch.tensor(
            [reward.total - sum(step.score for step in reward.steps) for reward in rewards], dtype=torch.float32, device=device
        ),
        step_scores_BT=_step_scores(rewards, tokens.mask_BT),
        greedy_scores_B=torch.tensor(greedy_scores, dtype=torch.float32, device=device)[group_B],
        group_B=group_B,
        ends_truncated_B=torch.tensor(
            [trajectory.completion.finish_reason == "length" for trajectory in trajectories], device=device
        ),
    )


def check_bootstrap(batch: ScoredBatch) -> None:
    """Raise `ConfigError` where a cut completion has a score of its whole text: the critic's value of what follows would count
    that score again, and at gamma = 1 settle at score / (1 - share of cut completions)."""
    rewards = [reward for scored in batch.groups for reward in scored.rewards]
    trajectories = [trajectory for scored in batch.groups for trajectory in scored.trajectories]
    judged_whole = [
        reward.total
        for trajectory, reward in zip(trajectories, rewards, strict=True)
        if trajectory.completion.finish_reason == "length"
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
