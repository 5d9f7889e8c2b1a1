"""What FSDP does over gloo, in pieces of some bytes and in one."""

import pytest
import torch
import torch.distributed

from learners.network import collectives
from learners.network.collectives import GlooAllGather, GlooReduceScatter
from tests.learners.process_ranks import ProcessRanks

pytestmark = pytest.mark.cold_start

NUM_RANKS = 3


def gathered_and_reduced(rank: int, num_ranks: int, piece_bytes: int, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All parts of one tensor, of which each rank had its own; and this rank's part of a sum over the ranks."""
    group = torch.distributed.group.WORLD
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "PIECE_BYTES", piece_bytes)
        whole = torch.full((num_ranks * numel,), -1.0)
        own = whole.narrow(0, rank * numel, numel)  # as FSDP has it: the input lies in the output
        own.copy_(100.0 * rank + torch.arange(numel))
        GlooAllGather()(whole, own, group)
        part = torch.empty(numel)
        GlooReduceScatter()(part, (rank + 1.0) * torch.arange(num_ranks * numel), group, torch.distributed.ReduceOp.SUM)
    return whole, part


def test_pieces_do_not_show() -> None:
    with ProcessRanks(NUM_RANKS) as ranks:
        for piece_bytes in (4, 40, 2**24):
            for numel in (1, 37):
                found = ranks.run(gathered_and_reduced, NUM_RANKS, piece_bytes, numel)
                for rank, (whole, part) in enumerate(found):
                    assert whole.tolist() == [100.0 * each + place for each in range(NUM_RANKS) for place in range(numel)]
                    assert part.tolist() == [6.0 * place for place in range(rank * numel, (rank + 1) * numel)]  # 1 + 2 + 3 times
