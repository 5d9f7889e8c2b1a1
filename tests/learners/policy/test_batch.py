"""Tensors from records, and cutting them for ranks and memory."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from cluster.errors import ConfigError, DataError
from cluster.messages import Message
from cluster.processes.object_store import HeldObject
from cluster.types import (
    GroupTexts,
    Prompt,
    Reward,
    ScoredBatch,
    ScoredGroup,
    Segment,
    StepScore,
    Stretch,
    Task,
    TrajectoryGroup,
    TrajectoryTokens,
    sample_of,
)
from learners.network.micro_batch import PassSizes, TokenBatch, TokenRows, micro_batch, micro_batches, shard
from learners.policy.batch import check_bootstrap, collate, token_batch
from tests.records import segment, single_turn

CPU = torch.device("cpu")


def _tokens(*trajectories: TrajectoryTokens) -> TokenBatch:
    """As one group."""
    samples = tuple(sample_of(index, tokens, "stop") for index, tokens in enumerate(trajectories))
    task = Task(task_id="task", messages=(Message(role="user", content="text"),))
    texts = HeldObject(GroupTexts(prompt=Prompt(task=task, text="text", token_ids=(1,)), trajectories=()))
    group = TrajectoryGroup(task_id="task", samples=samples, texts=texts, tokens=HeldObject(trajectories))
    return token_batch([(group, samples)], CPU)


def test_tokens_are_padded_on_the_right_and_masked_by_length() -> None:
    tokens = _tokens(single_turn((5, 6), (7,)), single_turn((8,), (9, 0, 0)))
    part = micro_batch(tokens, [0, 1])
    assert_close(part.token_ids_RS, tensor([[5, 6, 7, 0], [8, 9, 0, 0]]))
    assert_close(tokens.mask_BT, tensor([[True, False, False], [True, True, True]]))  # token 0 counts where it was chosen
    assert tokens.segment_lengths == ((3,), (4,))
    assert tokens.num_tokens == 4


def test_a_micro_batch_points_at_the_states_that_predict_each_completion_token() -> None:
    tokens = _tokens(single_turn((5, 6), (7,)), single_turn((8,), (9, 3)), single_turn((1,), (2, 2, 2, 2, 2)))
    part = micro_batch(tokens, [1, 0])
    assert_close(part.token_ids_RS, tensor([[8, 9, 3], [5, 6, 7]]))  # cut to the longest of these rows
    assert_close(part.row_N, tensor([0, 0, 1]))
    assert_close(part.column_N, tensor([0, 1, 0]))
    assert_close(part.input_row_N, tensor([0, 0, 1]))
    assert_close(part.position_N, tensor([0, 1, 1]))  # the position before each token
    assert_close(part.target_N, tensor([9, 3, 7]))
    assert_close(part.last_input_row_B, tensor([0, 1]))
    assert_close(part.last_position_B, tensor([2, 2]))


def test_a_micro_batch_points_past_what_an_environment_said_and_into_every_segment() -> None:
    part = micro_batch(_with_a_gap_and_two_segments(), [0, 1])
    assert_close(part.token_ids_RS, tensor([[5, 6, 7, 8, 9], [1, 2, 0, 0, 0], [3, 4, 4, 0, 0]]))
    assert_close(part.mask_BT, tensor([[True, True, True], [True, True, False]]))
    assert_close(part.row_N, tensor([0, 0, 0, 1, 1]))
    assert_close(part.column_N, tensor([0, 1, 2, 0, 1]))
    assert_close(part.input_row_N, tensor([0, 0, 1, 2, 2]))
    assert_close(part.position_N, tensor([0, 3, 0, 0, 1]))
    assert_close(part.target_N, tensor([6, 9, 2, 4, 4]))
    assert_close(part.last_input_row_B, tensor([1, 2]))
    assert_close(part.last_position_B, tensor([1, 2]))


def test_a_packed_micro_batch_is_one_row_that_points_at_the_same_states() -> None:
    part = micro_batch(_with_a_gap_and_two_segments(), [0, 1], is_packed=True)
    assert_close(part.token_ids_RS, tensor([[5, 6, 7, 8, 9, 1, 2, 3, 4, 4]]))
    assert part.packing is not None
    assert_close(part.packing.position_ids_1T, tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]))
    assert_close(part.packing.starts, tensor([0, 5, 7, 10], dtype=torch.int32))
    assert_close(part.row_N, tensor([0, 0, 0, 1, 1]))
    assert_close(part.column_N, tensor([0, 1, 2, 0, 1]))
    assert_close(part.input_row_N, tensor([0, 0, 0, 0, 0]))
    assert_close(part.position_N, tensor([0, 3, 5, 7, 8]))
    assert_close(part.target_N, tensor([6, 9, 2, 4, 4]))
    assert_close(part.last_input_row_B, tensor([0, 0]))
    assert_close(part.last_position_B, tensor([6, 9]))


def _with_a_gap_and_two_segments() -> TokenBatch:
    gap = Segment(
        token_ids=np.array([5, 6, 7, 8, 9], np.int32),
        action_mask=np.array([False, True, False, False, True]),
        rollout_logprobs=np.array([-1.0, -2.0], np.float32),
        stretches=(Stretch(num_tokens=2, policy_version=0),),
    )
    return _tokens(TrajectoryTokens(segments=(gap, segment((1,), (2,)))), single_turn((3,), (4, 4)))


def test_a_rank_fetches_the_groups_that_it_computes_with_once() -> None:
    fetched: list[int] = []

    class Counted(HeldObject[tuple[TrajectoryTokens, ...]]):
        def fetch(self) -> tuple[TrajectoryTokens, ...]:
            fetched.append(id(self))
            return self.value

    groups = [Counted((single_turn((number,), (number,)),) * 2) for number in range(1, 4)]
    rows = TokenRows([(group, index) for group in groups for index in range(2)])
    assert [each.segments[0].token_ids[0] for each in rows.of([4, 0, 1])] == [3, 1, 1]
    assert rows.of([0, 5])[1] is groups[2].value[1]
    assert fetched == [id(groups[2]), id(groups[0])]


def test_collate_keeps_scores_and_cuts(scored_batch: Callable[..., ScoredBatch]) -> None:
    batch = collate(scored_batch(4, scores=[1.0, 2.0, 3.0, 4.0]), CPU)
    assert_close(batch.scores_B, tensor([1.0, 2.0, 3.0, 4.0]))
    assert_close(batch.ends_truncated_B, tensor([True, False, False, True]))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(DataError, match="every rollout of the step failed"):
        collate(ScoredBatch(step=0, groups=()), CPU)


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [(3,), (9,), (1,), (4,), (4,), (2,)]
    packs = list(micro_batches([0, 1, 3, 4, 5], lengths, PassSizes(max_tokens=8)))
    assert packs == [[5, 0], [3, 4], [1]]  # 2 x 3, 2 x 4, and a row above the budget by itself
    turns = [(2, 2), (2,), (3,)]
    assert list(micro_batches([0, 1, 2], turns, PassSizes(max_tokens=8))) == [[0, 1], [2]]  # 3 x 2; 4 x 3 would be too many


def test_packed_micro_batches_count_no_padding() -> None:
    sizes = PassSizes(max_tokens=9, is_packed=True)
    assert list(micro_batches([0, 1, 2], [(2, 2), (2,), (3,)], sizes)) == [[0, 1, 2]]  # 4 + 2 + 3
    assert list(micro_batches([0, 1, 2], [(2, 2), (2,), (4,)], sizes)) == [[0, 1], [2]]
    assert list(micro_batches([0, 1], [(20,), (5,)], sizes)) == [[1], [0]]  # a row above the budget by itself


def test_shards_are_disjoint_complete_and_even() -> None:
    shards = [shard([4, 1, 3, 0, 2], rank, 2) for rank in range(2)]
    assert shards == [[4, 3, 2], [1, 0]]


def _with_rewards(batch: ScoredBatch, reward_of: Callable[[bool], Reward]) -> ScoredBatch:
    """`reward_of` takes whether a completion was cut."""

    def rewarded(scored: ScoredGroup) -> ScoredGroup:
        was_cut = [sample.finish_reason == "length" for sample in scored.samples]
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
