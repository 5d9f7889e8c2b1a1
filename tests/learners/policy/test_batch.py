"""Tensors from records, and cutting them for ranks and memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from cluster.errors import ConfigError, DataError
from cluster.types import Completion, Message, Prompt, Reward, ScoredBatch, ScoredGroup, StepScore, Task, Trajectory
from learners.network.micro_batch import collate_tokens, micro_batch, micro_batches, shard
from learners.policy.batch import check_bootstrap, collate

CPU = torch.device("cpu")


def _trajectory(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Trajectory:
    task = Task(task_id="task", messages=(Message(role="user", content="text"),))
    return Trajectory(
        prompt=Prompt(task=task, text="text", token_ids=prompt),
        sample_index=0,
        completion=Completion(
            token_ids=completion,
            rollout_logprobs=tuple(-float(token) for token in completion),
            text="text",
            finish_reason="stop",
            policy_version=0,
        ),
    )


def test_tokens_are_padded_on_the_right_and_masked_by_length() -> None:
    tokens = collate_tokens([_trajectory((5, 6), (7,)), _trajectory((8,), (9, 0, 0))], CPU)
    assert_close(tokens.token_ids_BS, tensor([[5, 6, 7, 0], [8, 9, 0, 0]]))
    assert_close(tokens.mask_BT, tensor([[True, False, False], [True, True, True]]))  # token 0 counts where it was chosen
    assert_close(tokens.rollout_logprobs_BT, tensor([[-7.0, 0.0, 0.0], [-9.0, 0.0, 0.0]]))
    assert_close(tokens.lengths_B, tensor([3, 4]))
    assert tokens.num_tokens == 4


def test_a_micro_batch_points_at_the_states_that_predict_each_completion_token() -> None:
    tokens = collate_tokens([_trajectory((5, 6), (7,)), _trajectory((8,), (9, 3)), _trajectory((1,), (2, 2, 2, 2, 2))], CPU)
    part = micro_batch(tokens, [1, 0])
    assert_close(part.token_ids_BS, tensor([[8, 9, 3], [5, 6, 7]]))  # cut to the longest of these rows
    assert_close(part.row_N, tensor([0, 0, 1]))
    assert_close(part.column_N, tensor([0, 1, 0]))
    assert_close(part.position_N, tensor([0, 1, 1]))  # the position before each token
    assert_close(part.target_N, tensor([9, 3, 7]))
    assert_close(part.last_position_B, tensor([2, 2]))


def test_collate_keeps_scores_and_cuts(scored_batch: Callable[..., ScoredBatch]) -> None:
    batch = collate(scored_batch(4, scores=[1.0, 2.0, 3.0, 4.0]), CPU)
    assert_close(batch.scores_B, tensor([1.0, 2.0, 3.0, 4.0]))
    assert_close(batch.ends_truncated_B, tensor([True, False, False, True]))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(DataError, match="every rollout of the step failed"):
        collate(ScoredBatch(step=0, groups=()), CPU)


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 2]
    packs = list(micro_batches([0, 1, 3, 4, 5], lengths, max_tokens=8))
    assert packs == [[5, 0], [3, 4], [1]]  # 2 x 3, 2 x 4, and a row above the budget by itself


def test_shards_are_disjoint_complete_and_even() -> None:
    shards = [shard([4, 1, 3, 0, 2], rank, 2) for rank in range(2)]
    assert shards == [[4, 3, 2], [1, 0]]


def _with_rewards(batch: ScoredBatch, reward_of: Callable[[bool], Reward]) -> ScoredBatch:
    """`reward_of` takes whether a completion was cut."""

    def rewarded(scored: ScoredGroup) -> ScoredGroup:
        was_cut = [trajectory.completion.finish_reason == "length" for trajectory in scored.trajectories]
        return replace(scored, rewards=tuple(reward_of(cut) for cut in was_cut))

    return replace(batch, groups=tuple(rewarded(scored) for scored in batch.groups))


def test_step_scores_may_be_bootstrapped_and_so_may_whole_scores_of_what_ended(scored_batch: Callable[..., ScoredBatch]) -> None:
    steps = tuple(StepScore(token_index=0, score=score) for score in (0.1, 0.2))
    of_steps = Reward(total=0.1 + 0.2, breakdown={}, steps=steps)
    whole = Reward(total=5.0, breakdown={})
    check_bootstrap(_with_rewards(scored_batch(4), lambda cut: of_steps if cut else whole))


@pytest.mark.parametrize("steps", [(), (StepScore(token_index=0, score=0.5),)])
def test_a_whole_score_of_a_cut_completion_is_not_bootstrapped(
    scored_batch: Callable[..., ScoredBatch], steps: tuple[StepScore, ...]
) -> None:
    batch = _with_rewards(scored_batch(4), lambda cut: Reward(total=3.0, breakdown={}, steps=steps))
    with pytest.raises(ConfigError, match=r"bootstrap, but 2 completions .*\(the first 3\).*truncation=terminal"):
        check_bootstrap(batch)
