"""From trajectories to tensors, and how they are cut for ranks and for memory.

Shapes: B trajectories, S tokens of prompt + completion, T completion tokens, N valid completion tokens in row-major order.
Everything is right-padded; masks come from lengths, never from token ids, so any id may pad.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.errors import DataError
from cluster.types import Trajectory

PADDING_ID = 0  # never attended to by a valid token, for attention is causal and padding is on the right


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Trajectories as tensors. Produced by `collate_tokens`, consumed by forward passes."""

    token_ids_BS: Tensor  # int64
    prompt_lengths_B: Tensor  # int64
    lengths_B: Tensor  # int64, prompt + completion
    mask_BT: Tensor  # bool, True where the policy chose a token
    rollout_logprobs_BT: Tensor  # float32, nats, 0 where masked

    @property
    def num_tokens(self) -> int:
        """Valid completion tokens."""
        return int(self.mask_BT.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The input of one forward pass. Produced by `micro_batch`, consumed by `PolicyWithCritic`."""

    rows_B: Tensor  # int64, rows of the whole batch
    token_ids_BS: Tensor  # int64, S is the longest of these rows
    mask_BT: Tensor  # bool
    row_N: Tensor  # int64, the row of this micro-batch that each valid token is in
    column_N: Tensor  # int64, its place in the completion
    position_N: Tensor  # int64, where the hidden state that predicts it lies
    target_N: Tensor  # int64, the valid tokens
    last_position_B: Tensor  # int64, the final token of each row


def collate_tokens(trajectories: Sequence[Trajectory], device: torch.device) -> TokenBatch:
    """Pad to the longest sequence and the longest completion."""
    if not trajectories:
        raise DataError("the learner got a batch without trajectories; every rollout of the step failed")
    prompts = [trajectory.prompt.token_ids for trajectory in trajectories]
    completions = [trajectory.completion.token_ids for trajectory in trajectories]
    logprobs = [trajectory.completion.rollout_logprobs for trajectory in trajectories]
    prompt_lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    completion_lengths_B = torch.tensor([len(completion) for completion in completions])
    sequences = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return TokenBatch(
        token_ids_BS=torch.from_numpy(_padded(sequences, fill=PADDING_ID, dtype=np.int64)).to(device),
        prompt_lengths_B=prompt_lengths_B.to(device),
        lengths_B=(prompt_lengths_B + completion_lengths_B).to(device),
        mask_BT=(torch.arange(int(completion_lengths_B.max())) < completion_lengths_B.unsqueeze(1)).to(device),
        rollout_logprobs_BT=torch.from_numpy(_padded(logprobs, fill=0, dtype=np.float32)).to(device),
    )


def micro_batch(tokens: TokenBatch, rows: Sequence[int]) -> MicroBatch:
    """The rows of one forward pass, cut to their own longest sequence and completion."""
    rows_B = torch.tensor(rows, device=tokens.token_ids_BS.device)
    lengths_B, prompt_lengths_B = tokens.lengths_B[rows_B], tokens.prompt_lengths_B[rows_B]
    token_ids_BS = tokens.token_ids_BS[rows_B, : int(lengths_B.max())]
    mask_BT = tokens.mask_BT[rows_B, : int((lengths_B - prompt_lengths_B).max())]
    row_N, column_N = mask_BT.nonzero(as_tuple=True)
    target_position_N = prompt_lengths_B[row_N] + column_N
    return MicroBatch(
        rows_B=rows_B,
        token_ids_BS=token_ids_BS,
        mask_BT=mask_BT,
        row_N=row_N,
        column_N=column_N,
        position_N=target_position_N - 1,
        target_N=token_ids_BS[row_N, target_position_N],
        last_position_B=lengths_B - 1,
    )


def shard(rows: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Every `world_size`-th row: disjoint over ranks, complete, and of nearly equal size."""
    return list(rows[rank::world_size])


def micro_batches(rows: Sequence[int], lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Rows in order of length, packed so that rows x longest stays within `max_tokens` (a longer row stands alone)."""
    pack: list[int] = []
    for row in sorted(rows, key=lambda row: lengths[row]):
        if pack and (len(pack) + 1) * lengths[row] > max_tokens:
            yield pack
            pack = []
        pack.append(row)
    if pack:
        yield pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Rows of one forward pass. Produced by `rank_packs`, consumed by learners."""

    rows: list[int]
    weight: float  # what it counts for: 1, or 0 where it only keeps a rank in step with others


def rank_packs(
    rows: Sequence[int], lengths: Sequence[int], *, max_tokens: int, rank: int, world_size: int, in_step: bool
) -> list[Pack]:
    """A rank's share of the rows, which all ranks deal in the same order; `in_step` gives all ranks equally many packs."""
    packs_R = {
        each: list(micro_batches(shard(rows, each, world_size), lengths, max_tokens=max_tokens))
        for each in (range(world_size) if in_step else (rank,))
    }
    num_missing = max(map(len, packs_R.values())) - len(packs_R[rank])
    fillers = [Pack(rows=[min(rows, key=lambda row: lengths[row])], weight=0.0) for _ in range(num_missing)]
    return [*fillers, *(Pack(rows=pack, weight=1.0) for pack in packs_R[rank])]


def _padded(rows: Sequence[Sequence[float]], *, fill: float, dtype: type) -> np.ndarray:
    array: np.ndarray = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array
