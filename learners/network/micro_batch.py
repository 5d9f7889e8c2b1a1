"""From the tokens of trajectories to the input of a forward pass, and how a batch is cut for ranks and for memory.

Shapes: B trajectories, R rows of a forward pass, S tokens of such a row, T tokens that the policy chose in a trajectory, N of
these in row-major order. A row holds one segment (a trajectory has one, unless an environment rewrote the context between turns),
right-padded; or, packed, the only row holds all segments one after the other. T counts chosen tokens only, one after the other,
whatever stands between them: losses and advantages know nothing of segments and gaps. Masks come from lengths, never from token
ids, so any id may pad.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.packing import Packing, packing_of
from cluster.errors import BatchLostError, SamplesLostError
from cluster.processes.object_store import fetch_all
from cluster.types import Stored, TrajectoryTokens
from learners.network.collectives import sum_over_ranks

PADDING_ID = 0  # never attended to by a valid token, for attention is causal and padding is on the right


class TokenRows:
    """The tokens of a batch's trajectories. A rank fetches those that it computes with, group by group, once."""

    def __init__(self, places: Sequence[tuple[Stored[tuple[TrajectoryTokens, ...]], int]]) -> None:
        """`places`: for each row the tokens of its group, and which of them are its own."""
        self._places = places
        self._fetched: dict[int, tuple[TrajectoryTokens, ...]] = {}  # by the place of a group

    def of(self, rows: Sequence[int]) -> list[TrajectoryTokens]:
        """The tokens of these rows."""
        missing = {id(stored): stored for stored, _ in map(self._places.__getitem__, rows) if id(stored) not in self._fetched}
        self._fetched.update(zip(missing, fetch_all(list(missing.values())), strict=True))
        return [self._fetched[id(stored)][index] for stored, index in map(self._places.__getitem__, rows)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """What every rank knows of a batch's tokens, and where they are. Produced by `collate`, consumed by forward passes."""

    rows: TokenRows
    segment_lengths: tuple[tuple[int, ...], ...]  # [B] tokens of each segment
    mask_BT: Tensor  # bool, True where the policy chose a token

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy chose."""
        return int(self.mask_BT.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The input of one forward pass. Produced by `micro_batch`, consumed by `PolicyWithCritic`."""

    rows: tuple[int, ...]  # [B] of the whole batch
    rows_B: Tensor  # int64, the same
    segment_lengths: tuple[tuple[int, ...], ...]  # [B] tokens of each segment
    token_ids_RS: Tensor  # int64, S is the longest of these segments, or all of them together
    packing: Packing | None  # where segments lie in the only row; None where each is a row of its own
    mask_BT: Tensor  # bool
    row_N: Tensor  # int64, the trajectory of this micro-batch that each chosen token is in
    column_N: Tensor  # int64, its place among those that the policy chose in it
    input_row_N: Tensor  # int64, the row of `token_ids_RS` that it is in
    position_N: Tensor  # int64, where in that row the hidden state lies that predicts it
    target_N: Tensor  # int64, the chosen tokens
    last_input_row_B: Tensor  # int64, likewise, of the final token of the last segment
    last_position_B: Tensor  # int64


def micro_batch(tokens: TokenBatch, rows: Sequence[int], *, is_packed: bool = False) -> MicroBatch:
    """The rows of one forward pass, cut to their own longest segment, or packed, and to the most tokens chosen.

    Nothing is asked of the device, which would have to finish all its work to answer.
    """
    device = tokens.mask_BT.device
    segments = [trajectory.segments for trajectory in tokens.rows.of(rows)]
    flat = [segment for of_row in segments for segment in of_row]
    num_chosen = [len(segment.rollout_logprobs) for segment in flat]
    lengths = [len(segment.token_ids) for segment in flat]
    segment_N = np.repeat(np.arange(len(flat)), num_chosen)
    target_position_N = np.concatenate([segment.action_mask.nonzero()[0] for segment in flat])
    if is_packed:
        token_ids_RS = np.concatenate([segment.token_ids for segment in flat], dtype=np.int64)[None]
        input_rows, starts = np.zeros(len(flat), np.int64), np.cumsum([0, *lengths[:-1]])
    else:
        token_ids_RS = padded([segment.token_ids for segment in flat], fill=PADDING_ID, dtype=np.int64)
        input_rows, starts = np.arange(len(flat)), np.zeros(len(flat), np.int64)
    num_chosen_B = np.array([sum(len(segment.rollout_logprobs) for segment in of_row) for of_row in segments])
    mask_BT = np.arange(num_chosen_B.max()) < num_chosen_B[:, None]
    row_N, column_N = mask_BT.nonzero()
    input_row_N, target_place_N = input_rows[segment_N], starts[segment_N] + target_position_N
    last_B = np.cumsum([len(of_row) for of_row in segments]) - 1  # segment
    return MicroBatch(
        rows=tuple(rows),
        rows_B=torch.tensor(rows, device=device),
        segment_lengths=tuple(tokens.segment_lengths[row] for row in rows),
        token_ids_RS=torch.from_numpy(token_ids_RS).to(device),
        packing=packing_of(lengths, device) if is_packed else None,
        mask_BT=torch.from_numpy(mask_BT).to(device),
        row_N=torch.from_numpy(row_N).to(device),
        column_N=torch.from_numpy(column_N).to(device),
        input_row_N=torch.from_numpy(input_row_N).to(device),
        position_N=torch.from_numpy(target_place_N - 1).to(device),
        target_N=torch.from_numpy(token_ids_RS[input_row_N, target_place_N]).to(device),
        last_input_row_B=torch.from_numpy(input_rows[last_B]).to(device),
        last_position_B=torch.from_numpy(starts[last_B] + np.array(lengths)[last_B] - 1).to(device),
    )


class RankShare:
    """Which rows of a batch each rank computes, and one rank's of them in packs."""

    def __init__(self, rank: int, world_size: int, *, max_tokens: int, in_step: bool, is_packed: bool) -> None:
        """`max_tokens`: of one forward pass, padding included. `in_step`: all ranks do equally many passes, as shards of a model
        must. `is_packed`: passes have no padding."""
        self._rank = rank
        self._world_size = world_size
        self._max_tokens = max_tokens
        self._in_step = in_step
        self._is_packed = is_packed

    def deal(self, tokens: TokenBatch, rows: Sequence[int]) -> list[list[int]]:
        """Rows of each rank: they take turns in order of length, so that their shares cost about the same."""
        by_length = sorted(rows, key=lambda row: sum(tokens.segment_lengths[row]))
        return [shard(by_length, rank, self._world_size) for rank in range(self._world_size)]

    def deal_all(self, tokens: TokenBatch) -> list[list[int]]:
        """As `deal`, of the whole batch."""
        return self.deal(tokens, range(len(tokens.segment_lengths)))

    def own(self, dealt: Sequence[list[int]]) -> list[int]:
        """This rank's rows."""
        return dealt[self._rank]

    def packs(self, tokens: TokenBatch, dealt: Sequence[Sequence[int]]) -> Iterator[tuple[MicroBatch, float]]:
        """This rank's rows, in packs that fit the token budget, with what each counts for."""
        sizes = PassSizes(max_tokens=self._max_tokens, is_packed=self._is_packed)
        for pack in packs_of_rank(dealt, tokens.segment_lengths, sizes, rank=self._rank, in_step=self._in_step):
            yield micro_batch(tokens, pack.rows, is_packed=self._is_packed), pack.weight


def rollout_logprobs(tokens: TokenBatch, own_rows: Sequence[int]) -> Tensor:
    """rollout_logprobs_BT of some rows, in nats; 0 elsewhere."""
    logprobs_BT = np.zeros(tokens.mask_BT.shape, np.float32)
    for row, trajectory in zip(own_rows, tokens.rows.of(own_rows), strict=True):
        logprobs_BT[row, : len(trajectory.rollout_logprobs)] = trajectory.rollout_logprobs
    return torch.from_numpy(logprobs_BT).to(tokens.mask_BT.device)


def fetch_on_all_ranks(tokens: TokenBatch, own_rows: Sequence[int], world_size: int) -> None:
    """Fetch a rank's rows; call it on every rank. Raises `BatchLostError` on all of them where one cannot have its own.

    Else the others would wait for it in their next sum, for ever.
    """
    num_lost = torch.zeros(1, device=tokens.mask_BT.device)
    try:
        tokens.rows.of(own_rows)
    except SamplesLostError:
        num_lost += 1
    sum_over_ranks(num_lost, world_size)
    if num_lost.item():
        raise BatchLostError(f"{num_lost.item():.0f} of {world_size} learner ranks cannot have their samples any more")


def shard(rows: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Every `world_size`-th row: disjoint over ranks, complete, and of nearly equal size."""
    return list(rows[rank::world_size])


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSizes:
    """How many rows one forward pass takes. Produced by learners, consumed by `micro_batches`."""

    max_tokens: int  # padding included
    is_packed: bool = False  # there is none

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether segments of these lengths, the longest of them last, do."""
        return (sum(lengths) if self.is_packed else len(lengths) * lengths[-1]) <= self.max_tokens


def micro_batches(rows: Sequence[int], segment_lengths: Sequence[Sequence[int]], sizes: PassSizes) -> Iterator[list[int]]:
    """Rows in order of length, as many together as fit into one pass (a longer row stands alone)."""
    pack: list[int] = []
    lengths: list[int] = []
    for row in sorted(rows, key=lambda row: max(segment_lengths[row])):
        lengths += sorted(segment_lengths[row])
        if pack and not sizes.fits(lengths):
            yield pack
            pack, lengths = [], sorted(segment_lengths[row])
        pack.append(row)
    if pack:
        yield pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Rows of one forward pass. Produced by `packs_of_rank`, consumed by learners."""

    rows: list[int]
    weight: float  # what it counts for: 1, or 0 where it only keeps a rank in step with others


def packs_of_rank(
    dealt: Sequence[Sequence[int]],
    segment_lengths: Sequence[Sequence[int]],
    sizes: PassSizes,
    *,
    rank: int,
    in_step: bool,
) -> list[Pack]:
    """A rank's rows in packs; `in_step` gives all ranks equally many. `dealt`: the rows of each rank."""
    packs = {
        each: list(micro_batches(dealt[each], segment_lengths, sizes)) for each in (range(len(dealt)) if in_step else (rank,))
    }
    num_missing = max(map(len, packs.values())) - len(packs[rank])
    if not num_missing:
        return [Pack(rows=pack, weight=1.0) for pack in packs[rank]]
    shortest = min(dealt[rank] or [row for rows in dealt for row in rows], key=lambda row: sum(segment_lengths[row]))
    return [Pack(rows=[shortest], weight=0.0)] * num_missing + [Pack(rows=pack, weight=1.0) for pack in packs[rank]]


def padded(rows: Sequence[Sequence[float] | np.ndarray], *, fill: float, dtype: type) -> np.ndarray:
    """The rows below each other, filled up to the longest."""
    array: np.ndarray = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array
